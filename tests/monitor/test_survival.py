"""A monitor that fails does not take a sound run with it."""

import json

import pytest

from simpo.monitor import callback
from tests.monitor.conftest import preference_pairs

TRAIN, HELD_OUT = preference_pairs(16), preference_pairs(8, seed=99)
SHORT = {"total_train_batch_size": 8, "monitor_pairs": 4, "monitor_prompts": 2}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 1}


def looks(trainer) -> list[int]:
    return [entry["step"] for entry in trainer.state.log_history if "monitor/logps/chosen" in entry]


def test_a_model_that_cannot_generate(make_trainer, warnings_of, tmp_path) -> None:
    trainer = make_trainer(TRAIN, HELD_OUT, **SHORT, **EVALUATES)
    tried = []

    def generate(*_, **__):
        tried.append(1)
        raise NotImplementedError("no cache for this kind of layer")

    trainer.model.generate = generate
    trainer.train()
    assert looks(trainer) == [0, 1, 2] and len(tried) == 1
    assert warnings_of() == {"no_generations": "note"}
    (row,) = map(json.loads, (tmp_path / "out" / "monitor" / "warnings.jsonl").read_text().splitlines())
    assert "no cache for this kind of layer" in row["text"]


def test_files_that_cannot_be_written(make_trainer, tmp_path, caplog) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "monitor").write_text("in the way")
    trainer = make_trainer(TRAIN, HELD_OUT, **SHORT, **EVALUATES)
    trainer.train()
    assert looks(trainer) == [0, 1, 2]
    said = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert len(said) == 1 and str(tmp_path / "out" / "monitor") in said[0]


def test_files_of_others_stay(make_trainer, tmp_path) -> None:
    (tmp_path / "out" / "monitor").mkdir(parents=True)
    for name in ("notes.txt", "probe-of-mine.parquet", "probe-000099.parquet", "warnings.jsonl"):
        (tmp_path / "out" / "monitor" / name).write_text("?")
    make_trainer(TRAIN, HELD_OUT, max_steps=1, **SHORT).train()
    names = {path.name for path in (tmp_path / "out" / "monitor").iterdir()}
    assert {"notes.txt", "probe-of-mine.parquet", "probe-000001.parquet"} <= names
    assert not names & {"probe-000099.parquet", "warnings.jsonl"}


def test_a_tracker_that_fails(make_trainer, monkeypatch, caplog) -> None:
    def log_table(*_) -> None:
        raise RuntimeError("call init() before log()")

    monkeypatch.setattr(callback, "log_table", log_table)
    trainer = make_trainer(TRAIN, HELD_OUT, **SHORT, **EVALUATES)
    trainer.train()
    assert looks(trainer) == [0, 1, 2]
    assert "call init() before log()" in caplog.text


def test_an_evaluation_set_that_came_later(make_trainer, warnings_of) -> None:
    """It is tokenised for each evaluation only; the monitors follow what there are tokens of."""
    from datasets import Dataset

    trainer = make_trainer(TRAIN, HELD_OUT, max_steps=1, **SHORT)
    trainer.eval_dataset = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer.train()
    assert looks(trainer) == [0, 1] and warnings_of() == {"no_held_out_pairs": "note"}


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_the_last_look_is_at_the_last_step(make_trainer, strategy) -> None:
    """Before the best model is loaded in place of the last one."""
    options = {"eval_strategy": strategy, "save_strategy": strategy, "load_best_model_at_end": True,
               "metric_for_best_model": "logps/rejected", "greater_is_better": True}  # fmt: skip
    steps = {"eval_steps": 2, "save_steps": 2, "max_steps": 3} if strategy == "steps" else {"num_train_epochs": 2}
    trainer = make_trainer(TRAIN, HELD_OUT, **options, **steps, **SHORT, learning_rate=3e-3)
    trainer.train()  # rejected responses fall, so the first checkpoint is the best
    last = {entry["step"]: entry["monitor/logps/rejected"] for entry in trainer.state.log_history
            if "monitor/logps/rejected" in entry}  # fmt: skip
    steps = sorted(last)
    assert steps[-1] == trainer.state.max_steps
    assert abs(last[steps[-1]] - last[steps[-2]]) > 1e-3


def test_a_single_held_out_pair(make_trainer) -> None:
    trainer = make_trainer(TRAIN, HELD_OUT[:1], **SHORT, **EVALUATES)
    trainer.train()
    assert looks(trainer) == [0, 1, 2]
