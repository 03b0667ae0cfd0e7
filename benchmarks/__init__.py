"""Measurements, each with one command: `python -m benchmarks.throughput`, `.scaling` and `.plan`."""
