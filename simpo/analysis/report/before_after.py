"""What training changed on held-out pairs and in what a model writes: figures of the paper, and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from simpo.analysis.comparison import Scored
from simpo.analysis.pairs import PairScores, read_pairs
from simpo.analysis.pictures import draw_all
from simpo.analysis.report.blocks import Block, Samples, Table, Text
from simpo.analysis.report.drawing import NO_PICTURES, can_draw
from simpo.analysis.report.run_files import Line, RunFiles, number
from simpo.errors import DataError

_PROMPTS = 8  # that are shown
_CHARACTERS = 3000  # of a text that is shown
_ROWS = 8  # steps in the table of generations
_Models = Mapping[str, PairScores]


def figures(runs: Mapping[str, RunFiles]) -> list[Block]:
    """The figures of `simpo.analysis.pictures` from the last probe of each run, beside the initial policy."""
    models: dict[str, PairScores] = {}
    notes: list[Block] = []
    steps = set()
    for name, run in runs.items():
        try:
            found = _last_probe(run)
        except DataError as error:
            notes.append(Text(str(error), "note"))
            continue
        if found is not None:
            steps.add(found[0])
            models["after" if len(runs) == 1 else name] = found[1]
    if not models:
        return notes
    if not can_draw():
        return [NO_PICTURES, *notes]
    count = {len(pairs) for pairs in models.values()}
    at = f" after step {steps.pop()}" if len(steps) == 1 else ", each after its last probe"
    pairs = "pair" if count == {1} else "pairs"
    about = Text(
        f"On {_span(count)} held-out {pairs}{at}; before: the initial policy. Numbers of figures are those of "
        "arXiv 2405.14734."
    )
    scored = [Scored(name, pairs, initial=_is_initial(pairs)) for name, pairs in _with_initial(models).items()]
    return [about, *notes, *draw_all(scored)]


def samples(runs: Mapping[str, RunFiles]) -> list[Block]:
    """What the models wrote to the same prompts at first and at last."""
    found = {name: _by_step(run.generations) for name, run in runs.items()}
    found = {name: steps for name, steps in found.items() if steps}
    if not found:
        return []
    columns: dict[str, Mapping[str, str]] = {}
    for name, steps in found.items():
        first, last = min(steps), max(steps)
        if len(runs) == 1:
            columns |= {f"step {step}": _texts(steps[step]) for step in dict.fromkeys((first, last))}
        else:
            columns.setdefault("before", _texts(steps[first]))
            columns[f"{name}, step {last}"] = _texts(steps[last])
    counts = Counter(prompt for texts in columns.values() for prompt in texts)
    prompts = [prompt for prompt, count in counts.most_common() if count == len(columns)] or list(counts)
    rows = [
        (_cut(prompt), {name: _cut(texts[prompt]) for name, texts in columns.items() if prompt in texts})
        for prompt in prompts[:_PROMPTS]
    ]
    more = f" The first {_PROMPTS} of {len(prompts)} prompts." if len(prompts) > _PROMPTS else ""
    return [*_generation_table(found), Samples(rows, f"Held-out prompts, answered without sampling.{more}")]


def _last_probe(run: RunFiles) -> tuple[int, PairScores] | None:
    """The last one, against the initial policy: its own columns of it, or else the first probe.

    Raises:
        DataError: it cannot be read.
    """
    if not run.probes:
        return None
    step = max(run.probes)
    pairs, first = read_pairs(run.probes[step]), min(run.probes)
    if pairs.ref_chosen is None and first < step:
        pairs = pairs.against(read_pairs(run.probes[first]))
    return step, pairs


def _with_initial(models: _Models) -> dict[str, PairScores]:
    """The models and the initial policy, where all began with the same one: before a single model, behind several, so
    that these keep their colours."""
    firsts = [_initial(pairs) for pairs in models.values()]
    first = firsts[0]
    same = all(other is not None and first is not None and _equal(other, first) for other in firsts)
    if not same or first is None:
        return dict(models)
    return {"before": first, **models} if len(models) == 1 else {**models, "before": first}


def _initial(pairs: PairScores) -> PairScores | None:
    if pairs.ref_chosen is None or pairs.ref_rejected is None:
        return None
    return replace(pairs, chosen=pairs.ref_chosen, rejected=pairs.ref_rejected)


def _equal(one: PairScores, other: PairScores) -> bool:
    """To what rounding leaves."""
    return len(one) == len(other) and all(
        np.allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-2)
        for name in ("row", "chosen", "rejected", "chosen_lengths", "rejected_lengths")
    )


def _is_initial(pairs: PairScores) -> bool:
    """Whether these are the initial policy's own scores."""
    initial = _initial(pairs)
    return initial is not None and (
        np.array_equal(pairs.chosen, initial.chosen) and np.array_equal(pairs.rejected, initial.rejected)
    )


def _by_step(lines: Sequence[Line]) -> dict[int, list[Line]]:
    found: dict[int, list[Line]] = {}
    for line in lines:
        step = number(line.get("step"))
        if step is not None and isinstance(line.get("prompt"), str) and isinstance(line.get("response"), str):
            found.setdefault(int(step), []).append(line)
    return found


def _texts(lines: Sequence[Line]) -> dict[str, str]:
    return {line["prompt"]: line["response"] for line in lines}


def _cut(text: str) -> str:
    more = len(text) - _CHARACTERS
    return text if more <= 0 else f"{text[:_CHARACTERS]}\n… ({more:,} characters more)"


def _generation_table(found: Mapping[str, Mapping[int, Sequence[Line]]]) -> list[Block]:
    """Means at some steps, the first and the last among them."""
    rows = []
    for name, steps in found.items():
        chosen = sorted(steps)
        if len(chosen) > _ROWS:
            chosen = [chosen[at] for at in np.linspace(0, len(chosen) - 1, _ROWS).astype(int)]
        named = (
            {step: f"step {step}" for step in chosen} if len(found) == 1 else {chosen[-1]: f"{name}, step {chosen[-1]}"}
        )
        rows += [[label, *_means(steps[step])] for step, label in named.items()]
    head = ("", "responses", "tokens", "ended by itself", "repeated", "entropy")
    caption = "Means over responses: longest repeat as a share of the tokens; entropy in nats per token."
    return [Table(head, rows, caption)]


def _means(lines: Sequence[Line]) -> list[str]:
    cells = [str(len(lines))]
    for key, form in (("tokens", "{:.0f}"), ("stopped", "{:.0%}"), ("repeated", "{:.0%}"), ("entropy", "{:.2f}")):
        values = [float(line[key]) for line in lines if isinstance(line.get(key), int | float)]
        cells.append(form.format(sum(values) / len(values)) if values else "")
    return cells


def _span(counts: set[int]) -> str:
    return " to ".join(dict.fromkeys((f"{min(counts):,}", f"{max(counts):,}")))
