"""A step without data holds what a real one does: the bytes that torch's own allocator reports."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.planning import peak_of_trace
from simpo.flops import PairLengths
from simpo.forward import install_packed_forward
from simpo.model import add_adapter, disable_dropout
from simpo.planning.changes import lora
from simpo.planning.rehearsal import LiveBytes, Step, _pack, _rehearse, enable_checkpointing, rehearse
from simpo.scoring import pack_logps
from tests.planning.models import small

PAIRS = (PairLengths(24, 40, 32),) * 2
BF16 = {"autocast": torch.bfloat16}


def measured(step: Step, folder: Path) -> int:
    """Most bytes beside the weights in forward and backward, from torch's profiler."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(step.config, dtype=step.weights)
    install_packed_forward(model, "sdpa")
    if step.checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            enable_checkpointing(model)
    if step.adapter is not None:
        model = add_adapter(model, step.adapter)
    disable_dropout(model.train())
    pack = _pack(step)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(2 if step.accumulated else 1):
            with torch.autocast("cpu", dtype=step.autocast, enabled=step.autocast is not None):
                chosen, rejected = pack_logps(model, pack)
                loss = (chosen - rejected).sum()
            loss.backward()
            del chosen, rejected, loss
    profile.export_chrome_trace(str(folder / "trace.json"))
    return peak_of_trace(json.loads((folder / "trace.json").read_text()))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"accumulated": True, "shared": False}),
        ("llama", {"checkpointing": True}),
        ("llama", {**BF16, "checkpointing": True, "accumulated": True}),
        ("llama", {**BF16, "weights": torch.bfloat16, "adapter": lora(4)}),
        ("llama", {**BF16, "weights": torch.bfloat16, "adapter": lora(4), "checkpointing": True}),
        ("gemma2", BF16),
        ("qwen3", {"checkpointing": True, "pairs": PAIRS * 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_predicted_is_measured(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    step = Step(small(family), **{"pairs": PAIRS, **options})
    predicted = max(phase.peak for phase in rehearse(step).values())
    assert predicted == pytest.approx(measured(step, tmp_path), rel=0.03)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("options", [{}, {**BF16, "checkpointing": True, "cuda": True}], ids=["cpu", "cuda"])
def test_a_few_layers_stand_for_all(family: str, options: dict[str, Any]) -> None:
    step = Step(small(family), PAIRS, **options)
    few, whole = rehearse(step), _rehearse(step, 6)
    for name, phase in few.items():
        assert phase == pytest.approx(whole[name], rel=1e-3), name


def test_gradients_that_leave_are_not_held() -> None:
    kept, sharded = (rehearse(Step(small(), PAIRS, sharded=on)) for on in (False, True))
    assert kept["first layer"].gradients > 0 and sharded["first layer"].gradients == 0
    assert kept["first layer"].start - sharded["first layer"].start == pytest.approx(kept["first layer"].gradients)


def test_a_flash_kernel_keeps_no_square_of_tokens() -> None:
    def activations(pairs: tuple[PairLengths, ...]) -> float:
        return rehearse(Step(small(), pairs, cuda=True, **BF16))["head"].start

    one, two, long = (activations(pairs) for pairs in (
        (PairLengths(0 + 200, 400, 400),), (PairLengths(200, 400, 400),) * 2, (PairLengths(400, 800, 800),)
    ))  # fmt: skip
    assert two == pytest.approx(long, rel=0.01) and two > 1.5 * one


def test_live_bytes_counts_storages_once_and_lets_them_go() -> None:
    given = torch.zeros(100)
    live = LiveBytes([given])
    with live:
        view = given[:10]
        made = given + 1
        part = made[5:]
        assert live.live == 400
        del made
        assert live.live == 400  # the view holds it
        del part, view
        assert live.live == 0 and live.peak == 400
        torch.zeros(1000)
        assert live.live == 0 and live.peak == 4000
