"""Scores for the responses of every prompt, kept as they come; what goes wrong is reported with its row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from simpo.errors import ConfigError, ModelError, SimPOError
from simpo.onpolicy.agreement import agreement_table
from simpo.onpolicy.annotators.base import Annotator, Item, Scored
from simpo.onpolicy.annotators.kinds import identity, load_annotator, read_annotators
from simpo.onpolicy.scored import fingerprint, read_generations
from simpo.onpolicy.store import Record, Store, StoreError

_EXAMPLES = 5


@dataclass(frozen=True)
class AnnotateSettings:
    """What is scored, and by whom.

    Args:
        generations: folder of `simpo generate`.
        output_dir: the scores go here; a folder with scores by the same annotators is gone on with.
        annotators: name -> {kind: reward_model | pairrm | judge | function, and its settings}.
        prompts_per_batch: prompts that are scored together, and kept together: a kill loses no more than these.
        use_cpu: leave GPUs alone.

    Raises:
        ConfigError: a number is out of bounds, or an annotator's settings are wrong.
    """

    generations: str
    output_dir: str
    annotators: dict[str, Any]
    prompts_per_batch: int = 32
    use_cpu: bool = False

    def __post_init__(self) -> None:
        if self.prompts_per_batch < 1:
            raise ConfigError(f"prompts_per_batch: {self.prompts_per_batch} must be at least 1")
        try:
            read_annotators(self.annotators)
        except ConfigError as error:
            raise ConfigError(f"annotators: {str(error).removeprefix('annotators: ')}") from error


class AnnotationError(SimPOError):
    """Prompts are left without scores; the same command goes on with them."""


def run_annotate(settings: AnnotateSettings) -> None:
    """Score every prompt that has no record yet, and report. Under `accelerate launch` each process takes its part.

    Raises:
        AnnotationError: prompts are left, since a server did not answer.
        ConfigError, ModelError: an annotator cannot be made.
        StoreError: a folder is missing, damaged, in use, or made with other annotators.
    """
    state = PartialState(cpu=settings.use_cpu)
    with _shared_store(settings, state) as store:
        kinds = read_annotators(settings.annotators)
        annotators = {name: load_annotator(kind, state.device) for name, kind in kinds.items()}
        left = annotate(settings, annotators, store, state.process_index, state.num_processes)
        state.wait_for_everyone()
        left = sum(_gathered(left, state))
        if state.is_main_process:
            _report(settings, store)
    if left:
        raise AnnotationError(
            f"{left} prompts are left without scores: a server did not answer; the same command goes on with them"
        )


@contextmanager
def _shared_store(settings: AnnotateSettings, state: PartialState) -> Iterator[Store]:
    """The store of all processes: the main one holds its lock from before the others enter until they have left."""
    kinds = read_annotators(settings.annotators)
    made_with = {"generations": settings.generations, **{name: identity(kind) for name, kind in kinds.items()}}
    store = Store(settings.output_dir, made_with, rank=state.process_index)
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
        raise refused[0] if refused else StoreError(f"{settings.output_dir}: the main process cannot open it")
    if not state.is_main_process:
        store.__enter__()
    try:
        yield store
    finally:
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
) -> int:
    """Score this process's part of the prompts; records as

        {"id", "row", "of": hash of the responses, "scores": {annotator: [number or null, ...]}, "error": text or null}

    Returns:
        How many prompts are left, since a server did not answer.
    """
    # every process sees the same order, whatever is done already: parts never overlap
    mine = itertools.islice(_items(settings.generations), rank, None, processes)
    waiting = [(item, error) for item, error in mine if item.id not in store.done]
    left = 0
    with tqdm(total=len(waiting), unit="prompt", desc="annotate", disable=rank != 0, smoothing=0.05) as bar:
        for start in range(0, len(waiting), settings.prompts_per_batch):
            batch = waiting[start : start + settings.prompts_per_batch]
            unfinished = _annotate_batch(batch, annotators, store)
            bar.update(len(batch))
            left += unfinished
            if unfinished == len(batch):  # nobody answers: waiting for the rest would only take longer
                return len(waiting) - start - unfinished + left
    return left


def _items(generations: str) -> Iterator[tuple[Item, str | None]]:
    for prompt in read_generations(generations):
        yield Item(prompt.id, prompt.row, prompt.prompt, prompt.texts), prompt.error


def _annotate_batch(batch: Sequence[tuple[Item, str | None]], annotators: Mapping[str, Annotator], store: Store) -> int:
    items = [item for item, error in batch if error is None or item.responses]
    scored = {name: score_all(annotator, items) for name, annotator in annotators.items()}
    by_id = {item.id: {name: found[at] for name, found in scored.items()} for at, item in enumerate(items)}
    left = 0
    for item, error in batch:
        found = by_id.get(item.id, {})
        if any(one.again for one in found.values()):
            left += 1
            continue
        store.append(item.id, _record(item, found, error))
    return left


def score_all(annotator: Annotator, items: Sequence[Item]) -> list[Scored]:
    """Scores of every item: together, and where that fails one by one, so that only what fails has none."""
    if not items:
        return []
    try:
        return [_checked(one) for one in annotator.score(items)]
    except (ModelError, ConfigError):  # of the annotator, not of an item
        raise
    except Exception as error:  # a template, the user's function, or the device may raise anything
        if len(items) > 1:
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            return [score_all(annotator, [item])[0] for item in items]
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        return [Scored([None] * len(items[0].responses), [reason])]


def _checked(scored: Scored) -> Scored:
    """The same without numbers that are none."""
    for index, score in enumerate(scored.scores):
        if score is not None and not math.isfinite(score):
            scored.scores[index] = None
            scored.problems.append(f"response {index}: the score is {score}")
    return scored


def _record(item: Item, found: Mapping[str, Scored], error: str | None) -> Record:
    problems = [f"{name}: {problem}" for name, one in found.items() for problem in one.problems]
    return {
        "id": item.id,
        "row": item.row,
        "of": fingerprint(item.responses),
        "scores": {name: one.scores for name, one in found.items()},
        "error": "; ".join([*([f"generation: {error}"] if error else []), *problems]) or None,
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
