"""Whether long runs survive: kills at random moments, and an hour of small runs that must leave nothing behind."""
