"""The plan of a run on one kind of GPU: does it fit, with how large micro-batches, for how long, for how much."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from simpo.batching import Budget, PlanSummary
from simpo.errors import ConfigError
from simpo.planning.changes import Proposal, fits, proposals
from simpo.planning.engine import Engine
from simpo.planning.gpus import Gpu
from simpo.planning.memory import Case, Memory, memory_of
from simpo.planning.timing import UTILISATION, Times, times_of
from simpo.planning.workload import Workload
from simpo.settings import RunSettings

_ROUND = 256  # tokens that a proposed micro-batch is a multiple of


@dataclass(frozen=True, eq=False)
class Run:
    """What is planned, whatever the GPU.

    Attributes:
        config: of the model.
        adapter: a PEFT configuration, or None.
        settings: of the run.
        engine: what drives it.
        workload: its data.
        price: of a GPU for an hour, or None.
        utilisation: share of the peak.
    """

    config: Any
    adapter: Any
    settings: RunSettings
    engine: Engine
    workload: Workload
    price: float | None = None
    utilisation: float = UTILISATION

    def __post_init__(self) -> None:
        if self.price is not None and self.price < 0:
            raise ConfigError(f"--price {self.price:g} must be 0 or more: what a GPU costs an hour")
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"--utilisation {self.utilisation:g} must be above 0 and at most 1; e.g. {UTILISATION}")

    @property
    def pairs_per_step(self) -> int:
        """Of the settings; the product over devices where they name no total."""
        given, args = self.settings.resolved, self.settings.training
        if given.get("total_train_batch_size") is not None:
            return int(given["total_train_batch_size"])
        accumulation = int(given.get("gradient_accumulation_steps") or 1)
        return args.per_device_train_batch_size * accumulation * self.engine.gpus

    @property
    def budget(self) -> Budget:
        """Of a micro-batch."""
        args = self.settings.training
        return Budget(args.per_device_train_batch_size, args.max_tokens_per_microbatch)


class Fitting(NamedTuple):
    """Largest micro-batch in tokens that fits; None where none does. `limited`: memory limits it, not the step."""

    tokens: int | None
    limited: bool


class GpuPlan(NamedTuple):
    """A run on one kind of GPU.

    Fields:
        gpu: which.
        case: the run as the settings say.
        cut: how its steps are cut into micro-batches.
        memory: of one GPU.
        largest: micro-batches that would fit: with activations kept (False), and computed again (True).
        times: None where the model's arithmetic cannot be counted; `untimed` says why.
        untimed: see there.
        cost: of an epoch, or None.
        proposals: where it does not fit.
    """

    gpu: Gpu
    case: Case
    cut: PlanSummary
    memory: Memory
    largest: dict[bool, Fitting]
    times: Times | None
    untimed: str | None
    cost: float | None
    proposals: list[Proposal]

    @property
    def fits(self) -> bool:
        """Whether the run as it is fits."""
        return self.memory.total <= self.gpu.memory


def plan_run(run: Run, gpu: Gpu) -> GpuPlan:
    """The plan of a run on `run.engine.gpus` GPUs of this kind."""
    engine, args = run.engine, run.settings.training
    shared, per_step = args.prefix_sharing, run.pairs_per_step
    if per_step < engine.gpus:
        raise ConfigError(f"total_train_batch_size: {per_step} is below the {engine.gpus} GPUs; write {engine.gpus}")
    cut = run.workload.plan(run.budget, per_step=per_step, gpus=engine.gpus, shared=shared, seed=args.seed)
    case = _case(run, gpu, cut)
    memory = memory_of(case)
    longest = int(run.workload.tokens(shared=shared).max())

    def fill(tokens: int) -> Any:
        return run.workload.micro_batch(tokens, shared=shared)

    most = math.ceil(per_step / engine.gpus * run.workload.tokens(shared=shared).mean())
    largest = {
        on: largest_micro_batch(case.changed(checkpointing=on), gpu.memory, longest, max(most, longest), fill)
        for on in (False, True)
    }
    needed = [] if memory.total <= gpu.memory else proposals(case, gpu.memory, longest=longest, fill=fill)
    times, untimed = None, None
    try:
        times = times_of(case, gpu, run.workload.mean, cut, per_step=per_step, pairs=run.workload.pairs,
                         utilisation=run.utilisation)  # fmt: skip
    except ValueError as error:
        untimed = str(error)
    epochs = args.num_train_epochs
    cost = times.epoch / 3600 * run.price * engine.gpus * epochs if times and run.price is not None else None
    return GpuPlan(gpu, case, cut, memory, largest, times, untimed, cost, needed)


def _case(run: Run, gpu: Gpu, cut: PlanSummary) -> Case:
    model, args = run.settings.model, run.settings.training
    bf16 = gpu.cuda if run.settings.resolved.get("bf16") is None else bool(args.bf16)
    bf16 = bf16 or args.fp16 or model.load_in_4bit or model.load_in_8bit  # fp16 takes the same room
    return Case(
        run.config,
        run.engine,
        run.workload.micro_batch(cut.longest, shared=args.prefix_sharing),
        bf16=bf16,
        checkpointing=bool(args.gradient_checkpointing),
        adapter=run.adapter,
        bits=4 if model.load_in_4bit else 8 if model.load_in_8bit else None,
        nested=bool(model.use_bnb_nested_quant),
        shared=args.prefix_sharing,
        accumulated=cut.micro_batches > cut.steps,
        optim=str(getattr(args.optim, "value", args.optim)),
        cuda=gpu.cuda,
        flash=bf16 and args.attn_backend != "sdpa",
    )


def largest_micro_batch(case: Case, capacity: float, longest: int, most: int, fill: Any) -> Fitting:
    """The largest micro-batch between the longest pair and all of a step, in tokens.

    Memory is nearly a convex function of tokens (a maximum of straight lines), so a line between two sizes is above it,
    and where it meets the capacity the micro-batch fits. Two such steps come close. Where attention keeps a square of
    the last pair's length, which varies, smaller ones are tried until one fits.
    """

    def needed(tokens: int) -> float:
        return memory_of(case.changed(pairs=fill(tokens))).total

    low, below = longest, needed(longest)
    if below > capacity:
        return Fitting(None, True)
    high, above = most, needed(most)
    if above <= capacity:
        return Fitting(most, False)
    for _ in range(2):
        low = low + int((high - low) * (capacity - below) / (above - below))
        below = needed(low)
    rounded = max(longest, low // _ROUND * _ROUND)
    while rounded > longest and not fits(case.changed(pairs=fill(rounded)), capacity):
        rounded = max(longest, (rounded - rounded // 16) // _ROUND * _ROUND)
    return Fitting(rounded, True)
