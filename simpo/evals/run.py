"""One benchmark, from settings to results."""

from __future__ import annotations

from collections.abc import Sequence

from simpo.evals.answers import write_answers
from simpo.evals.settings import EvalSettings
from simpo.settings.flat import Paths, read_flat


def read_eval_settings(benchmark: str, files: Paths, overrides: Sequence[str] = ()) -> EvalSettings:
    """Read and check the settings of `simpo eval BENCHMARK`.

    Raises:
        ConfigError: with file and line, setting, value, and what to write instead.
    """
    return read_flat(EvalSettings, files, [f"--benchmark={benchmark}", *overrides])


def run_eval(settings: EvalSettings) -> None:
    """Answer and judge; what an earlier call has finished is not done again."""
    write_answers(settings)
