"""From settings to a run's folder: check, plan, train, and leave everything that is needed to use or repeat it."""

from simpo.run.train import run_reference, run_training

__all__ = ["run_reference", "run_training"]
