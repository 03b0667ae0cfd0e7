"""log.jsonl: a line per log entry, readable at once; an attempt that goes on drops what it will log again."""

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from simpo.run.folder import find_checkpoint
from simpo.run.logfile import LogFile


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def log(args: TrainingArguments, step: int, *, first: bool = True, **logs: float) -> None:
    state = TrainerState(global_step=step, is_world_process_zero=first)
    LogFile().on_log(args, state, TrainerControl(), logs=logs)


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_each_entry_is_a_line_with_its_step(args: TrainingArguments, tmp_path: Path) -> None:
    log(args, 1, loss=0.5)
    log(args, 2, first=False, loss=9.0)
    log(args, 2, **{"eval_rewards/accuracies": 0.75})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "eval_rewards/accuracies": 0.75}]


@pytest.mark.parametrize(("start", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_what_comes_after_the_checkpoint_is_dropped(
    args: TrainingArguments, tmp_path: Path, start: int, kept: list[int]
) -> None:
    for step in (1, 2, 3):
        log(args, step, loss=0.5)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    state = TrainerState(global_step=start, is_world_process_zero=True)
    state.log_history = [{"step": step, "loss": 0.5} for step in range(1, start + 1)]
    LogFile().on_train_begin(args, state, TrainerControl())
    assert steps(tmp_path) == kept
    assert not list(tmp_path.glob("*.part"))


def test_what_the_end_of_a_run_logged_is_logged_once(args: TrainingArguments, tmp_path: Path) -> None:
    """A run that was killed in its last evaluation goes on from a checkpoint of the same step."""
    for numbers in ({"loss": 0.5}, {"eval_loss": 0.4}, {"train_loss": 0.5}, {"eval_loss": 0.4}):
        log(args, 3, **numbers)
    state = TrainerState(global_step=3, is_world_process_zero=True)
    state.log_history = [{"step": 3, "loss": 0.5}, {"step": 3, "eval_loss": 0.4}]
    LogFile().on_train_begin(args, state, TrainerControl())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [sorted(line)[0] for line in lines] == ["loss", "eval_loss"]


def test_a_log_alone_does_not_stop_a_fresh_start(args: TrainingArguments, tmp_path: Path) -> None:
    log(args, 1, loss=0.5)
    (tmp_path / "logs").mkdir()
    (tmp_path / "run_manifest.json").write_text('{"status": "running"}')
    assert find_checkpoint(tmp_path, None, overwrite=False) is None


def test_lines_say_how_long_training_took_and_how_much_memory(args: TrainingArguments, tmp_path: Path) -> None:
    """The time goes on where the checkpoint of an earlier attempt was: what came after it does not count."""
    earlier = [{"step": 2, "loss": 0.5, "elapsed": 100.0}, {"step": 3, "loss": 0.5, "elapsed": 170.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in earlier))
    state = TrainerState(global_step=2, is_world_process_zero=True, log_history=earlier[:1])
    log_file = LogFile()
    log_file.on_train_begin(args, state, TrainerControl())
    log_file.on_log(args, state, TrainerControl(), logs={"loss": 0.4})
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert 100 <= line["elapsed"] < 160
    assert 0.01 < line["memory_gib"] < 1000  # of this process: torch alone takes more than 10 MiB


def test_time_starts_anew_with_a_fresh_run(args: TrainingArguments, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 2, "elapsed": 100.0}) + "\n")
    state = TrainerState(global_step=0, is_world_process_zero=True)
    log_file = LogFile()
    log_file.on_train_begin(args, state, TrainerControl())
    log_file.on_log(args, state, TrainerControl(), logs={"loss": 0.4})
    (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["elapsed"] < 60
