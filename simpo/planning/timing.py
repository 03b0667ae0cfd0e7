"""Seconds of a step: arithmetic at an assumed share of the peak, communication beside it, and the update.

    micro-batch = max(FLOPs / (utilisation x peak), bytes moved / link)
    step        = micro-batches x micro-batch + update

FLOPs: 3 forwards for full fine-tuning, 2 with adapters (no gradients of frozen weights), one more of the layers where
activations are computed again, and one more of the head, whose tiles are computed again in backward.
"""

from typing import NamedTuple

from simpo.batching import PlanSummary
from simpo.flops import PairLengths, attention_pairs, forward_flops, model_shape
from simpo.planning.gpus import Gpu
from simpo.planning.memory import Case

UTILISATION = 0.3
"""Share of the dense bf16 peak: packed and shared DPO reached 24% on 8 H100, counted without recomputation (Wang and
Hegde 2024), which is about 30% with it."""
_NETWORK = 50e9  # bytes a second of a GPU to another machine: 400 Gbit/s
_PCIE = 25e9  # bytes a second between a GPU and RAM
_CPU_ADAM = 1e9  # weights a second that a machine's CPUs update, for each GPU
MACHINE = 8
"""GPUs of a machine, as assumed."""


class Times(NamedTuple):
    """A run's time.

    Fields:
        step: seconds of an optimizer step.
        compute, communication, update: seconds of it; communication runs beside compute.
        steps: of an epoch.
        tokens_per_second, pairs_per_second: over all GPUs.
    """

    step: float
    compute: float
    communication: float
    update: float
    steps: float
    tokens_per_second: float
    pairs_per_second: float

    @property
    def epoch(self) -> float:
        """Seconds."""
        return self.step * self.steps


def step_flops(case: Case, mean: PairLengths, pairs: float) -> float:
    """Operations that a step of so many pairs does, over all GPUs, what is computed again included.

    Raises:
        ValueError: the model has experts, of which a token uses only some.
    """
    shape = model_shape(case.config.get_text_config())
    prompt, chosen, rejected = mean
    tokens, scored = (1 if case.shared else 2) * prompt + chosen + rejected, chosen + rejected
    visible = shape.heads * sum(attention_pairs(mean, shared=case.shared, window=window) for window in shape.windows)
    layers = forward_flops(shape, tokens=tokens, scored=0, visible=visible)
    head = forward_flops(shape, tokens=0, scored=scored, visible=0)
    forwards = 3 if case.adapter is None else 2
    return pairs * (layers * (forwards + case.checkpointing) + head * (forwards + 1))


def times_of(
    case: Case, gpu: Gpu, mean: PairLengths, plan: PlanSummary, *, per_step: int, pairs: int, utilisation: float
) -> Times:
    """How long a run takes.

    Args:
        case: its memory.
        gpu: on which it runs.
        mean: lengths of its pairs in tokens.
        plan: how its steps are cut.
        per_step: pairs of a step.
        pairs: of an epoch.
        utilisation: share of the peak.

    Raises:
        ValueError: as `step_flops`.
    """
    engine = case.engine
    micro_batches = plan.micro_batches / plan.steps
    flops = step_flops(case, mean, per_step) * plan.imbalance
    compute = flops / (engine.gpus * gpu.flops * utilisation)
    moved = _moved_by_micro_batch(case) * micro_batches + _moved_by_step(case)
    link = gpu.link if engine.gpus <= MACHINE else min(gpu.link, _NETWORK)
    communication, update = moved / link, _update_seconds(case, gpu)
    step = max(compute, communication) + update
    tokens = per_step * sum(mean) + (0 if case.shared else per_step * mean.prompt)
    return Times(step, compute, communication, update, pairs / per_step, tokens / step, per_step / step)


def _moved_by_micro_batch(case: Case) -> float:
    """Bytes that a GPU receives for each micro-batch: weights for forward and backward, and gradients."""
    engine, sizes = case.engine, case.sizes
    wide = 2 if case.bf16 else 4
    part = (engine.gpus - 1) / engine.gpus
    if engine.kind == "zero2":
        return part * wide * sizes.trained
    if not engine.shards_weights:
        return 0.0
    weights = wide * sizes.total * (2 if engine.reshard else 1) * (case.bits is None)
    reduced = (4 if engine.kind == "fsdp2" else wide) * sizes.trained
    return part * (weights + reduced)


def _moved_by_step(case: Case) -> float:
    engine, trained = case.engine, case.sizes.trained
    part = (engine.gpus - 1) / engine.gpus
    return part * {"ddp": 8.0, "zero2": 2.0}.get(engine.kind, 0.0) * trained


def _update_seconds(case: Case, gpu: Gpu) -> float:
    """AdamW reads gradient, weight and two moments and writes the last three: 28 bytes; or the CPU does it."""
    local = case.sizes.trained / (case.engine.gpus if case.engine.shards_gradients else 1)
    if case.engine.offload_optimizer:
        return local * (4 / _PCIE + 1 / _CPU_ADAM)
    return 28 * local / gpu.bandwidth
