"""Chosen hyper-parameters beside the recommended ones."""

from collections.abc import Iterator
from typing import NamedTuple

from simpo.config import PreferenceConfig
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
    warning: str = ""  # what is wrong with the chosen value


def recommendations(settings: RunSettings) -> list[str]:
    """A line for each hyper-parameter that matters most; lines that begin with `!` are warnings."""
    training = settings.training
    rows = [*_rows_of_the_run(training, settings.model.use_peft), *_rows_of_the_objective(training)]
    return [
        f"{'!' if row.warning else ' '} {row.name}: {show(row.chosen)} (recommended {row.advice})"
        + (f": {row.warning}" if row.warning else "")
        for row in rows
    ]


def _rows_of_the_run(training: PreferenceConfig, adapter: bool) -> Iterator[_Row]:
    rate, total = training.learning_rate, training.total_train_batch_size
    limit = 5e-5 if adapter else 2e-6
    kind = "adapters" if adapter else "full fine-tuning"
    advised = "about ten times 3e-7 to 1e-6 for adapters" if adapter else "3e-7, 5e-7, 8e-7 or 1e-6"
    too_fast = f"above {limit:g} {kind} tends to end in repetition"
    yield _Row("learning_rate", rate, advised, too_fast if rate > limit else "")
    other = "other sizes change the result more than any setting"
    yield _Row("total_train_batch_size", total, "128", other if total != 128 else "")


def _rows_of_the_objective(training: PreferenceConfig) -> Iterator[_Row]:
    if training.objective == "simpo":
        beta, ratio = training.beta or 0.0, training.gamma_beta_ratio or 0.0
        weak = "below 1 the margin has little effect"
        if training.length_normalization:
            yield _Row("beta", beta, "2 to 10", weak if beta < 1 else "")
        high = "above 1 the margin outgrows the rewards"
        yield _Row("gamma_beta_ratio", ratio, "0 to 1, starting at 0.5", high if ratio > 1 else "")
        return
    for name, advice in _SEARCHED.get(training.objective, {}).items():
        yield _Row(name, training.objective_settings[name], advice)
