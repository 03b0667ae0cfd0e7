"""FLOPs of a step: against torch's counter, against masks written out, and against numbers known from elsewhere."""

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from simpo.flops import (
    PairLengths,
    attention_pairs,
    causal_pairs,
    forward_flops,
    linear_parameters,
    model_shape,
    peak_flops,
    training_flops,
    utilisation,
)

LENGTHS = [(1, 1, 1), (3, 2, 3), (7, 1, 9), (5, 12, 2)]


def _rows(lengths: PairLengths) -> list[torch.Tensor]:
    """Positions of the two separate rows of a pair."""
    return [torch.arange(lengths.prompt + response) for response in lengths[1:]]


def _counted(model, length: int, *, backward: bool) -> int:
    """What torch counts for one row, without the rotary embedding's small product."""
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.arange(length)[None], use_cache=False).logits
        if backward:
            logits.sum().backward()
    rotary = sum(sum(counts.values()) for name, counts in counter.get_flop_counts().items() if "rotary_emb" in name)
    return counter.get_total_flops() - rotary


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "granite"])
@pytest.mark.parametrize("backward", [False, True])
def test_torch_counts_the_same(make_model, family, backward) -> None:
    model, length = make_model(family), 12
    shape = model_shape(model.config)
    # eager attention multiplies every query with every key and masks later
    visible = shape.heads * len(shape.windows) * length**2
    expected = forward_flops(shape, tokens=length, scored=length, visible=visible)
    assert _counted(model, length, backward=backward) == expected * (3 if backward else 1)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "qwen3", "phi3"])
def test_linear_parameters_are_those_of_the_layers(make_model, family) -> None:
    model = make_model(family)
    layers = model.get_decoder().layers
    linear = sum(m.weight.numel() for m in layers.modules() if isinstance(m, torch.nn.Linear))
    assert linear_parameters(model.config) == linear


def test_known_models() -> None:
    llama = SimpleNamespace(
        model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    # 8.03e9 parameters without embedding, head (2 x 128256 x 4096) and norms
    assert linear_parameters(llama) == 8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096
    llama.num_local_experts = 8
    with pytest.raises(ValueError, match="experts"):
        linear_parameters(llama)


def test_windows_follow_the_layers() -> None:
    assert model_shape(hf.LlamaConfig(num_hidden_layers=2)).windows == (None, None)
    assert model_shape(hf.MistralConfig(num_hidden_layers=2, sliding_window=8)).windows == (8, 8)
    types = ["full_attention", "sliding_attention"]
    qwen = {"num_hidden_layers": 2, "sliding_window": 8, "layer_types": types}
    assert model_shape(hf.Qwen3Config(**qwen, use_sliding_window=True)).windows == (None, 8)
    assert model_shape(hf.Qwen3Config(**qwen, use_sliding_window=False)).windows == (None, None)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_query_key_pairs_are_those_of_a_mask(lengths, window) -> None:
    lengths = PairLengths(*lengths)
    unshared, shared = 0, 0
    for number, position in enumerate(_rows(lengths)):
        distance = position[:, None] - position[None, :]
        mask = (distance >= 0) & (distance < (window or 1000))
        unshared += int(mask.sum())
        # the second row's prompt is computed with the first
        shared += int(mask[lengths.prompt if number else 0 :].sum())
    assert attention_pairs(lengths, shared=False, window=window) == unshared
    assert attention_pairs(lengths, shared=True, window=window) == shared
    if window is None:
        p, c, r = lengths
        assert shared == causal_pairs(p + c) + r * p + causal_pairs(r)


@pytest.mark.parametrize("shared", [False, True])
def test_a_step_is_the_sum_of_its_pairs(make_model, shared) -> None:
    shape = model_shape(make_model("llama").config)
    pairs = [PairLengths(*lengths) for lengths in LENGTHS]
    p, c, r = pairs[1]
    tokens = (p if shared else 2 * p) + c + r
    attention = 4 * len(shape.windows) * shape.heads * shape.head_size * attention_pairs(pairs[1], shared=shared)
    one = 3 * (2 * shape.linear * tokens + 2 * shape.hidden * shape.vocabulary * (c + r) + attention)
    assert training_flops(shape, pairs[1:2], shared=shared) == one
    assert training_flops(shape, pairs, shared=shared) == sum(
        training_flops(shape, [pair], shared=shared) for pair in pairs
    )


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("cpu", None),
    ],
)
def test_peaks_by_name(device, peak) -> None:
    assert peak_flops(device) == peak


def test_utilisation() -> None:
    assert utilisation(989e12, 2.0, "NVIDIA H200", devices=2) == pytest.approx(0.25)
    assert utilisation(1e12, 1.0, "cpu") is None
