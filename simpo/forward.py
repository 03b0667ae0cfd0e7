"""Give a transformers decoder the packed forward: the attention over segments and the log-prob head.

This is the one place that reaches into transformers' models. A model with `install_packed_forward` answers token
log-probs when it is called with a pack; ordinary calls (generation, padded batches) stay as they were.

Shape letters: T packed tokens, S scored tokens, D hidden size, V vocabulary.
"""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from simpo.attention.backends import Demand, attend, choose, describe
from simpo.attention.layout import PackLayout
from simpo.attention.sdpa import softcapped_attention
from simpo.errors import ModelError
from simpo.logps import token_logps

ATTENTION_NAME = "simpo_packed"
_SERVED_LAYERS = {"full_attention", "sliding_attention"}


@torch.compiler.disable
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: PackLayout | None = None,
    attn_backend: str = "auto",
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer: by the chosen backend for packs, SDPA otherwise.

    Args and result are those of AttentionInterface: query [1, heads, T, size], result [1, T, heads, size].

    Raises:
        ModelError: the model asks for something that this attention does not compute (sinks, a position bias),
            swallowed the layout on the way here, or the backend cannot serve it.
    """
    for unserved in ("s_aux", "position_bias"):
        if kwargs.get(unserved) is not None:
            raise ModelError(
                f"{type(module).__name__} passes `{unserved}` to its attention, which packs do not support"
            )
    if layout is not None:
        _check_window(module, sliding_window, layout)
        attended = attend(
            query,
            key,
            value,
            layout,
            backend=attn_backend,
            scale=scaling,
            window=sliding_window,
            softcap=softcap,
            dropout=dropout,
        )
        return attended, None
    if _is_placeholder(attention_mask):
        raise ModelError(
            f"{type(module).__name__} does not hand keyword arguments of model.forward to its attention, so packs "
            "cannot be told apart; this model cannot be trained here"
        )
    if softcap is not None:
        attended = softcapped_attention(
            query, key, value, attention_mask, scale=scaling, softcap=softcap, dropout=dropout
        )
        return attended.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window
    )


def attention_backend(config: PretrainedConfig, requested: str, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that will compute a model's attention, from its config alone, in words.

    Args:
        config: of the model.
        requested: auto, or a backend.
        device: where it will run.
        dtype: what it will compute in.

    Raises:
        ModelError: the requested backend cannot serve the model, with the reason.
    """
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    demand = Demand(device.type, dtype, size, size, getattr(text, "attn_logit_softcapping", None) is not None)
    return describe(choose(requested, demand), demand)


def _check_window(module: nn.Module, window: int | None, layout: PackLayout) -> None:
    """Refuse a layer whose window is known to the model's mask only, where a sequence is longer than the window."""
    config = getattr(module, "config", None)
    expected = getattr(config, "sliding_window", None)
    if window is not None or expected is None or getattr(config, "use_sliding_window", True) is False:
        return
    layer, types = getattr(module, "layer_idx", None), getattr(config, "layer_types", None)
    if types and layer is not None and types[layer] != "sliding_attention":
        return
    if layout.longest_key > expected:
        raise ModelError(
            f"{type(module).__name__} has a sliding window of {expected} tokens that it hides from its attention, "
            f"and a sequence of {layout.longest_key} tokens; set max_length to at most {expected}, or change the model"
        )


def _placeholder_mask(device: torch.device) -> Tensor:
    # A ready-made 4-D mask makes transformers build none ([T, T] would be quadratic, and wrong for a shared prompt).
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def _is_placeholder(mask: Tensor | None) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 4 and mask.numel() == 1


def check_model_config(config: PretrainedConfig, name: str = "the model") -> None:
    """Refuse architectures that packs cannot serve, from the config alone (no weights).

    Raises:
        ModelError: encoder-decoder, recurrent or other non-attention layers, or no causal language model.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder ({config.model_type}); SimPO here trains decoder-only models")
    # get(): remote-code configs are absent from the mapping, so their class is judged once it is loaded
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if architecture is None and not hasattr(config, "auto_map"):
        raise ModelError(f"{name} ({config.model_type}) has no causal language model in transformers")
    if isinstance(architecture, type):
        _check_architecture(architecture, name)
    unserved = set(getattr(config.get_text_config(), "layer_types", None) or ()) - _SERVED_LAYERS
    if unserved:
        raise ModelError(
            f"{name} ({config.model_type}) has {', '.join(sorted(unserved))} layers; packs are served by full and "
            "sliding-window attention only, and a recurrent layer would leak one response into the next"
        )


def _check_architecture(architecture: type, name: str) -> None:
    if getattr(architecture, "_is_stateful", False):
        raise ModelError(f"{name} ({architecture.__name__}) is recurrent: one response would leak into the next")
    if not getattr(architecture, "_supports_attention_backend", False):
        raise ModelError(
            f"{name} ({architecture.__name__}) does not take its attention from transformers' AttentionInterface, so "
            "the packed attention cannot be installed; choose a model family such as Llama, Mistral, Qwen, Gemma or Phi"
        )


def install_packed_forward(model: PreTrainedModel, attn_backend: str = "auto") -> PreTrainedModel:
    """Teach a causal language model to score packs: `model(**pack)` with `source_positions` answers log-probs [S].

    The head runs inside the model's forward and inside its own module's forward, so that the hooks of DDP, ZeRO and
    FSDP2 fire for it as for any layer. Install before wrapping with PEFT. Calls without `source_positions` are
    untouched. Safe to call twice.

    Args:
        model: the language model.
        attn_backend: auto, or one of `simpo.attention.backends.BACKENDS`.

    Raises:
        ModelError: the architecture cannot serve packs, or its head is not a plain linear layer.
    """
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    check_model_config(model.config, name)
    _check_architecture(type(model), name)
    model._simpo_attn_backend = attn_backend  # type: ignore[assignment]
    if getattr(model, "_simpo_packed", False):
        return model
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    model.set_attn_implementation(ATTENTION_NAME)
    if model.config._attn_implementation != ATTENTION_NAME:
        raise ModelError(f"{name} did not accept the packed attention ({model.config._attn_implementation} stays)")
    _install_head(model, name)
    model.forward = MethodType(_packed_forward_of(model.forward), model)
    model._simpo_packed = True  # type: ignore[assignment]
    return model


def _packed_forward_of(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)  # `generate` reads the signature
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if "source_positions" not in kwargs:
            return original(*args, **kwargs)
        input_ids = kwargs["input_ids"]
        hidden = self.base_model(
            input_ids=input_ids,
            position_ids=kwargs["position_ids"],
            attention_mask=_placeholder_mask(input_ids.device),
            layout=kwargs["layout"],
            attn_backend=self._simpo_attn_backend,
            use_cache=False,
        ).last_hidden_state
        sources = hidden[0].index_select(0, kwargs["source_positions"])
        return self.get_output_embeddings()(sources, target_ids=kwargs["target_ids"])

    return forward


def _install_head(model: PreTrainedModel, name: str) -> None:
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ModelError(f"{name} has a {type(head).__name__} as its head; a plain linear layer is needed")
    softcap, scale = _logit_transform(model.config.get_text_config())

    def forward(self: nn.Linear, hidden: Tensor, target_ids: Tensor | None = None) -> Tensor:
        if target_ids is None:
            return type(self).forward(self, hidden)
        return token_logps(hidden, self.weight, target_ids, self.bias, softcap=softcap, logit_scale=scale)

    head.forward = MethodType(forward, head)  # type: ignore[method-assign]


def _logit_transform(config: PretrainedConfig) -> tuple[float | None, float]:
    """Soft cap and scale that the model applies to its logits, read from the names that model families use."""
    scale = 1.0
    for key in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse, Falcon-H1: factors
        if getattr(config, key, None) is not None:
            scale = float(getattr(config, key))
    divisor = getattr(config, "logits_scaling", None)  # Granite divides, HyperCLOVA X multiplies
    if divisor is not None:
        scale = float(divisor) if config.model_type == "hyperclovax" else 1 / float(divisor)
    return getattr(config, "final_logit_softcapping", None), scale


def check_head(model: PreTrainedModel) -> None:
    """Refuse an adapter on the LM head: the head is read as one matrix, chunk by chunk.

    Raises:
        ModelError: the head is a tuner layer. A full copy of it (`modules_to_save: [lm_head]`) is fine.
    """
    head = model.get_output_embeddings()
    if hasattr(head, "base_layer"):
        raise ModelError(
            f"the LM head is a {type(head).__name__} of the adapter, which cannot be read in chunks; take it out of "
            "lora_target_modules, or train a full copy of it (lora_modules_to_save: [lm_head])"
        )
