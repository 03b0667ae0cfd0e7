"""Watching a run: what is looked at, when it is worth a warning, and what becomes of it. docs/monitors.md lists it."""

from simpo.monitor.callback import Monitors
from simpo.monitor.nonfinite import FiniteCheck

__all__ = ["FiniteCheck", "Monitors"]
