"""What would stop a later step, found before the first one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from simpo.errors import ConfigError, SimPOError
from simpo.onpolicy.annotators.build import import_function
from simpo.onpolicy.annotators.judge import Judge, connect
from simpo.onpolicy.annotators.kinds import FunctionSettings, JudgeSettings, read_annotators
from simpo.onpolicy.settings import GenerateSettings
from simpo.processes import child_environment
from simpo.run.manifest import settings_text

_READ = """
import sys
from simpo.errors import SimPOError
from simpo.settings import read_settings
try:
    read_settings(sys.argv[1], ["--use_cpu=true"])
except SimPOError as error:
    print(error)
    sys.exit(2)
"""


def check_surroundings(policies: Sequence[GenerateSettings], *annotators: Mapping[str, Any]) -> None:
    """Find what would stop a later step now: missing functions, models, keys and templates.

    Raises:
        ConfigError, ModelError: what is missing.
    """
    for settings in policies:
        if settings.api_key_env is not None and not os.environ.get(settings.api_key_env):
            raise ConfigError(f"generate: api_key_env: the environment variable {settings.api_key_env} is not set")
    for group in annotators:
        for name, kind in read_annotators(group).items():
            try:
                _check_annotator(kind)
            except SimPOError as error:
                raise ConfigError(f"annotators.{name}: {error}") from error


def _check_annotator(kind: Any) -> None:
    if isinstance(kind, FunctionSettings):
        import_function(kind.function)
    elif isinstance(kind, JudgeSettings):
        engine = connect(kind)
        try:
            Judge(kind, engine)
        finally:
            engine.close()
    elif Path(kind.model).expanduser().is_dir() or not kind.model.startswith(("/", ".", "~")):
        try:
            cached_file(kind.model, "config.json", revision=kind.revision or "main")
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"model: {kind.model!r} cannot be found: {reason}") from error
    else:
        raise ConfigError(f"model: {kind.model!r}: there is no such directory")


def check_training(settings: Mapping[str, Any]) -> None:
    """Build the settings of a run, as `simpo train` will: transformers has checks of its own.

    In a process of its own, because building them starts accelerate, looks for devices and sets variables.

    Raises:
        ConfigError: what is wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "train.yaml")
        file.write_text(settings_text(settings), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", _READ, str(file)],
            env=child_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        unexpected = (done.stderr.strip().splitlines() or ["its settings cannot be read"])[-1]
        raise ConfigError(f"train: {done.stdout.strip().removeprefix(f'{file}: ') or unexpected}")
