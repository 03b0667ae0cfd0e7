"""Preference data from the policy itself: sample responses, score them, make pairs."""
