"""The files of `simpo analyze`: tables, pictures and the page."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpo.analysis.comparison import Measure, Scored
from simpo.analysis.report.blocks import Picture
from simpo.errors import ConfigError
from simpo.store import PART

if TYPE_CHECKING:
    from simpo.cli.analysis_plan import Plan
    from simpo.evals.pairs.greedy import Answer

CSV, MARKDOWN, PAGE = "analysis.csv", "analysis.md", "report.html"


def write_files(
    plan: Plan,
    models: Sequence[Scored],
    numbers: Sequence[Measure],
    paired: Sequence[Measure],
    against: str,
    answers: Mapping[str, Sequence[Answer]],
    notes: list[str],
    settings: Mapping[str, str],
) -> list[Path]:
    """Write all of them; pictures are left out, with a note, where matplotlib is missing.

    Returns:
        Their paths.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from simpo.analysis.report.models import comparison_page
    from simpo.analysis.report.page import write_page
    from simpo.analysis.tables import csv_of

    folder = plan.output
    pictures = _pictures(models, plan.beta, notes)
    try:
        texts = {
            CSV: csv_of({"models": numbers, f"less {against}": paired}),
            MARKDOWN: _markdown(models, numbers, paired, against, notes),
        }
        files = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
        files |= {picture.name: picture.png for picture in pictures}
        for name, content in files.items():
            part = folder / (name + PART)
            part.write_bytes(content)
            os.replace(part, folder / name)
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot be written: {error.strerror or error}") from error
    page = comparison_page(
        models,
        numbers=numbers,
        paired=paired,
        against=against,
        pictures=pictures,
        answers=side_by_side(answers),
        notes=notes,
        settings=settings,
        files=[(CSV, "all numbers, unrounded"), (MARKDOWN, "the tables"), ("scores", "log-probs of each pair")],
        about=f"simpo {importlib.metadata.version('simpo')}, {time.strftime('%Y-%m-%d %H:%M')}",
    )
    return [*(folder / name for name in files), write_page(page, folder / PAGE)]


def _pictures(models: Sequence[Scored], beta: float, notes: list[str]) -> list[Picture]:
    from tqdm.auto import tqdm

    from simpo.analysis.pictures import draw_all

    try:
        return list(tqdm(draw_all(models, beta), desc="Pictures", unit="picture"))
    except ConfigError as error:
        notes.append(f"There are no pictures: {error}")
        return []


def _markdown(
    models: Sequence[Scored], numbers: Sequence[Measure], paired: Sequence[Measure], against: str, notes: Sequence[str]
) -> str:
    from simpo.analysis.report.models import NUMBERS, PAIRED, models_table
    from simpo.analysis.tables import grid_of, markdown_table

    about = models_table(models)
    parts = [
        f"# Models on the same {len(models[0].pairs):,} pairs\n",
        markdown_table(about.head, about.rows, right=False),
        markdown_table(*grid_of(numbers)),
        f"{NUMBERS}\n",
    ]
    if paired:
        parts += [f"## Less {against}\n", markdown_table(*grid_of(paired, signed=True)), f"{PAIRED}\n"]
    return "\n".join([*parts, *(f"- {note}\n" for note in notes)])


def side_by_side(answers: Mapping[str, Sequence[Answer]]) -> list[tuple[str, dict[str, str]]]:
    """Prompts, and what each model writes to them."""
    found: dict[tuple[str, int], tuple[str, dict[str, str]]] = {}
    for name, written in answers.items():
        for answer in written:
            _, responses = found.setdefault((answer.source, answer.row), (answer.prompt, {}))
            responses[name] = answer.response if answer.stopped else f"{answer.response} [cut]"
    return list(found.values())


def settings_rows(plan: Plan, told: Mapping[str, Any], dropped: Mapping[str, int]) -> dict[str, str]:
    """What the numbers depend on, for people."""
    first = plan.settings[0]
    rows = {
        "pairs": ", ".join(first.data.dataset_mixer or {}),
        "splits": ", ".join(first.dataset_splits or []),
        "max_samples": "" if first.max_samples is None else str(first.max_samples),
        **{key: str(value) for key, value in told.items() if key != "beta"},
        "scale of margins": "nats per token" if plan.beta == 1 else f"beta {plan.beta:g}",
        "dtype": first.dtype or "bfloat16, float32 on a CPU",
        **{f"dropped: {cause}": str(count) for cause, count in dropped.items()},
    }
    if plan.prompts:
        rows["answers"] = f"greedy, at most {plan.max_new_tokens} tokens, {plan.prompts} prompts"
    return {key: value for key, value in rows.items() if value}
