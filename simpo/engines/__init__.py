"""Engines that sample responses: one interface, in process or behind a server."""
