"""The published numbers of SimPO and of what it was compared with, for tables.

`published_results.csv` holds the three tables of released models in the README of the published repository
(princeton-nlp/SimPO: v0.1, v0.2 and Gemma); arXiv 2405.14734 reports the same experiments, v0.1 in table 4, v0.2 in
appendix H and Gemma 2 in appendix J. AlpacaEval 2 there is alpaca_eval 0.6.2, Arena-Hard is v0.1.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from simpo.errors import ConfigError
from simpo.evals.results import Metric

SOURCE = "README of princeton-nlp/SimPO (released models); experiments of arXiv 2405.14734"

JUDGES = {"alpaca_eval": "weighted_alpaca_eval_gpt4_turbo", "arena_hard": "gpt-4-1106-preview"}
"""Who judged the published numbers."""

TWINS_NOTE = (
    "Llama3 Instruct 8B: the rows of CPO and KTO hold the same three numbers; they stand so in the source, where one "
    "of the two may be a slip"
)

_COLUMNS = {
    "alpacaeval2_lc": ("alpaca_eval", "lc_win_rate"),
    "alpacaeval2_wr": ("alpaca_eval", "win_rate"),
    "arena_hard": ("arena_hard", "win_rate"),
}
_BRIEF = ("SFT", "SimPO")


@dataclass(frozen=True, slots=True)
class Published:
    """One published row.

    Args:
        setting: what was trained on which data, e.g. `Llama3 Instruct 8B`.
        objective: `SFT` is the initial model.
        model: its name on the hub.
        metrics: benchmark -> metric -> number, all in %.
    """

    setting: str
    objective: str
    model: str
    metrics: dict[str, dict[str, Metric]]


def read_published() -> list[Published]:
    """All published rows, in the order of the source."""
    text = resources.files("simpo.evals.tables").joinpath("published_results.csv").read_text(encoding="utf-8")
    rows = []
    for row in csv.DictReader(text.splitlines()):
        metrics: dict[str, dict[str, Metric]] = {}
        for column, (benchmark, metric) in _COLUMNS.items():
            metrics.setdefault(benchmark, {})[metric] = Metric(float(row[column]), "%")
        rows.append(Published(row["setting"], row["objective"], row["model"], metrics))
    return rows


def setting_names() -> list[str]:
    """The published settings, in the order of the source."""
    return list(dict.fromkeys(row.setting for row in read_published()))


def choose_published(setting: str | None, amount: str = "brief") -> list[Published]:
    """The published rows of a table.

    Args:
        setting: rows of this setting, whatever its capitals; None: of all.
        amount: without a setting `brief` takes initial models and SimPO, `all` every row; `none` takes none.

    Raises:
        ConfigError: there is no such setting.
    """
    if setting is not None and setting.casefold() not in (name.casefold() for name in setting_names()):
        raise ConfigError(f"--setting {setting}: is no published setting; write one of {', '.join(setting_names())}")
    if amount == "none":
        return []
    rows = read_published()
    if setting is not None:
        return [row for row in rows if row.setting.casefold() == setting.casefold()]
    return [row for row in rows if amount == "all" or row.objective in _BRIEF]


def published_notes(rows: Sequence[Published]) -> list[str]:
    """What a reader of these rows must know: their source, and twins among them."""
    if not rows:
        return []
    shown = {(row.setting, row.objective) for row in rows}
    twins = all(("Llama3 Instruct 8B", objective) in shown for objective in ("CPO", "KTO"))
    return [f"published: {SOURCE}", *([TWINS_NOTE] if twins else [])]
