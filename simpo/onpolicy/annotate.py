"""Scores for the responses of every prompt, kept as they come; what goes wrong is reported with its row."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from simpo.errors import ConfigError, SimPOError, StoreError
from simpo.onpolicy.agreement import agreement_table
from simpo.onpolicy.annotators.base import Annotator, Item, Scored
from simpo.onpolicy.annotators.build import load_annotator
from simpo.onpolicy.annotators.kinds import (
    AnySettings,
    PairRMSettings,
    RewardModelSettings,
    identity,
    read_annotators,
)
from simpo.onpolicy.pairs import hash_of
from simpo.onpolicy.scored import ScoredPrompt, fingerprint, read_generations
from simpo.sampling.policy import weights_fingerprint
from simpo.store import Record, Store, read_settings_of

_EXAMPLES = 5
_LONG = timedelta(days=30)


@dataclass(frozen=True)
class AnnotateSettings:
    """What is scored, and by whom.

    Args:
        generations: folder of `simpo generate`.
        output_dir: the scores go here; a folder with scores by the same annotators is gone on with.
        annotators: name -> {kind: reward_model | pairrm | judge | function, and its settings}.
        prompts_per_batch: prompts that are scored together, and kept together: a kill loses no more than these.
        retry_errors: score again what came to an error in an earlier start.
        use_cpu: leave GPUs alone.

    Raises:
        ConfigError: a number is out of bounds, or an annotator's settings are wrong.
    """

    generations: str
    output_dir: str
    annotators: dict[str, Any]
    prompts_per_batch: int = 32
    retry_errors: bool = False
    use_cpu: bool = False

    def __post_init__(self) -> None:
        if self.prompts_per_batch < 1:
            raise ConfigError(f"prompts_per_batch: {self.prompts_per_batch} must be at least 1")
        try:
            read_annotators(self.annotators)
        except ConfigError as error:
            raise ConfigError(f"annotators: {str(error).removeprefix('annotators: ')}") from error


class AnnotatorBroken(SimPOError):
    """An annotator failed on every prompt of the first batch; nothing was kept."""


def run_annotate(settings: AnnotateSettings) -> None:
    """Score every prompt that has no record yet, and report. Under `accelerate launch` each process takes its part.

    Raises:
        AnnotatorBroken: an annotator fails on every prompt of the first batch.
        EngineError: no server of a judge answers.
        ConfigError, ModelError: an annotator cannot be made.
        StoreError: a folder is missing, damaged, in use, or made with other annotators.
    """
    # processes wait for the slowest one, which may take as long as the run
    options = {"timeout": _LONG} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
    state = PartialState(cpu=settings.use_cpu, **options)
    made_with = {"generations": read_settings_of(settings.generations)}  # not the path: folders are moved
    kinds = read_annotators(settings.annotators)
    made_with |= {f"annotator {name}": identity(kind) | _weights(kind) for name, kind in kinds.items()}
    # first, so that a wrong name leaves no folder behind that holds to it
    annotators = {name: load_annotator(kind, state.device) for name, kind in kinds.items()}
    again = (lambda record: record["error"] is not None) if settings.retry_errors else None
    with _shared_store(Store(settings.output_dir, made_with, rank=state.process_index, again=again), state) as store:
        annotate(settings, annotators, store, state.process_index, state.num_processes)
        state.wait_for_everyone()
        if state.is_main_process:
            _report(settings, store)


def _weights(kind: AnySettings) -> dict[str, Any]:
    """A judge's weights are its servers' business, a function's source the user's."""
    if isinstance(kind, RewardModelSettings | PairRMSettings):
        return {"weights": weights_fingerprint(kind.model)}
    return {}


@contextmanager
def _shared_store(store: Store, state: PartialState) -> Iterator[Store]:
    """The store of all processes: the main one holds its lock from before the others enter until they have left."""
    if state.num_processes == 1:
        with store:
            yield store
        return
    refused: list[BaseException] = []
    if state.is_main_process:
        try:
            store.__enter__()
        except StoreError as error:  # the others wait at the barrier, and are told there
            refused.append(error)
    if any(_gathered(len(refused), state)):
        raise refused[0] if refused else StoreError(f"{store.folder}: the main process cannot open it")
    if not state.is_main_process:
        store.__enter__()
    try:
        yield store
    except BaseException:  # the launcher ends the others: no use in waiting for them
        store.__exit__(None, None, None)
        raise
    if not state.is_main_process:
        store.__exit__(None, None, None)
    state.wait_for_everyone()
    if state.is_main_process:
        store.__exit__(None, None, None)


def _gathered(value: int, state: PartialState) -> list[int]:
    if state.num_processes == 1:
        return [value]
    found: list[int] = [0] * state.num_processes
    torch.distributed.all_gather_object(found, value)
    return found


def annotate(
    settings: AnnotateSettings, annotators: Mapping[str, Annotator], store: Store, rank: int = 0, processes: int = 1
) -> None:
    """Score this process's part of the prompts; records as

    {"id", "row", "of": hash of the responses, "scores": {annotator: [number or null, ...]}, "error": text or null}
    """
    # by id: parts do not overlap, although one process may see more prompts than another while they are being made
    waiting = [
        prompt
        for prompt in read_generations(settings.generations)
        if prompt.id not in store.done and int(hash_of(0, prompt.id), 16) % processes == rank
    ]
    with tqdm(total=len(waiting), unit="prompt", desc="annotate", disable=rank != 0, smoothing=0.05) as bar:
        for start in range(0, len(waiting), settings.prompts_per_batch):
            batch = waiting[start : start + settings.prompts_per_batch]
            items = [
                Item(prompt.id, prompt.row, prompt.prompt, prompt.texts, prompt.arguments, prompt.columns)
                for prompt in batch
                if prompt.responses
            ]
            # with nothing done yet, what always fails is broken; later it may be that only such prompts are left
            first = not store.done
            scored = {name: score_all(name, annotator, items, first=first) for name, annotator in annotators.items()}
            at = {item.id: number for number, item in enumerate(items)}
            for prompt in batch:
                found = {name: of[at[prompt.id]] for name, of in scored.items()} if prompt.id in at else {}
                store.append(prompt.id, _record(prompt, found))
            bar.update(len(batch))


def score_all(name: str, annotator: Annotator, items: Sequence[Item], *, first: bool = False) -> list[Scored]:
    """Scores of every item: together, and where that fails one by one, so that only what fails has none.

    Raises:
        AnnotatorBroken: these are the first items, several, and all of them fail or have no number for a score.
    """
    first = first and len(items) > 1
    found, failure = _try(annotator, items)
    if failure is None:
        return [_checked(one) for one in (_with_some_number(name, found, items) if first else found)]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # where memory was what failed
    tried = [_try(annotator, [item]) for item in items]
    if first and all(reason is not None for _, reason in tried):
        raise AnnotatorBroken(
            f"annotator {name} fails on every prompt, e.g. {items[0].id} (row {items[0].row}): {failure}"
        )
    return [
        _checked(one[0]) if reason is None else Scored([None] * len(item.responses), [reason])
        for item, (one, reason) in zip(items, tried, strict=True)
    ]


def _try(annotator: Annotator, items: Sequence[Item]) -> tuple[list[Scored], str | None]:
    """Scores, or why there are none: a template, a user's function and a device may raise anything."""
    try:
        return annotator.score(items) if items else [], None
    except SimPOError:  # of the annotator, not of an item
        raise
    except Exception as error:
        return [], f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def _with_some_number(name: str, found: list[Scored], items: Sequence[Item]) -> list[Scored]:
    scores = [score for one in found for score in one.scores]
    if scores and all(score is not None and not math.isfinite(score) for score in scores):
        raise AnnotatorBroken(
            f"annotator {name} gives {scores[0]} to every response of {len(items)} prompts, e.g. {items[0].id} "
            f"(row {items[0].row}); a reward model in float16 may need dtype: bfloat16 or float32"
        )
    return found


def _checked(scored: Scored) -> Scored:
    """The same without numbers that are none."""
    for index, score in enumerate(scored.scores):
        if score is not None and not math.isfinite(score):
            scored.scores[index] = None
            scored.problems.append(f"response {index}: the score is {score}")
    return scored


def _record(prompt: ScoredPrompt, found: Mapping[str, Scored]) -> Record:
    problems = [f"{name}: {problem}" for name, one in found.items() for problem in one.problems]
    return {
        "id": prompt.id,
        "row": prompt.row,
        "of": fingerprint(prompt.texts),
        "scores": {name: one.scores for name, one in found.items()},
        "error": "; ".join([*([f"generation: {prompt.error}"] if prompt.error else []), *problems]) or None,
    }


def _report(settings: AnnotateSettings, store: Store) -> None:
    records = list(store.records())
    lines = report_lines(records)
    print("\n".join(lines))
    if len(records) == sum(1 for _ in read_generations(settings.generations)):
        store.finish({"prompts": len(records), "report": lines})
    print(f"scores are in {settings.output_dir}; go on with: simpo binarize --generations={settings.generations} "
          f"--scores={settings.output_dir} --output_dir=...")  # fmt: skip


def report_lines(records: Sequence[Record]) -> list[str]:
    """What was scored, by each annotator; what went wrong, with rows; how far the annotators agree."""
    lines = [f"{len(records):,} prompts annotated"]
    names = list(dict.fromkeys(name for record in records for name in record["scores"]))
    for name in names:
        lists = [(record, record["scores"].get(name, [])) for record in records]
        given = [score for _, scores in lists for score in scores if score is not None]
        absent = [record for record, scores in lists if any(score is None for score in scores)]
        equal = [record for record, scores in lists if _all_equal(scores)]
        mean = f", mean {sum(given) / len(given):.4g}" if given else ""
        lines.append(f"  {name}: {len(given):,} scores{mean}")
        if absent:
            lines.append(f"    scores missing in {len(absent):,} prompts ({_rows(absent)})")
        if equal:
            lines.append(f"    all scores equal in {len(equal):,} prompts, which give no pair ({_rows(equal)})")
    failed = [record for record in records if record["error"]]
    lines += [f"  row {record['row']} ({record['id']}): {record['error'][:300]}" for record in failed[:_EXAMPLES]]
    if len(failed) > _EXAMPLES:
        lines.append(f"  ... and {len(failed) - _EXAMPLES:,} more; every record has its field error")
    table = agreement_table([record["scores"] for record in records])
    return [*lines, *(["agreement, prompt by prompt", *table] if table else [])]


def _all_equal(scores: Sequence[float | None]) -> bool:
    return len(scores) > 1 and None not in scores and len(set(scores)) == 1


def _rows(records: Sequence[Record]) -> str:
    shown = ", ".join(str(record["row"]) for record in records[:_EXAMPLES])
    return f"rows {shown}{', ...' if len(records) > _EXAMPLES else ''}"
