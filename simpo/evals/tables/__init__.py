"""One table over models and benchmarks, beside the published numbers."""
