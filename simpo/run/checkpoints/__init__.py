"""Checkpoints that are whole or are none, and how a run goes on from one."""
