"""YAML files and `--key=value` overrides -> typed, checked settings of a run; and what is known about such settings."""

from simpo.settings.case import RunFacts
from simpo.settings.lint import Advice, lint, stop_on_warnings
from simpo.settings.recommend import recommendations, recommended
from simpo.settings.resolve import RunSettings, check_settings, read_settings

__all__ = [
    "Advice",
    "RunFacts",
    "RunSettings",
    "check_settings",
    "lint",
    "read_settings",
    "recommendations",
    "recommended",
    "stop_on_warnings",
]
