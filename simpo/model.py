"""Load the policy, its tokenizer and its adapter."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from simpo.errors import ConfigError, ModelError
from simpo.forward import check_head, check_model_config, install_packed_forward
from simpo.weights import check_weights, loading_hint, say_remote_code

logger = logging.getLogger(__name__)


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Raises:
        ModelError: it cannot be loaded.
    """
    if trust_remote_code:
        say_remote_code(name_or_path, revision)
    try:
        return AutoTokenizer.from_pretrained(
            name_or_path, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a tokenizer from {name_or_path!r}: {_cause(name_or_path, error)}") from error


def load_model_config(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Load and check a model's config, without its weights.

    Raises:
        ModelError: it cannot be loaded, or names an architecture that packs cannot serve.
    """
    if trust_remote_code:
        say_remote_code(name_or_path, revision)
    try:
        config = AutoConfig.from_pretrained(
            name_or_path, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load a model config from {name_or_path!r}: {_cause(name_or_path, error)}") from error
    check_model_config(config, name_or_path)
    return config


def master_dtype(
    requested: str | torch.dtype | None, *, full_fine_tuning: bool, deepspeed: bool, bf16: bool, fp16: bool = False
) -> tuple[torch.dtype | str, str]:
    """Which dtype the weights are loaded in, and why.

    Full fine-tuning needs float32 master weights: at learning rates near 1e-6 most updates vanish in bfloat16.
    DeepSpeed keeps its own float32 masters beside 16-bit weights; adapters are float32 on a frozen 16-bit base.

    Args:
        requested: dtype of the settings ("bfloat16", "auto", None, ...).
        full_fine_tuning: all weights are trained (no adapter).
        deepspeed: the run is driven by DeepSpeed.
        bf16, fp16: mixed precision of the run.

    Returns:
        The dtype (or "auto"), and a sentence for the plan.
    """
    compute = torch.bfloat16 if bf16 else torch.float16 if fp16 else torch.float32
    wanted = getattr(torch, requested, requested) if isinstance(requested, str) else requested
    if isinstance(wanted, str) and wanted != "auto":
        raise ModelError(f"dtype is {requested!r}; write bfloat16, float16, float32 or auto")
    if full_fine_tuning and not deepspeed:
        note = "float32 master weights" + (f", {_short(compute)} autocast" if compute != torch.float32 else "")
        if wanted not in (None, torch.float32):
            note += f" (dtype: {requested} would lose most updates at preference learning rates)"
        return torch.float32, note
    if full_fine_tuning:
        dtype = compute if wanted in (None, "auto") else wanted
        return dtype, f"{_short(dtype)} weights, float32 masters kept by DeepSpeed"
    dtype = compute if wanted is None else wanted
    return dtype, f"frozen base in {_short(dtype)}, float32 adapters"


def _short(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def load_policy(name_or_path: str, *, attn_backend: str = "auto", **options: Any) -> PreTrainedModel:
    """Load a causal language model with the packed forward installed; `options` are those of `load_causal_lm`.

    Raises:
        ModelError: it cannot be loaded or cannot serve packs.
    """
    options.pop("attn_implementation", None)  # the packed attention takes its place
    return install_packed_forward(load_causal_lm(name_or_path, **options), attn_backend)


def load_causal_lm(
    name_or_path: str,
    *,
    dtype: torch.dtype | str,
    revision: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    **model_init_kwargs: Any,
) -> PreTrainedModel:
    """Load a causal language model of an architecture that packs can serve, with a generation config that can be saved.

    Raises:
        ModelError: it cannot be loaded, its weights are no safetensors, or it cannot serve packs.
    """
    check_weights(name_or_path, revision, model_init_kwargs)
    load_model_config(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    if quantization_config is not None and not is_deepspeed_zero3_enabled():
        model_init_kwargs.setdefault("device_map", {"": _local_device()})
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype=dtype,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            quantization_config=quantization_config,
            **(model_init_kwargs | {"use_safetensors": True}),
        )
    except (OSError, ValueError, ImportError) as error:
        cause = _cause(name_or_path, error)
        raise ModelError(f"cannot load a model from {name_or_path!r}: {cause}") from error
    _mend_generation_config(model)
    return model


def _mend_generation_config(model: PreTrainedModel) -> None:
    # transformers only warns at loading, and refuses to save the trained model
    generation = getattr(model, "generation_config", None)
    try:
        if generation is not None:
            generation.validate(strict=True)
    except ValueError as error:
        logger.warning("generation_config.json contradicts itself; do_sample is set to true: %s", _first_line(error))
        generation.do_sample = True  # type: ignore[union-attr]


def _local_device() -> Any:
    from accelerate import PartialState

    device = PartialState().device
    return device.index if device.index is not None else device


def _cause(name_or_path: str, error: Exception) -> str:
    """What a failed load says in a line; of a path that is not there, that it is not there."""
    path, reason = Path(name_or_path).expanduser(), _first_line(error) + loading_hint(name_or_path, error)
    if path.exists():
        return reason
    if path.is_absolute() or name_or_path.startswith(".") or len(path.parts) > 2:  # no name on the hub
        return f"no such directory (looked for {path.absolute()})"
    return f"no directory of that name here, and not loaded from the hub: {reason}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def add_adapter(model: PreTrainedModel, peft_config: Any) -> nn.Module:
    """Wrap a policy with a PEFT adapter: the base is frozen, the adapter is float32.

    Raises:
        ModelError: the adapter sits on the LM head.
    """
    from peft import get_peft_model

    adapted = get_peft_model(model, peft_config)
    check_head(model)
    return adapted


def check_master_weights(model: nn.Module) -> None:
    """Refuse 16-bit weights that are trained without float32 masters.

    Raises:
        ModelError: with the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ModelError(
                f"{name} is trained in {_short(parameter.dtype)}: at preference learning rates most updates would be "
                "rounded away. Load the model with dtype=torch.float32 (bf16=True still computes in bfloat16), "
                "train an adapter (peft_config=...), or run under DeepSpeed, which keeps float32 masters"
            )


def _is_adapted(model: nn.Module) -> bool:
    return hasattr(model, "get_base_model")  # what every PEFT model has, without importing peft


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, so that a step is a function of its pairs alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]  # read by the attention on every call


def compile_layers(model: nn.Module, *, backend: str, mode: str | None = None, checkpointed: bool = False) -> None:
    """Compile the decoder layers in place, for packs of any length; names of parameters stay as they are.

    Layers rather than the model: one layer's code serves all of them, and head and attention are kernels already.

    Args:
        model: the policy, with its adapter.
        backend, mode: as for `torch.compile`.
        checkpointed: activations are recomputed. The checkpoint cannot be traced through, and lies within the layer, so
            the layer's parts are compiled one by one.

    Raises:
        ModelError: the model has no list of layers.
    """
    base = cast(PreTrainedModel, cast(Any, model).get_base_model() if _is_adapted(model) else model)
    depth = base.config.get_text_config().num_hidden_layers
    lists = (module for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList))
    layers = next((found for found in lists if len(found) == depth), None)
    if layers is None:
        raise ModelError(f"torch_compile: {type(base).__name__} has no list of {depth} layers; leave torch_compile out")
    for layer in layers:
        for part in layer.children() if checkpointed else (layer,):
            part.compile(backend=backend, mode=mode, dynamic=True)


def check_liger_kernel(model: nn.Module) -> None:
    """Refuse models that Liger would leave as they are without a word.

    Raises:
        ModelError: Liger has no kernels for this type of model.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    model_type = cast(Any, model).config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ModelError(f"use_liger_kernel: Liger has no kernels for {model_type} models; leave use_liger_kernel out")


def float32_results(policy: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
    """FSDP2's mixed-precision policy, with log-probs left in float32 and gradients reduced in float32.

    At beta 10 a log-prob rounded to bfloat16 moves a reward by about 0.1.
    """
    return dataclasses.replace(policy, output_dtype=None, reduce_dtype=torch.float32)


def build_policy(
    model: str | nn.Module,
    *,
    bf16: bool,
    fp16: bool,
    deepspeed: bool,
    peft_config: Any = None,
    quantization_config: Any = None,
    model_init_kwargs: dict[str, Any] | None = None,
    attn_backend: str = "auto",
) -> tuple[nn.Module, str]:
    """The model to train, with the packed forward and, if asked for, an adapter.

    Args:
        model: a path or hub name, a causal language model, or a PEFT model around one.
        bf16, fp16: mixed precision of the run.
        deepspeed: DeepSpeed drives the run and keeps float32 masters.
        peft_config: adapter to add.
        quantization_config: how to load the base; needs an adapter.
        model_init_kwargs: passed to `from_pretrained` (dtype, revision, trust_remote_code, ...).
        attn_backend: kernel for the attention of packs.

    Returns:
        The model and a sentence on the dtype of its weights.

    Raises:
        ConfigError: settings that contradict each other.
        ModelError: the model cannot be loaded or served.
    """
    options = dict(model_init_kwargs or {})
    if quantization_config is not None and peft_config is None:
        raise ConfigError("a quantised base cannot be trained itself: add an adapter (use_peft: true / peft_config=)")
    if isinstance(model, str):
        requested = options.pop("dtype", options.pop("torch_dtype", None))
        dtype, note = master_dtype(
            requested, full_fine_tuning=peft_config is None, deepspeed=deepspeed, bf16=bf16, fp16=fp16
        )
        policy: nn.Module = load_policy(
            model, dtype=dtype, quantization_config=quantization_config, attn_backend=attn_backend, **options
        )
    else:
        if options or quantization_config is not None:
            raise ConfigError("model_init_kwargs and quantization_config need a model given by name, not an instance")
        policy, note = model, "weights as given"
        base = cast(PreTrainedModel, cast(Any, model).get_base_model() if _is_adapted(model) else model)
        install_packed_forward(base, attn_backend)
        check_head(base)
    if peft_config is not None:
        if _is_adapted(policy):
            raise ConfigError("the model already carries an adapter; leave out peft_config, or merge it first")
        policy = add_adapter(cast(PreTrainedModel, policy), peft_config)
    if not deepspeed:
        check_master_weights(policy)
    return policy, note
