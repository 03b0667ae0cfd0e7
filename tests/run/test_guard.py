"""Guard rails in a run: what the plan shows, what --strict stops, and lengths as they are measured."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from simpo import cli
from simpo.audit.inspect import check_sample
from simpo.data.load import load_mix
from simpo.errors import DataError
from simpo.model import load_tokenizer
from simpo.run import run_training
from simpo.settings import read_settings


@pytest.fixture
def config(golden: Any, tiny_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """config(**settings) -> path of a YAML of a run whose weights must not be read."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("simpo.run.train.PreferenceTrainer", read)
    for name, copies in (("train", 3), ("test", 1)):
        rows = [json.dumps(row).replace("?", f" ({n})?") for n in range(copies) for row in golden["rows"]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")

    def make(**settings: Any) -> str:
        values = {
            "model_name_or_path": tiny_dir, "output_dir": str(tmp_path / "out"), "use_cpu": True, "bf16": False,
            "dataset_mixer": {str(tmp_path / "train.jsonl"): 1.0}, "max_length": 512, "max_prompt_length": 400,
            "eval_dataset_mixer": {str(tmp_path / "test.jsonl"): 1.0}, "total_train_batch_size": 8,
        }  # fmt: skip
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | settings))
        return str(path)

    return make


def test_the_plan_shows_what_is_known(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_training(read_settings(config(beta=0.1, gamma_beta_ratio=5.0)), dry_run=True)
    printed = capsys.readouterr().out
    assert "  ! beta: 0.1 (recommended 2 to 10)\n" in printed and "    total_train_batch_size: 8 (" in printed
    shown = printed.partition("\nGuard rails\n")[2]
    assert re.search(r"^  ! beta_low: 0\.1 .*\n      write beta: 2\.0   \(SimPO repository", shown, re.MULTILINE)
    assert "  ! gamma_beta_ratio_high: the loss asks for answers that differ by 5 nats" in shown
    assert "  - small_model: tiny has about 35" in shown
    run_training(read_settings(config(total_train_batch_size=128, eval_dataset_mixer=None)), dry_run=True)
    shown = capsys.readouterr().out.partition("\nGuard rails\n")[2].partition("\n!")[0]  # "!" alone: of the data
    assert shown.startswith("  - ") and "  - no_evaluation" in shown and "  ! " not in shown


def test_strict_stops_before_weights_are_read(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(beta=0.1, gamma_beta_ratio=5.0)
    assert cli.main(["train", path, "--strict", "--no-audit"]) == 2
    said = capsys.readouterr().err
    assert (
        "the settings raise 2\n" in said
        and "write beta: 2.0 (SimPO repository" in said
        and "write gamma_beta_ratio: 0.5" in said
    )
    assert cli.main(["train", path, "--strict", "--dry-run", "--no-audit"]) == 2
    assert cli.main(["train", path, "--dry-run"]) == 0
    with pytest.raises(AssertionError, match="weights were read"):
        run_training(read_settings(config()), strict=True, audit=False)  # notes do not stop


def test_strict_counts_warnings_about_data(config: Any) -> None:
    settings = read_settings(config())
    run_training(settings, dry_run=True)  # some of its pairs stand twice
    with pytest.raises(DataError, match=r"duplicate_pairs \(train\).*--strict counts warnings as errors") as caught:
        run_training(settings, dry_run=True, strict=True)
    assert "the settings raise" not in str(caught.value)


def test_strict_tells_of_data_and_settings_together(config: Any) -> None:
    settings = read_settings(config(beta=0.1))
    with pytest.raises(DataError, match=r"(?s)duplicate_pairs \(train\).*\n.*the settings raise 1\n  beta_low: 0\.1"):
        run_training(settings, dry_run=True, strict=True)


def test_errors_of_data_stop_without_strict_too(config: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "So." if n % 4 else "No."} for n in range(16)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for strict in (False, True):
        with pytest.raises(DataError, match=r"dropped \(train\)") as caught:
            run_training(read_settings(config(beta=0.1)), dry_run=True, strict=strict)
        assert ("the settings raise 1" in str(caught.value)) == strict


@pytest.mark.parametrize("truncation", ["cut", "drop"])
def test_lengths_are_those_before_anything_is_cut(config: Any, tiny_dir: str, truncation: str) -> None:
    def lengths(**settings: Any) -> Any:
        run = read_settings(config(**settings))
        train, evaluation, _ = load_mix(run.data, seed=0)
        tokenizer = load_tokenizer(tiny_dir)
        found = check_sample(train, evaluation, tokenizer, tokenizer.chat_template, run.training).lengths
        assert run.training.max_length == settings["max_length"]
        return found

    whole = lengths(max_length=2000)
    bound = int(np.percentile(whole, 60))
    cut = lengths(max_length=bound, max_prompt_length=bound // 2, truncation=truncation)
    assert len(whole) == 24 and cut.tolist() == whole.tolist() and whole.max() > bound


def test_pairs_that_are_equal_once_cut_count_as_long(config: Any, tiny_dir: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"{'yes ' * n}one", "rejected": f"{'yes ' * n}two"}
        for n in (1, 2, 3, 300, 400)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_settings(config(max_length=100, max_prompt_length=50))
    train, _, _ = load_mix(run.data, seed=0)
    tokenizer = load_tokenizer(tiny_dir)
    found = check_sample(train, None, tokenizer, tokenizer.chat_template, run.training).lengths
    assert found is not None and len(found) == 5 and (found > 100).sum() == 2


def test_too_short_a_max_length_is_told_with_one_that_does(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bound = {"max_length": 100, "max_prompt_length": 20}
    run_training(read_settings(config(**bound)), dry_run=True)
    (line,) = re.findall(r"write (max_length: \d+)", capsys.readouterr().out)
    run_training(read_settings(config(**bound | yaml.safe_load(line))), dry_run=True)
    assert "max_length_cuts" not in capsys.readouterr().out
