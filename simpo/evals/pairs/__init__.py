"""Preference pairs under a model: accuracies, margins, log-probs and their length correlation."""
