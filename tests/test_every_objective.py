"""Every objective on the same path: packed against padded rows, one trajectory for every cut and engine."""

import copy
import json
import sys

import pytest
import torch

from simpo.forward import install_packed_forward
from simpo.losses import PairLogps
from simpo.objectives import OBJECTIVES
from tests import launching
from tests.padded import packed_sums, padded_sums

WORKER = launching.WORKERS / "objectives.py"
LENGTHS = [(20, 7, 12), (1, 3, 30), (11, 15, 1)]


def _losses(model, sums, pairs, objective):
    """[B] losses and the gradient of their mean; the reference lies at random distances from the policy."""
    chosen, rejected = sums.view(-1, 2).unbind(1)
    lengths = [torch.tensor([len(pair[key]) for pair in pairs]) for key in ("chosen_ids", "rejected_ids")]
    noise = torch.randn(2, len(pairs), generator=torch.Generator().manual_seed(1))
    anchor = torch.tensor([[-5.0], [-5.0]]) * torch.stack(lengths) + noise
    logps = PairLogps(chosen, rejected, *lengths, anchor[0], anchor[1], torch.tensor(0.4))
    losses = OBJECTIVES[objective].bind({})(logps).losses
    model.zero_grad()
    losses.mean().backward()
    return losses.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_packed_equals_padded(make_model, make_pairs, objective, shared) -> None:
    plain = make_model("llama")
    packed = install_packed_forward(copy.deepcopy(plain))
    pairs = make_pairs(LENGTHS)
    ours, our_gradients = _losses(packed, packed_sums(packed, pairs, shared), pairs, objective)
    theirs, their_gradients = _losses(plain, padded_sums(plain, pairs), pairs, objective)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    scale = max(gradient.abs().max().item() for gradient in their_gradients.values())
    assert scale > 1e-4
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient / scale, their_gradients[name] / scale, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict:
    """One process, the whole step in one pack."""
    out = tmp_path_factory.mktemp("objectives") / "out.json"
    launching.run([sys.executable, str(WORKER), str(out), "per_device_train_batch_size=8"])
    report = json.loads(out.read_text())
    assert report["engine"] == "plain x 1"
    return report


def _assert_same(out, engine, reference) -> None:
    report = json.loads(out.read_text())
    assert report.pop("engine") == engine
    assert set(report) == set(OBJECTIVES)
    for objective, run in report.items():
        logs = reference[objective]["logs"]
        assert len(run["logs"]) == len(logs) == 8  # 6 steps, and an evaluation before and after
        if OBJECTIVES[objective].reference:
            assert "log_ratios/chosen" in logs[2]
        if OBJECTIVES[objective].kl:
            assert max(entry.get("kl", 0.0) for entry in logs) > 1e-4
        for ours, theirs in zip(run["logs"], logs, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-4), objective


@pytest.mark.multiprocess
def test_one_process_unshared(tmp_path, reference) -> None:
    out = tmp_path / "out.json"
    launching.run([sys.executable, str(WORKER), str(out), "per_device_train_batch_size=1", "prefix_sharing=false"])
    _assert_same(out, "plain x 1", reference)


@pytest.mark.multiprocess
def test_ddp(tmp_path, reference) -> None:
    out = tmp_path / "out.json"
    launching.torchrun(WORKER, str(out), "per_device_train_batch_size=2")
    _assert_same(out, "DDP x 2", reference)


@pytest.mark.multiprocess
def test_zero3(tmp_path, reference) -> None:
    out = tmp_path / "out.json"
    launching.deepspeed(3, tmp_path, WORKER, str(out), "per_device_train_batch_size=2")
    _assert_same(out, "DeepSpeedEngine stage 3 x 2", reference)
