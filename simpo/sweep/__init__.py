"""Many runs of one configuration: which settings to try next, one process per run, and what came of it."""

from simpo.sweep.loop import run_sweep

__all__ = ["run_sweep"]
