"""Pairs under a model: packs against padded rows and the trainer, statistics against their definitions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from simpo.errors import ConfigError, DataError, ModelError
from simpo.estimates import share
from simpo.evals.pairs.intervals import Spearman, bootstrap
from simpo.evals.pairs.measure import ScoredPairs, pair_statistics, run_pairs
from simpo.evals.pairs.packed_scores import load_scored_model, score_pairs
from simpo.evals.pairs.settings import PairsSettings
from simpo.evals.results import read_result
from simpo.forward import install_packed_forward
from tests.launching import WORKERS, torchrun
from tests.padded import padded_sums

CPU = torch.device("cpu")


@pytest.fixture
def pairs_file(golden, tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in golden["rows"]))
    return str(path)


@pytest.fixture
def make_settings(tiny_dir, pairs_file, tmp_path: Path) -> Any:
    def make(**settings: Any) -> PairsSettings:
        given = {"model_name_or_path": tiny_dir, "dataset_name": pairs_file, "output_dir": str(tmp_path / "out")}
        return PairsSettings(**given | {"use_cpu": True} | settings)

    return make


# Log-probs


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_equal_to_padded_rows(make_model, make_pairs, family: str, max_tokens: int) -> None:
    """Whatever the bound of a pack and the order of lengths."""
    pairs = make_pairs([(9, 4, 12), (3, 20, 2), (12, 1, 1), (5, 7, 7), (30, 15, 3)])
    with torch.no_grad():
        plain = padded_sums(make_model(family), pairs).view(-1, 2).numpy()
    model = install_packed_forward(make_model(family), "auto")
    found = score_pairs(model, Dataset.from_list(pairs), Accelerator(cpu=True), max_tokens=max_tokens, max_length=64)
    for at, side in enumerate(("chosen", "rejected")):
        lengths = np.array([len(pair[f"{side}_ids"]) for pair in pairs])
        np.testing.assert_allclose(found[side] / lengths, plain[:, at] / lengths, rtol=0, atol=1e-5)


def test_equal_to_the_trainers_evaluation(make_args, make_settings, tiny_dir, tiny_tokenizer, rows) -> None:
    from simpo import SimPOTrainer

    args = make_args(beta=2.5, max_length=300, max_prompt_length=200, per_device_eval_batch_size=3)
    trainer = SimPOTrainer(tiny_dir, args, eval_dataset=rows, processing_class=tiny_tokenizer)
    expected = trainer.evaluate()
    found = run_pairs(make_settings(beta=2.5, max_length=300, max_prompt_length=200)).metrics
    for name, key, factor in (
        ("reward_accuracy", "rewards/accuracies", 100), ("reward_margin", "rewards/margins", 1),
        ("chosen_logps", "logps/chosen", 1), ("rejected_logps", "logps/rejected", 1),
    ):  # fmt: skip
        assert found[name].value == pytest.approx(factor * expected[f"eval_{key}"], abs=1e-5), name


def test_an_adapter_is_loaded_around_its_base(tiny_dir, make_settings, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_dir)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(tmp_path / "merged")
    adapter, merged, plain = (
        run_pairs(make_settings(model_name_or_path=str(name))).metrics["chosen_logps"].value
        for name in (tmp_path / "adapter", tmp_path / "merged", tiny_dir)
    )
    assert adapter == pytest.approx(merged, abs=1e-5) and abs(adapter - plain) > 1e-3


def test_log_probs_that_are_no_numbers(make_model, make_pairs) -> None:
    model = install_packed_forward(make_model("llama"), "auto")
    accelerator = Accelerator(cpu=True)
    pairs = Dataset.from_list([{"prompt_ids": [199], "chosen_ids": [5], "rejected_ids": [6]}])
    score_pairs(model, pairs, accelerator, max_tokens=99, max_length=9)
    with torch.no_grad():
        model.get_input_embeddings().weight[199] = torch.nan  # a token that the check of packs does not draw
    with pytest.raises(ModelError, match=r"pair 0 are not finite.*dtype"):
        score_pairs(model, pairs, accelerator, max_tokens=99, max_length=9)


@pytest.mark.multiprocess
def test_two_processes_agree_with_one(make_settings, pairs_file, tiny_dir, tmp_path: Path) -> None:
    alone = run_pairs(make_settings())
    torchrun(WORKERS / "pairs.py", tiny_dir, pairs_file, str(tmp_path / "two"))
    both = read_result(tmp_path / "two")
    assert both.counts == alone.counts
    for name, metric in alone.metrics.items():
        assert both.metrics[name].value == pytest.approx(metric.value, abs=1e-6)
    one, two = (pq.read_table(tmp_path / name / "pairs.parquet") for name in ("out", "two"))
    assert one["row"] == two["row"]
    np.testing.assert_allclose(one["chosen"].to_numpy(), two["chosen"].to_numpy(), atol=1e-3)


# Rows and settings


def test_what_is_written(make_settings, pairs_file, rows, tmp_path: Path) -> None:
    result = run_pairs(make_settings(max_samples=5, seed=1, name="tiny", beta=10.0))
    assert read_result(tmp_path / "out") == result
    assert result.model == "tiny" and result.counts["pairs"] == 5 and result.settings["beta"] == 10.0
    table = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pydict()
    assert set(table["source"]) == {pairs_file} and len(set(table["row"])) == 5 <= len(rows)
    np.testing.assert_allclose(
        table["chosen_rewards"], 10 * np.array(table["chosen"]) / np.array(table["chosen_lengths"])
    )
    whole = run_pairs(make_settings())
    assert whole.counts["pairs"] == len(rows)


def test_rows_are_those_of_their_source(make_settings, pairs_file, golden, tiny_tokenizer, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    shutil.copy(pairs_file, other)
    run_pairs(make_settings(dataset_name=None, dataset_mixer={pairs_file: 3, str(other): 1.0}))
    table = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert [row["source"] for row in table] == [pairs_file] * 3 + [str(other)] * len(golden["rows"])
    lengths = {row["row"]: row["chosen_lengths"] for row in table[3:]}
    assert all(lengths[row["row"]] == row["chosen_lengths"] for row in table[:3])


def test_the_manifest_says_how_pairs_are_read(make_settings, tiny_dir, tmp_path: Path) -> None:
    model = tmp_path / "run" / "checkpoint-3"
    shutil.copytree(tiny_dir, model)
    told = {"objective": "simpo", "beta": 7.5, "tokenization": "paper", "max_length": 300, "max_prompt_length": 200}
    manifest = tmp_path / "run" / "run_manifest.json"
    manifest.write_text(json.dumps({"settings": told}))
    found = make_settings(model_name_or_path=str(model)).resolve()
    told.pop("objective")
    assert found == told | {"add_empty_system": False, "truncation": "cut"}
    assert make_settings(model_name_or_path=str(model), beta=1.0, tokenization="standard").resolve()["beta"] == 1.0
    manifest.write_text(json.dumps({"settings": {**told, "objective": "dpo", "beta": 0.01}}))
    assert make_settings(model_name_or_path=str(model)).resolve()["beta"] == 2.0  # 0.01 scales another reward
    manifest.write_text("{}")
    with pytest.raises(ModelError, match=r"run_manifest\.json: cannot be read"):
        make_settings(model_name_or_path=str(model)).resolve()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset_name": None}, "dataset_name: is missing"),
        ({"model_name_or_path": ""}, "model_name_or_path: must not be empty"),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch: 0 must be at least 1"),
        ({"beta": 0}, "beta: 0 must be above 0"),
        ({"dataset_splits": []}, "dataset_splits is empty"),
    ],
)
def test_wrong_settings(make_settings, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings(**wrong)


def test_wrong_data_and_models(make_settings, tmp_path: Path, golden) -> None:
    with pytest.raises(ConfigError, match="max_prompt_length: 512 must be below max_length: 100"):
        run_pairs(make_settings(max_length=100))
    with pytest.raises(DataError, match="no such file or directory"):
        run_pairs(make_settings(dataset_name=str(tmp_path / "none.jsonl")))
    with pytest.raises(ModelError, match="no such directory"):
        run_pairs(make_settings(model_name_or_path=str(tmp_path / "none")))
    empty = tmp_path / "ids.jsonl"
    halves = [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": rejected} for rejected in ([], [3])]
    empty.write_text("".join(json.dumps(row) + "\n" for row in halves))
    with pytest.raises(DataError, match="row 0: rejected_ids is empty"):
        run_pairs(make_settings(dataset_name=str(empty)))
    with pytest.raises(ConfigError, match="holds splits to train on and to evaluate on"):
        run_pairs(make_settings(dataset_splits=["train_prefs", "test_prefs"]))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match=r"output_dir: .* cannot be made"):
        run_pairs(make_settings(output_dir=str(blocked / "out")))


def test_splits(make_settings, rows, tmp_path: Path) -> None:
    from datasets import DatasetDict

    folder = tmp_path / "set"
    parts = {"train_prefs": rows.select(range(4)), "test": rows.select([4, 5]), "test_prefs": rows.select([6])}
    DatasetDict(parts).save_to_disk(str(folder))
    for splits, count in ((None, 2), (["test_prefs"], 1), (["train_prefs"], 4), (["test", "test_prefs"], 3)):
        settings = make_settings(dataset_name=str(folder), dataset_splits=splits)
        assert run_pairs(settings).counts["pairs"] == count


def test_no_parameter_is_trained(tiny_dir) -> None:
    model = load_scored_model(tiny_dir, dtype=torch.float32, device=CPU)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


# Statistics


def scored(chosen: Any, rejected: Any, chosen_lengths: Any, rejected_lengths: Any) -> ScoredPairs:
    lengths = np.asarray(chosen_lengths), np.asarray(rejected_lengths)
    count = len(lengths[0])
    return ScoredPairs(["x"] * count, np.arange(count), np.ones(count, int), *lengths, np.asarray(chosen, float),
                       np.asarray(rejected, float))  # fmt: skip


def test_definitions() -> None:
    """Two pairs that the two orders see differently, and a tie, which is no success."""
    metrics = pair_statistics(scored([-4, -3, -2], [-3, -4, -2], [4, 1, 2], [1, 4, 2]), beta=2.0)
    assert metrics["reward_accuracy"].value == pytest.approx(100 / 3)  # -1 > -3, -3 < -1, -1 = -1
    assert metrics["sum_likelihood_accuracy"].value == pytest.approx(100 / 3)  # -4 < -3, -3 > -4
    assert metrics["reward_margin"].value == pytest.approx((4 - 4 + 0) / 3)
    assert metrics["chosen_logps"].value == pytest.approx(-5 / 3)
    third = share(1, 3)
    low, high = third.low, third.high
    assert (metrics["reward_accuracy"].low, metrics["reward_accuracy"].high) == (100 * low, 100 * high)
    assert metrics["length_correlation"].value == pytest.approx(np.corrcoef(
        ranks([-1, -3, -1, -3, -1, -1]), ranks([4, 1, 2, 1, 4, 2]))[0, 1])  # fmt: skip


def ranks(values: Any) -> np.ndarray:
    values = np.asarray(values)
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


def test_weighted_spearman_is_that_of_repeated_values() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 9, 40).astype(float), generator.normal(size=40)
    spearman = Spearman(first, second)
    for _ in range(20):
        weights = generator.integers(0, 4, 40)
        one, two = (np.repeat(values, weights) for values in (first, second))
        assert spearman(weights.astype(float)) == pytest.approx(np.corrcoef(ranks(one), ranks(two))[0, 1])
    assert np.isnan(Spearman(np.ones(3), np.arange(3.0))(np.ones(3)))


def test_a_constant_length_has_no_correlation() -> None:
    metrics = pair_statistics(scored([-4, -3], [-3, -4], [2, 2], [2, 2]), beta=2.0)
    assert "length_correlation" not in metrics


def test_the_bootstrap_covers() -> None:
    """A mean's interval holds the truth about 95 times of 100, and is that of the normal law."""
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        values = generator.normal(3.0, 2.0, 150)
        ((low, high),) = bootstrap([lambda w, x=values: float(w @ x) / 150], 150, resamples=200, seed=seed)
        held += low <= 3.0 <= high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(150), rel=0.25)
    assert 180 <= held <= 198
    assert (
        bootstrap([lambda w: float(w[0])], 3, seed=5).tolist() == bootstrap([lambda w: float(w[0])], 3, seed=5).tolist()
    )
