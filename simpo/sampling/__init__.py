"""Prompts through an engine: rendered for a policy, sampled, and kept as they are finished."""
