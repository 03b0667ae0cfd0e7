"""YAML files and `--key=value` overrides -> typed, checked settings of a run."""

from simpo.settings.recommend import recommendations
from simpo.settings.resolve import RunSettings, check_settings, read_settings

__all__ = ["RunSettings", "check_settings", "read_settings", "recommendations"]
