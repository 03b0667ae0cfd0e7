"""Memory of one GPU at the worst moment of a step, part by part.

    backward = weights + states + buffers + gathered weights + gradient shards + what a rehearsed step holds
    update   = weights + states + buffers + gradients + temporaries of the optimizer
    needed   = max(backward, update) + reserve

N parameters, n GPUs, bytes a parameter for full fine-tuning in bf16 under AdamW:

                weights   gradients  states      also
    single      4 N       4 N        8 N         casts of weights to 16 bits while they are used (rehearsed)
    ddp         4 N       4 N        8 N         4 N of reduction buckets
    zero2       2 N       2 N / n    12 N / n    a bucket of 5e8 gradients in backward, whatever N is
    zero3       2 N / n   2 N / n    12 N / n    the bucket all the time; up to 1e9 gathered weights, 5e7 of them twice
    fsdp2       4 N / n   4 N / n    8 N / n     gathered layers in 16 bits, a reduction in float32

Adapters: the base stays in 16 bits (4 or 8 where it is quantised, and then whole on every GPU), and N in the columns of
gradients and states are the adapter's weights. Sources: ZeRO (arXiv 1910.02054) section 3; defaults of DeepSpeed's
`zero_optimization`; `torch.distributed.fsdp.fully_shard`, as accelerate calls it.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from simpo.errors import ModelError
from simpo.flops import PairLengths
from simpo.planning.engine import Engine
from simpo.planning.rehearsal import Phase, Step, rehearse
from simpo.planning.sizes import Sizes, count_sizes

# DeepSpeed's defaults, in parameters; accelerate and transformers leave them.
_LIVE, _SUB_GROUP, _PREFETCH = 1_000_000_000, 1_000_000_000, 50_000_000
_CONTEXT = int(1.5 * 2**30)  # CUDA context, cuBLAS workspaces, NCCL's channels
_FRAGMENTATION = 0.05  # of the tensors: what torch's allocator holds and cannot use
# A search asks for the same few models and steps again and again.
_COUNTED: dict[str, Sizes] = {}
_REHEARSED: dict[str, dict[str, Phase]] = {}


@dataclass(frozen=True, eq=False)
class Case:
    """What the memory of a run depends on.

    Attributes:
        config: of the model.
        engine: what drives the run.
        bf16: whether layers compute in bfloat16.
        checkpointing: activations are computed again in backward.
        adapter: a PEFT configuration, or None for full fine-tuning.
        bits: 4 or 8 where the frozen base is quantised, else None.
        nested: scales of the quantised weights are quantised too.
        shared: prompts are computed once.
        pairs: lengths of the pairs of the largest micro-batch.
        accumulated: a step has several micro-batches.
        optim: name of the optimizer, as `TrainingArguments.optim`.
        cuda: on CUDA; else torch's code on a CPU.
        flash: on CUDA, attention by a kernel of the flash family; else SDPA segment by segment.
    """

    config: PretrainedConfig
    engine: Engine
    pairs: tuple[PairLengths, ...]
    bf16: bool = True
    checkpointing: bool = False
    adapter: Any = None
    bits: int | None = None
    nested: bool = False
    shared: bool = True
    accumulated: bool = True
    optim: str = "adamw_torch_fused"
    cuda: bool = True
    flash: bool = True

    @functools.cached_property
    def sizes(self) -> Sizes:
        """Parameters."""
        key = self.config.to_json_string() + repr(self.adapter)
        if key not in _COUNTED:
            _COUNTED[key] = count_sizes(self.config, self.adapter)
        return _COUNTED[key]

    @property
    def tokens(self) -> int:
        """Packed tokens of the micro-batch."""
        return sum((1 if self.shared else 2) * p + c + r for p, c, r in self.pairs)

    def changed(self, **changes: Any) -> "Case":
        """The same run with some things otherwise."""
        return dataclasses.replace(self, **changes)


class Memory(NamedTuple):
    """Bytes on one GPU.

    Fields:
        parts: name -> bytes at the worst moment, in the order in which they are shown.
        moment: when that is.
        reserve: what is not tensors.
    """

    parts: dict[str, float]
    moment: str
    reserve: float

    @property
    def tensors(self) -> float:
        """All but the reserve."""
        return sum(self.parts.values())

    @property
    def total(self) -> float:
        """With the reserve."""
        return self.tensors + self.reserve


class Held(NamedTuple):
    """Bytes on one GPU that do not come and go within a step, but for `gathered`; fields as in the module's table."""

    weights: float
    gradients: float
    states: float
    gathered: float
    buffers: float


def memory_of(case: Case) -> Memory:
    """What one GPU of a run needs, at the worst moment of a step."""
    held, phases = held_by(case), _rehearsed(_step_of(case))
    kept = 0.0 if case.engine.shards_gradients else 4.0 * case.sizes.trained
    updating = held._replace(gathered=0.0, buffers=0.0 if case.engine.kind == "zero2" else held.buffers)
    update = sum(updating) + kept + (extra := _update_extra(case))
    name, phase = max(phases.items(), key=lambda item: item[1].peak)
    backward = sum(held) + phase.peak + (extra_linear := _dequantised(case))
    if update > backward:
        parts = _parts(updating, Phase(kept, kept, kept), temporaries=extra)
        moment = "the optimizer's update"
    else:
        parts = _parts(held, phase, temporaries=phase.peak - phase.start + extra_linear)
        moment = "forward" if name == "forward" else f"backward, {name.replace('head', 'LM head')}"
    reserve = _CONTEXT + _FRAGMENTATION * sum(parts.values()) if case.cuda else 0.0
    return Memory(parts, moment, reserve)


def _rehearsed(step: Step) -> dict[str, Phase]:
    key = step.config.to_json_string() + repr(dataclasses.replace(step, config=None))  # type: ignore[arg-type]
    if key not in _REHEARSED:
        try:
            _REHEARSED[key] = rehearse(step)
        except RuntimeError as error:  # also what operations raise that look at numbers
            why = str(error).splitlines()[0]
            raise ModelError(f"a step of {step.config.model_type} cannot be counted without data: {why}") from error
    return _REHEARSED[key]


def _parts(held: Held, phase: Phase, *, temporaries: float) -> dict[str, float]:
    return {
        "weights": held.weights,
        "gradients": held.gradients + phase.gradients,
        "optimizer states": held.states,
        "activations": phase.start - phase.gradients,
        "temporaries": temporaries,
        "gathered weights": held.gathered,
        "communication": held.buffers,
    }


def _step_of(case: Case) -> Step:
    compute = torch.bfloat16 if case.bf16 else torch.float32
    sixteen_bit = case.engine.deepspeed or case.engine.kind == "fsdp2"  # layers see 16-bit weights
    return Step(
        case.config,
        case.pairs,
        shared=case.shared,
        weights=compute if sixteen_bit or case.adapter is not None else torch.float32,
        autocast=torch.bfloat16 if case.bf16 and not case.engine.deepspeed else None,
        checkpointing=case.checkpointing,
        adapter=case.adapter,
        adapter_dtype=compute if sixteen_bit else torch.float32,
        cuda=case.cuda,
        flash=case.flash,
        sharded=case.engine.shards_gradients,
        accumulated=case.accumulated and not case.engine.shards_gradients,
    )


def held_by(case: Case) -> Held:
    """What weights, gradients, states and the engine's buffers take."""
    engine, sizes = case.engine, case.sizes
    wide = 2 if case.bf16 else 4
    n, trained = engine.gpus, sizes.trained
    frozen = _frozen_bytes(case)
    moments = state_bytes(case.optim) * trained
    if engine.kind in ("single", "ddp"):
        return Held(frozen + 4 * trained, 0, moments, 0, 4 * trained if engine.kind == "ddp" else 0)
    whole = frozen if case.bits is not None else 0  # quantised weights are not cut
    if engine.kind == "fsdp2":
        weights = whole + (frozen - whole + 4 * trained) / n
        gathered = wide * (3 * sizes.layer + sizes.tail if engine.reshard else sizes.total) * (case.bits is None)
        reduced = 4 * max(sizes.layer, sizes.tail, sizes.embedding) + wide * sizes.layer if case.adapter is None else 0
        held = Held(weights, 4 * trained / n, moments / n, gathered, reduced)
    else:
        bucket = wide * (engine.bucket if engine.bucket is not None else case.config.get_text_config().hidden_size ** 2)
        masters = 4 * trained / n
        if engine.kind == "zero2":
            held = Held(frozen + wide * trained, wide * trained / n, masters + moments / n, 0, bucket)
        else:
            # weights are copied out of the flat buffer in which several arrive
            live = min(sizes.total, _LIVE + sizes.layer) + min(sizes.total, _PREFETCH)
            gathered = wide * live * (case.bits is None)
            weights = whole + (frozen - whole + wide * trained) / n
            held = Held(weights, wide * trained / n, masters + moments / n, gathered, bucket)
    if engine.offload_optimizer:
        held = held._replace(states=0, gradients=0)
    return held._replace(weights=whole) if engine.offload_params else held


def _frozen_bytes(case: Case) -> float:
    """Bytes of the frozen weights: 16 bits, or packed with their scales, one for 64 weights (bitsandbytes)."""
    wide = 2 if case.bf16 else 4
    if case.bits is None:
        return wide * case.sizes.frozen
    scale = (1 / 64 + 4 / (64 * 256) if case.nested else 4 / 64) if case.bits == 4 else 0
    return case.sizes.linear * (case.bits / 8 + scale) + wide * (case.sizes.frozen - case.sizes.linear)


def _dequantised(case: Case) -> float:
    """A linear map in 16 bits again, while it is used."""
    return 2.0 * case.sizes.largest_linear if case.bits is not None else 0.0


def state_bytes(optim: str) -> float:
    """Bytes of optimizer state for a trained parameter; two float32 moments where the optimizer is not known."""
    name = optim.lower()
    moments = 1 if any(word in name for word in ("lion", "sgd", "rmsprop", "adagrad")) else 2
    return moments * (1.0 + 4 / 256 if "8bit" in name else 4.0) if "adafactor" not in name else 0.1


def _update_extra(case: Case) -> float:
    """Temporaries of the optimizer's update.

    torch's AdamW over lists of tensors, as on CUDA, takes the root of all second moments at once; fused, it needs
    nothing; on a CPU it goes tensor by tensor, with two as large as each. DeepSpeed makes float32 gradients of a group
    of 1e9 weights at a time, and such a group is one tensor.
    """
    engine, sizes = case.engine, case.sizes
    if engine.offload_optimizer:
        return 0.0
    local = sizes.trained / engine.gpus if engine.shards_gradients else sizes.trained
    lists = case.optim == "adamw_torch"
    if engine.deepspeed:
        group = min(local, _SUB_GROUP) if engine.kind == "zero3" else local
        return (4.0 + lists * (4.0 if case.cuda else 8.0)) * group
    if not lists:
        return 0.0
    return 4.0 * local if case.cuda else 8.0 * sizes.largest
