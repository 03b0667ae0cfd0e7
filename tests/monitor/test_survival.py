"""A monitor that fails does not take a sound run with it."""

import json

import pytest
from transformers import TrainerCallback

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


class StopAt(TrainerCallback):
    """Ends the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_) -> None:
        """Called by transformers."""
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(("best", "expected"), [(True, [0, 2]), (False, [0, 2, 3])])
def test_the_best_model_is_not_taken_for_the_last(make_trainer, best, expected) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    trainer = make_trainer(TRAIN, HELD_OUT, load_best_model_at_end=best, **options, **SHORT)
    trainer.add_callback(StopAt(3))
    trainer.train()
    assert looks(trainer) == expected


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_looks_when_a_whole_one_does(make_trainer, tmp_path, step) -> None:
    """Not once more at the step that it goes on from, where the run before it had looked already."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(TRAIN, HELD_OUT, **options, **SHORT)
    whole.train()
    resumed = make_trainer(TRAIN, HELD_OUT, **options, **SHORT)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
    assert looks(resumed) == looks(whole) == [0, 2, 4]


def test_a_single_held_out_pair(make_trainer) -> None:
    trainer = make_trainer(TRAIN, HELD_OUT[:1], **SHORT, **EVALUATES)
    trainer.train()
    assert looks(trainer) == [0, 1, 2]
