"""Benchmarks: answers decoded as published, judgments, and one table of results."""
