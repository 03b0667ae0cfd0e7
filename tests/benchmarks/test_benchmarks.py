"""Every benchmark runs, writes what it promises, and compares like with like."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import plan, presets, scaling, throughput
from benchmarks.data import LENGTHS, PARTS, by_means, lengths_of, load_pairs, random_pairs, sample_lengths
from benchmarks.report import footer, slug
from benchmarks.sampling import UnbalancedSampler
from simpo.batching import Budget, StepSampler


def _written(folder: Path, name: str) -> Any:
    """The JSON, once it is clear that the picture is there and the environment is said."""
    assert (folder / f"{name}.png").stat().st_size > 10_000
    report = json.loads((folder / f"{name}.json").read_text())
    assert set(report["hardware"]) == {"cpu", "cores", "ram_gib", "gpus"}
    assert {"python", "torch", "transformers", "trl", "accelerate"} <= set(report["versions"])
    assert report["command"].startswith(f"python -m benchmarks.{name.split('_')[0]} ")
    assert report["hardware"]["cpu"] in footer(report) and report["command"] in footer(report)
    return report


def _environment_is_kept(monkeypatch) -> None:
    """What a benchmark sets for its own processes must not reach other tests."""
    for key in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "TRL_EXPERIMENTAL_SILENCE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)


@pytest.mark.slow
def test_throughput(tmp_path, monkeypatch, capsys) -> None:
    _environment_is_kept(monkeypatch)
    assert throughput.main(["--preset", "tiny", "--output", str(tmp_path)]) == 0
    report = _written(tmp_path, "throughput_cpu")
    (result,) = report["results"]
    assert [row["variant"] for row in result["rows"]] == [presets.TRL, *presets.VARIANTS]
    assert result["curves_agree"] and result["curve_difference"] < 1e-4
    peer, *_, product = result["rows"]
    for row in result["rows"]:
        assert row["pairs_per_second"] > 0 and row["peak_gib"] > 0 and row["mfu"] is None
    assert peer["speed_over_trl"] == peer["memory_over_trl"] == 1
    (runs,) = result["repeats"]
    tokens = [sum(run["step_tokens"][1:]) for run in runs]
    assert tokens[0] == tokens[1] > tokens[2] > tokens[3] == tokens[4] == tokens[5]
    assert runs[0]["step_flops"] == runs[1]["step_flops"] == runs[2]["step_flops"] > runs[3]["step_flops"]
    assert "largest difference between two loss curves" in capsys.readouterr().out
    first, *_, last = product["losses"]
    assert len(product["losses"]) == 3 and first != last


def test_curves_that_differ_are_seen() -> None:
    run = {"losses": [1.0, 2.0]}
    assert throughput.curve_difference([[run, {"error": "no memory"}], [run, {"losses": [1.0, 2.5]}]]) == 0.5


def test_ratios_are_formed_within_a_repeat() -> None:
    def run(variant, seconds, peak):
        return {"variant": variant, "pairs_per_step": 4, "step_seconds": [9.0, *seconds], "step_tokens": [1, 8, 8],
                "step_flops": [1, 10, 10], "peak_bytes": peak, "losses": [1.0], "device": "NVIDIA A100"}  # fmt: skip

    repeats = [[run("a", [2, 2], 100), run("b", [1, 1], 50)], [run("a", [20, 20], 100), run("b", [5, 5], 25)]]
    rows = throughput.summarize(repeats)
    assert rows[1]["speed_over_trl"] == 3.0 and rows[1]["memory_over_trl"] == 0.375
    assert rows[1]["pairs_per_second"] == pytest.approx((4 + 0.8) / 2)
    assert rows[1]["tokens_per_second"] == pytest.approx((8 + 1.6) / 2)
    assert rows[1]["mfu"] == pytest.approx((10 + 2) / 2 / 312e12)


@pytest.mark.slow
def test_scaling(tmp_path, monkeypatch) -> None:
    _environment_is_kept(monkeypatch)
    axes = ["tokens", "share"]
    assert scaling.main(["--preset", "tiny", "--axes", *axes, "--output", str(tmp_path)]) == 0
    report = _written(tmp_path, "scaling_cpu")
    assert list(report["results"]) == axes
    tokens, share = report["results"]["tokens"], report["results"]["share"]
    assert [point["x"] for point in tokens["points"]] == [64, 128, 256]
    assert {"exponent", "bytes_per_token", "intercept_gib", "memory_r2"} <= set(tokens)
    assert [gain["tokens"] for gain in share["sharing"]] == [1.25, 1.75]


def test_fits() -> None:
    points = [{"x": x, "seconds_per_step": 3 * x**1.5, "peak_gib": 2 + x / 4} for x in (1, 2, 8)]
    assert scaling.exponent(points) == pytest.approx(1.5)
    assert scaling.straight_line(points) == pytest.approx((0.25, 2, 1))


@pytest.mark.parametrize("axis", scaling.AXES)
def test_points_of_an_axis(axis) -> None:
    scale = scaling.SCALES["tiny"]
    points = list(scaling.jobs(scale, axis))
    assert [point["x"] for point, _ in points] == sorted(point["x"] for point, _ in points)
    for point, job in points:
        assert len(job.pairs) == 2 * point["pairs_per_step"] == 2 * job.pairs_per_step
        assert {tuple(row) for row in lengths_of(job.pairs).tolist()} == {tuple(point["lengths"])}


def test_plan(tmp_path) -> None:
    flags = ["--pairs", "256", "--ranks", "1", "8", "64", "--pairs-per-step", "64", "128", "--data", "ultrafeedback"]
    assert plan.main([*flags, "--output", str(tmp_path)]) == 0
    report = _written(tmp_path, "plan_cpu")
    rows = report["results"]["ultrafeedback"]["rows"]
    assert [(row["pairs_per_step"], row["ranks"]) for row in rows] == [(s, r) for s in (64, 128) for r in (1, 8, 64)]
    for row in rows:
        assert 1 <= row["imbalance_bound"] <= row["imbalance_balanced"] <= row["imbalance_random"] + 1e-9
        factor = row["time_factor"]
        assert factor["balanced, shared"] < factor["balanced"] <= factor["unpadded"] <= factor["padded"]
        assert factor["padded, grouped"] <= factor["padded"]


def test_plan_by_hand() -> None:
    """Two ranks, one step of four pairs, two in a micro-batch; ids are drawn in the order 0 to 3 or any other."""
    lengths = np.array([[2, 4, 4]] * 3 + [[2, 34, 4]])
    row = plan.study(lengths, pairs_per_step=4, ranks=2, pairs_per_micro_batch=2)
    # the long pair's 40 tokens exceed half of the 70
    assert row["imbalance_bound"] == pytest.approx(80 / 70)
    assert row["imbalance_balanced"] == pytest.approx(80 / 70)
    assert row["imbalance_random"] == pytest.approx(2 * 50 / 70)
    ideal = 3 * 12 + 42
    assert row["time_factor"]["padded"] == pytest.approx(2 * (2 * 2 * 36) / ideal)
    assert row["time_factor"]["unpadded"] == pytest.approx(2 * (12 + 42) / ideal)
    assert row["time_factor"]["balanced, shared"] == pytest.approx(80 / ideal)


@pytest.mark.parametrize(("pairs", "ranks"), [(8, 1), (7, 2), (3, 4)])
def test_unbalanced_steps_hold_every_pair_once_in_order(pairs, ranks) -> None:
    sampler = UnbalancedSampler(list(range(pairs)), pairs_per_step=pairs, budget=Budget(2), world_size=ranks)
    (step,) = sampler.plans()
    together = [m for micro_step in zip(*step, strict=True) for m in micro_step]
    assert [row for m in together for row in m.pairs[: len(m.pairs) - m.fillers]] == list(range(pairs))
    (balanced,) = StepSampler([1] * pairs, pairs_per_step=pairs, budget=Budget(2), world_size=ranks).plans()
    assert [len(rank) for rank in step] == [len(rank) for rank in balanced]


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_follow_their_model(name) -> None:
    model = LENGTHS[name]
    lengths = sample_lengths(model, 20_000, max_length=100_000)
    logs = np.log(lengths)
    assert logs.mean(axis=0) == pytest.approx(model.log_mean, abs=0.03)
    assert logs.std(axis=0) == pytest.approx(model.log_std, abs=0.03)
    assert np.corrcoef(logs.T)[[0, 0, 1], [1, 2, 2]] == pytest.approx(model.correlation, abs=0.03)


def test_means_are_kept() -> None:
    lengths = sample_lengths(by_means((172, 331, 312), 0.7), 50_000, max_length=100_000)
    assert lengths.mean(axis=0) == pytest.approx((172, 331, 312), rel=0.02)


@pytest.mark.parametrize("name", LENGTHS)
def test_pairs_fit_and_repeat(name) -> None:
    pairs = load_pairs(name, 50, max_length=64, vocabulary=4096, seed=3)
    assert pairs == load_pairs(name, 50, max_length=64, vocabulary=4096, seed=3)
    lengths = lengths_of(pairs)
    assert lengths.shape == (50, 3) and lengths.min() >= 1
    assert (lengths[:, 0] + lengths[:, 1:].max(axis=1)).max() <= 64
    assert max(max(pair[part]) for pair in pairs for part in PARTS) < 4096


def test_random_pairs_have_the_lengths_asked_for() -> None:
    lengths = np.array([[3, 1, 2], [1, 5, 1]])
    pairs = random_pairs(lengths, vocabulary=20)
    assert lengths_of(pairs).tolist() == lengths.tolist()
    assert all(12 <= token < 20 for pair in pairs for part in PARTS for token in pair[part])


def test_slug() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
