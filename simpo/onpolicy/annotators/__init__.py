"""What gives scores to responses: reward models, PairRM, a judge behind a server, a Python function."""
