"""Floating-point operations that a training step needs, counted from lengths and the model's configuration.

    FLOPs of a step = 3 (2 N T + 2 h V S + 4 d A),   A = sum over layers of n_q x visible query-key pairs

N parameters of the decoder layers' linear maps, T processed tokens, h hidden size, V vocabulary, S scored response
tokens, d head size, n_q query heads. A multiplication with an addition counts as two operations. The factor 3 is one
forward and a backward of twice its cost; what is computed again (activation checkpointing, the chunked head) is not
counted, nor are norms, activations and the optimizer. So this is the work that the method needs, whatever the program
spends on it; divided by time and the device's peak it is the model FLOPs utilisation (MFU).

Pure arithmetic: no torch, no transformers.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

# Dense bf16 peak in FLOP/s by the words of a device's name, the more specific name first. Vendors' data sheets; the
# numbers with sparsity that they print beside them are twice as large.
PEAK_FLOPS: dict[tuple[str, ...], float] = {
    ("B200",): 2250e12,
    ("H200", "NVL"): 835e12,
    ("H200",): 989e12,
    ("GH200",): 989e12,
    ("H100", "PCIE"): 756e12,
    ("H100", "NVL"): 835e12,
    ("H100",): 989e12,
    ("H800", "PCIE"): 756e12,
    ("H800",): 989e12,
    ("A100",): 312e12,
    ("A800",): 312e12,
    ("L40S",): 362e12,
    ("L40",): 181e12,
    ("L4",): 121e12,
    ("A40",): 150e12,
    ("A10",): 125e12,
    ("MI300X",): 1307e12,
}


class PairLengths(NamedTuple):
    """Tokens of a pair's prompt, chosen and rejected response."""

    prompt: int
    chosen: int
    rejected: int


class ModelShape(NamedTuple):
    """What of a decoder enters the count.

    Fields:
        hidden: hidden size.
        vocabulary: rows of the LM head.
        heads, head_size: query heads and the size of each.
        linear: parameters of the linear maps in all decoder layers.
        windows: for each layer its sliding window in tokens, the query's own included, or None.
    """

    hidden: int
    vocabulary: int
    heads: int
    head_size: int
    linear: int
    windows: tuple[int | None, ...]


def linear_parameters(config: Any) -> int:
    """Parameters of the linear maps in all decoder layers of a Llama-like model, biases left out.

        layers x (2 h n_q d + 2 h n_kv d + 3 h f),   f the inner size of the gated MLP

    Args:
        config: a transformers configuration (`LlamaConfig` and its relatives).

    Raises:
        ValueError: the model has experts, of which a token uses only some.
    """
    if any(getattr(config, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
        raise ValueError(f"{config.model_type} has experts; only dense decoders with a gated MLP are counted")
    hidden, heads, size = config.hidden_size, config.num_attention_heads, _head_size(config)
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    attention = 2 * hidden * size * (heads + key_value_heads)
    return config.num_hidden_layers * (attention + 3 * hidden * config.intermediate_size)


def model_shape(config: Any) -> ModelShape:
    """The shape that the count needs, from a transformers configuration.

    Raises:
        ValueError: as `linear_parameters`.
    """
    layers = config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return ModelShape(
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        heads=config.num_attention_heads,
        head_size=_head_size(config),
        linear=linear_parameters(config),
        windows=tuple(window if kind == "sliding_attention" else None for kind in types),
    )


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def causal_pairs(tokens: int, window: int | None = None) -> int:
    """Query-key pairs of a causal sequence: n (n + 1) / 2, or at most `window` keys for each query.

    >>> causal_pairs(4), causal_pairs(4, window=2)
    (10, 7)
    """
    seen = tokens if window is None else min(tokens, window)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


def attention_pairs(lengths: PairLengths, *, shared: bool, window: int | None = None) -> int:
    """Query-key pairs of a preference pair in one layer and one head.

        shared:   a(P + C) + a(P + R) - a(P)      = a(P + C) + R P + a(R) without a window
        unshared: a(P + C) + a(P + R)             with a(n) = causal_pairs(n, window)

    >>> attention_pairs(PairLengths(3, 2, 3), shared=True)
    30
    """
    prompt, chosen, rejected = lengths
    both = causal_pairs(prompt + chosen, window) + causal_pairs(prompt + rejected, window)
    return both - causal_pairs(prompt, window) if shared else both


def forward_flops(shape: ModelShape, *, tokens: int, scored: int, visible: int) -> int:
    """FLOPs of one forward: 2 N T + 2 h V S + 4 d A.

    Args:
        shape: of the model.
        tokens: T, processed tokens.
        scored: S, rows that meet the LM head.
        visible: A, query-key pairs summed over layers and query heads.
    """
    head = 2 * shape.hidden * shape.vocabulary * scored
    return 2 * shape.linear * tokens + head + 4 * shape.head_size * visible


def training_flops(shape: ModelShape, pairs: Iterable[PairLengths], *, shared: bool) -> int:
    """FLOPs of forward and backward for these pairs, without padding and with the head on response tokens only.

    Args:
        shape: of the model.
        pairs: lengths in tokens.
        shared: the prompt is computed once for both responses.
    """
    total = 0
    for lengths in pairs:
        prompt, chosen, rejected = lengths
        by_layer = (attention_pairs(lengths, shared=shared, window=window) for window in shape.windows)
        total += forward_flops(
            shape,
            tokens=(1 if shared else 2) * prompt + chosen + rejected,
            scored=chosen + rejected,
            visible=shape.heads * sum(by_layer),
        )
    return 3 * total


def peak_flops(device: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s, or None where it is not in the table.

    >>> peak_flops("NVIDIA A100-SXM4-80GB")
    312000000000000.0
    """
    words = set(re.findall(r"[A-Z0-9]+", device.upper()))
    return next((peak for name, peak in PEAK_FLOPS.items() if words.issuperset(name)), None)


def utilisation(flops: float, seconds: float, device: str, devices: int = 1) -> float | None:
    """Model FLOPs utilisation: flops / (seconds x devices x peak), or None where the peak is not known.

    Args:
        flops: of the whole step over all devices (`training_flops`).
        seconds: that it took; above 0.
        device: name, as `torch.cuda.get_device_name()` says it.
        devices: how many of them.
    """
    peak = peak_flops(device)
    return None if peak is None else flops / (seconds * devices * peak)
