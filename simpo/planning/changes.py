"""The smallest sets of changes that make a run fit, by trying them.

A change is tried alone before two together; where several sets of one size fit, those stand first that change less of
the result: checkpointing and smaller micro-batches change none of it, adapters change what is trained.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from simpo.flops import PairLengths
from simpo.planning.engine import Engine
from simpo.planning.memory import Case, memory_of
from simpo.planning.timing import MACHINE

MOST_GPUS = 64
_TOGETHER = 3  # changes that are tried together

Fill = Callable[[int], tuple[PairLengths, ...]]


class Change(NamedTuple):
    """One thing to write otherwise.

    Fields:
        name: for people.
        apply: the run with it, or None where it does not apply.
        lines: what to write: lines of YAML, or a command.
    """

    name: str
    apply: Callable[[Case], Case | None]
    lines: Callable[[Case], list[str]]


class Proposal(NamedTuple):
    """A set of changes with which a run fits: their names, the run, what to write, and the bytes that it then needs."""

    names: list[str]
    case: Case
    lines: list[str]
    total: float


def proposals(case: Case, capacity: float, *, longest: int, fill: Fill) -> list[Proposal]:
    """The smallest sets of changes on the GPUs that are there, and the smallest number of GPUs with which it fits.

    Args:
        case: a run that does not fit.
        capacity: bytes of a GPU.
        longest: tokens of the longest pair: no micro-batch is smaller.
        fill: makes a micro-batch of so many tokens.
    """
    here = _changes(longest, fill)
    found: list[Proposal] = []
    for size in range(1, _TOGETHER + 1):
        found = [_proposal(some, changed) for some, changed in _sets(case, here, size) if fits(changed, capacity)]
        if found:
            break
    return found[:3] + _with_more_gpus(case, capacity, here)


def fits(case: Case, capacity: float) -> bool:
    """Whether one GPU of `capacity` bytes holds it."""
    return memory_of(case).total <= capacity


def _proposal(some: Sequence[Change], changed: Case) -> Proposal:
    lines = [line for change in some for line in change.lines(changed)]
    return Proposal([change.name for change in some], changed, lines, memory_of(changed).total)


def _sets(case: Case, changes: Sequence[Change], size: int) -> Iterator[tuple[Sequence[Change], Case]]:
    """Every `size` changes that apply together, and the run with them."""
    for some in itertools.combinations(changes, size):
        changed: Case | None = case
        for change in some:
            changed = change.apply(changed) if changed is not None else None
        if changed is not None:
            yield some, changed


def _with_more_gpus(case: Case, capacity: float, here: Sequence[Change]) -> list[Proposal]:
    """The fewest GPUs that do, as they are or with what costs nothing of the result."""
    if not case.cuda:
        return []
    gpus = 2 * case.engine.gpus
    while gpus <= MOST_GPUS:
        for size in range(3):
            more = case.changed(engine=_over(case.engine, gpus))
            for some, changed in _sets(more, here[:2], size):
                if fits(changed, capacity):
                    one = _proposal(some, changed)
                    return [one._replace(names=[f"{gpus} GPUs", *one.names], lines=[_started(changed), *one.lines])]
        gpus *= 2
    return []


def _started(case: Case) -> str:
    """The command that starts a run on sharded weights."""
    kind, gpus = case.engine.kind, case.engine.gpus
    nodes = f"_nodes --num_machines {-(-gpus // MACHINE)}" if gpus > MACHINE else ""
    return f"simpo train --accelerate {kind}{nodes} --num_processes {gpus}"


def _over(engine: Engine, gpus: int) -> Engine:
    return engine._replace(gpus=gpus, kind=engine.kind if engine.shards_weights else "zero3")


def _changes(longest: int, fill: Fill) -> list[Change]:
    """In the order in which they are proposed."""
    return [
        Change("checkpointing", _checkpointed, lambda _: ["gradient_checkpointing: true"]),
        Change(
            "smaller micro-batches",
            lambda case: case.changed(pairs=fill(longest)) if case.tokens > 1.05 * longest else None,
            lambda case: [f"max_tokens_per_microbatch: {case.tokens}"],
        ),
        Change("sharded weights", _sharded, lambda case: [_started(case)]),
        Change("optimizer states in RAM", _offloaded, lambda _: ["offload_optimizer_device: cpu  # accelerate config"]),
        Change("LoRA", lambda case: _adapted(case, None), lambda _: _LORA),
        Change("QLoRA", lambda case: _adapted(case, 4), lambda _: [*_LORA, "load_in_4bit: true"]),
    ]


_LORA = ["use_peft: true", "lora_r: 16", "lora_alpha: 16", "lora_target_modules: all-linear"]


def _checkpointed(case: Case) -> Case | None:
    return None if case.checkpointing else case.changed(checkpointing=True)


def _sharded(case: Case) -> Case | None:
    engine = case.engine
    if engine.shards_weights or engine.gpus == 1:
        return None
    return case.changed(engine=engine._replace(kind="zero3"))


def _offloaded(case: Case) -> Case | None:
    engine = case.engine
    if engine.offload_optimizer or not engine.deepspeed:
        return None
    return case.changed(engine=engine._replace(offload_optimizer=True))


def _adapted(case: Case, bits: int | None) -> Case | None:
    if case.bits is not None or (case.adapter is not None and bits is None):
        return None
    if bits is not None and case.engine.shards_weights:  # quantised weights lie whole on every GPU: no gain
        return None
    return case.changed(adapter=case.adapter or lora(), bits=bits)


def lora(rank: int = 16) -> Any:
    """LoRA on all linear layers but the head."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
