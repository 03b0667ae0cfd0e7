"""Chosen hyper-parameters beside the recommended ones. What is wrong with one is told by `simpo.settings.lint`."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from simpo.config import PreferenceConfig
from simpo.settings.lint import Advice
from simpo.settings.oldnames import show
from simpo.settings.resolve import RunSettings

# The values that SimPO's authors searched for each objective (arXiv 2405.14734, table 7), and AlphaPO's own.
_SEARCHED = {
    "dpo": {"beta": "0.01, 0.05 or 0.1"},
    "ipo": {"tau": "0.01, 0.1, 0.5 or 1"},
    "kto": {"beta": "0.01, 0.05 or 0.1", "desirable_weight": "1", "undesirable_weight": "1"},
    "r-dpo": {"beta": "0.01, 0.05 or 0.1", "length_penalty": "0.05, 0.1, 0.5 or 1"},
    "cpo": {"beta": "0.01, 0.05 or 0.1", "nll_weight": "1"},
    "orpo": {"odds_weight": "0.1, 0.5, 1 or 2"},
    "rrhf": {"nll_weight": "0.1, 0.5, 1 or 10"},
    "slic-hf": {"nll_weight": "0.1, 0.5, 1 or 10", "delta": "0.1, 0.5, 1 or 2"},
    "alphapo": {"beta": "2.5 to 10", "alpha": "0.1 to 0.5"},
}


class _Row(NamedTuple):
    name: str
    chosen: float | None
    advice: str


def recommended(settings: RunSettings) -> dict[str, dict[str, Any]]:
    """The hyper-parameters that matter most by name, each with its `chosen` value and the `recommended` ones."""
    rows = [*_rows_of_the_run(settings.training, settings.model.use_peft), *_rows_of_the_objective(settings.training)]
    return {row.name: {"chosen": row.chosen, "recommended": row.advice} for row in rows}


def recommendations(settings: RunSettings, advice: Iterable[Advice] = ()) -> list[str]:
    """A line for each hyper-parameter that matters most; those that `advice` warns about begin with `!`."""
    training = settings.training
    warned = {one.setting for one in advice if one.level == "warning"}
    rows = [*_rows_of_the_run(training, settings.model.use_peft), *_rows_of_the_objective(training)]
    return [
        f"{'!' if row.name in warned else ' '} {row.name}: {show(row.chosen)} (recommended {row.advice})"
        for row in rows
    ]


def _rows_of_the_run(training: PreferenceConfig, adapter: bool) -> Iterator[_Row]:
    advised = "about ten times 3e-7 to 1e-6 for adapters" if adapter else "3e-7, 5e-7, 8e-7 or 1e-6"
    yield _Row("learning_rate", training.learning_rate, advised)
    yield _Row("total_train_batch_size", training.total_train_batch_size, "128")


def _rows_of_the_objective(training: PreferenceConfig) -> Iterator[_Row]:
    if training.objective == "simpo":
        if training.length_normalization:
            yield _Row("beta", training.beta, "2 to 10")
        yield _Row("gamma_beta_ratio", training.gamma_beta_ratio, "0 to 1, starting at 0.5")
        return
    for name, searched in _SEARCHED.get(training.objective, {}).items():
        yield _Row(name, training.objective_settings[name], searched)
