"""The page that compares models on the same pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simpo.analysis.comparison import Measure, Scored
from simpo.analysis.report.blocks import Block, Files, Page, Picture, Samples, Section, Table, Text
from simpo.analysis.tables import grid_of, show

_SHOWN = 8  # sample answers

NUMBERS = (
    "Values with 95% intervals over pairs. SimPO's reward is the log-prob per token, so its accuracy is the likelihood "
    "accuracy as well; DPO's is the change against the initial policy; sum: whole responses, which favours short ones."
)
PAIRED = "Differences on the same pairs with 95% intervals: one that does not hold 0 is more than chance over pairs."


def models_table(models: Sequence[Scored]) -> Table:
    """Which model is which."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:g}"

    rows = [
        [one.name, one.path, "initial policy" if one.initial else one.objective, number(one.beta), number(one.gamma)]
        for one in models
    ]
    return Table(["model", "where", "objective", "beta", "gamma"], rows, "As the manifests of their runs say.")


def comparison_page(
    models: Sequence[Scored],
    *,
    numbers: Sequence[Measure],
    paired: Sequence[Measure],
    against: str,
    pictures: Sequence[Picture],
    answers: Sequence[tuple[str, Mapping[str, str]]],
    notes: Sequence[str],
    settings: Mapping[str, str],
    files: Sequence[tuple[str, str]],
    about: str,
) -> Page:
    """All of it as one page.

    Args:
        models: in the order of the tables.
        numbers: of each model.
        paired: differences from the model `against`.
        pictures: the figures.
        answers: prompts, and what models write by their names.
        notes: what a reader must know.
        settings: of the data and the scores.
        files: beside the page, with what they hold.
        about: the foot.
    """
    tables: list[Block] = [Text(NUMBERS), Table(*grid_of(numbers))]
    if paired:
        tables += [Text(f"Less {against}. {PAIRED}"), Table(*grid_of(paired, signed=True))]
    first, *_ = numbers
    lead = {"pairs": f"{len(models[0].pairs):,}"}
    lead |= {f"reward accuracy, {name}": f"{show(one, first.unit)[0]}%" for name, one in list(first.of.items())[:4]}
    samples = [Samples(answers[:_SHOWN], "Greedy answers to prompts of the pairs.")] if answers else []
    return Page(
        title="Models on the same pairs",
        lead=lead,
        sections=[
            Section("Models", [*(Text(note, "note") for note in notes), models_table(models)]),
            Section("Numbers", tables),
            Section("Pictures", list(pictures)),
            Section("Answers", samples),
            Section(
                "Settings and files",
                [Table(["setting", "value"], [list(item) for item in settings.items()]), Files(files)],
            ),
        ],
        about=about,
    )
