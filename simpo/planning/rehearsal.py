"""A training step without data: the model's own forward and backward on tensors that have shapes only, counted.

The counting sees every tensor that the step makes and drops, so what an architecture, autocast, an adapter or
activation checkpointing keep is not modelled but happens. Only a few layers are run: every further one adds the same.
"""

import copy
import warnings
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from simpo.flops import PairLengths
from simpo.forward import install_packed_forward
from simpo.model import add_adapter, disable_dropout
from simpo.packing import PackedBatch, pack_pairs
from simpo.planning.standins import install_cuda_standins
from simpo.scoring import pack_logps

_FEW, _MORE = 3, 4  # layers that are run: first, second, last, and one more


@dataclass(frozen=True, eq=False)
class Step:
    """The forward and backward of one micro-batch.

    Attributes:
        config: of the model.
        pairs: lengths of the micro-batch's pairs in tokens.
        shared: prompts are computed once.
        weights: dtype of the weights, of the frozen ones where there is an adapter.
        autocast: dtype of mixed precision, or None.
        checkpointing: activations of a layer are computed again in backward.
        adapter: a PEFT configuration, or None for full fine-tuning.
        adapter_dtype: of the adapter's weights.
        cuda: with CUDA's kernel of the head; otherwise with the torch code that runs on a CPU.
        flash: attention by a kernel of the flash family too.
        sharded: gradients leave as soon as they are complete.
        accumulated: the gradients of an earlier micro-batch are there.
    """

    config: PretrainedConfig
    pairs: tuple[PairLengths, ...]
    shared: bool = True
    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    checkpointing: bool = False
    adapter: Any = None
    adapter_dtype: torch.dtype = torch.float32
    cuda: bool = False
    flash: bool = True
    sharded: bool = False
    accumulated: bool = False


class Phase(NamedTuple):
    """A part of a step, in bytes; weights and optimizer states are not counted.

    Fields:
        start: held when it begins: activations, gradients, casts of weights.
        gradients: of it, gradients of parameters.
        peak: most that is held in it.
    """

    start: float
    gradients: float
    peak: float

    def extended(self, more: "Phase", layers: int) -> "Phase":
        """The phase with so many more layers, where `more` has one more than this."""
        return Phase(*(few + layers * (many - few) for few, many in zip(self, more, strict=True)))


PHASES = ("forward", "head", "last layer", "second layer", "first layer")
Phases = Mapping[str, Phase]


def rehearse(step: Step) -> dict[str, Phase]:
    """What a step holds, by phase: `forward`, then backward through `head` and layers; by `PHASES`.

    Exact for models whose layers are alike: then every number is a straight line in the count of layers.
    """
    depth = step.config.get_text_config().num_hidden_layers
    if depth <= _MORE:
        return _rehearse(step, depth)
    few, more = _rehearse(step, _FEW), _rehearse(step, _MORE)
    return {name: few[name].extended(more[name], depth - _FEW) for name in PHASES}


def _rehearse(step: Step, layers: int) -> dict[str, Phase]:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model = meta_model(step.config, step.weights, step.adapter, layers=layers)
    base: Any = model.get_base_model() if step.adapter is not None else model
    install_packed_forward(base, "sdpa")
    if step.cuda:
        install_cuda_standins(base, flash=step.flash)
    if step.checkpointing:
        enable_checkpointing(base)
    disable_dropout(model)
    pack = _pack(step)
    with fake, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to_empty(device="cpu")
        base.tie_weights()  # every module got weights of its own
        for parameter in model.parameters():
            if step.adapter is not None and parameter.requires_grad:
                parameter.data = parameter.data.to(step.adapter_dtype)
            if step.sharded and parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_leave)
        return run_step(model.train(), pack, step, fake)


def meta_model(config: PretrainedConfig, dtype: torch.dtype, adapter: Any = None, *, layers: int | None = None) -> Any:
    """A model without storage, with its adapter; with fewer layers where `layers` says so."""
    config = copy.deepcopy(config)
    text: Any = config.get_text_config()
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    rope = getattr(text, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):  # these read the positions
        text.rope_parameters = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return model if adapter is None else add_adapter(model, copy.deepcopy(adapter))


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Activation checkpointing, under the name that this transformers has for it."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")({"use_reentrant": False})


def run_step(model: nn.Module, pack: PackedBatch, step: Step, fake: FakeTensorMode | None = None) -> dict[str, Phase]:
    """Forward and backward of a pack through a model, counted."""
    clock = _Clock(model)
    with clock.bytes:
        if fake is not None:
            pack = cast(PackedBatch, {key: fake.from_tensor(value) if isinstance(value, Tensor) else value
                                      for key, value in pack.items()})  # fmt: skip
        for _ in range(2 if step.accumulated else 1):
            clock.begin()
            with torch.autocast("cpu", dtype=step.autocast, enabled=step.autocast is not None):
                chosen, rejected = pack_logps(model, pack)
                loss = (chosen - rejected).sum()
            del chosen, rejected
            clock.mark("head")
            loss.backward()  # type: ignore[no-untyped-call]
            clock.mark("end")
            del loss
    return clock.phases()


def _leave(parameter: Tensor) -> None:
    parameter.grad = None


def _pack(step: Step) -> PackedBatch:
    rows = [
        {"prompt_ids": [0] * pair.prompt, "chosen_ids": [0] * pair.chosen, "rejected_ids": [0] * pair.rejected}
        for pair in step.pairs
    ]
    return pack_pairs(rows, prefix_sharing=step.shared)


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that were made under it and still live, and the most there were since `restart`.

    Args:
        there: tensors that are not counted, neither they nor views of them.
    """

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._there = [tensor.untyped_storage() for tensor in there]
        self._known: dict[int, Any] = {storage._cdata: None for storage in self._there}

    def restart(self) -> None:
        """Forget the peak."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked more often than all else together, and makes nothing
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, result)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)


class _Clock:
    """Notes when the gradient of each layer's output arrives: the layer's backward begins there."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = LiveBytes([*model.parameters(), *model.buffers()])
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._layers = decoder_layers(model)
        self._begun: dict[str, tuple[int, int]] = {}
        self._peaks: dict[str, int] = {}
        self._current = ""
        for number, layer in enumerate(self._layers):
            layer.register_forward_hook(self._hook(number))

    def begin(self) -> None:
        """A micro-batch: only the last one counts."""
        self._begun.clear()
        self._peaks.clear()
        self._current = ""
        self.mark("forward")

    def mark(self, name: str) -> None:
        """A phase ends, and the one of this name begins."""
        if name in self._begun:
            return
        self._peaks[self._current] = self.bytes.peak
        self.bytes.restart()
        held = {id(g): g.untyped_storage().nbytes() for p in self._trained if (g := p.grad) is not None}
        self._begun[name] = self.bytes.live, sum(held.values())
        self._current = name

    def phases(self) -> dict[str, Phase]:
        """What was noted, by `PHASES`."""
        return {
            name: Phase(self._begun[name][0], self._begun[name][1], self._peaks[name])
            for name in PHASES
            if name in self._begun
        }

    def _hook(self, number: int) -> Any:
        names = {0: "first layer", 1: "second layer", len(self._layers) - 1: "last layer"}
        name = names.get(number, f"layer {number}")

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(begins)

        def begins(_: Tensor) -> None:
            self.mark(name)

        return hook


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of a decoder's layers, of a model or of an adapter around it."""
    base = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else cast(Any, model)
    depth: int = base.config.get_text_config().num_hidden_layers
    return next(
        module for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    )
