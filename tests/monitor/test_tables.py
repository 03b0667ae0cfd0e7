"""Answers as tables in experiment trackers, with stand-ins for those; none is imported unasked."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

from simpo.monitor import tables
from tests.monitor.conftest import preference_pairs

ROWS = [
    {"step": 5, "prompt": f"a{at}", "response": "b | c\nd", "tokens": 3, "stopped": True, "repeated": 0.0,
     "entropy": 0.5} for at in range(2)
]  # fmt: skip


class Tracker(ModuleType):
    """wandb or trackio, as far as they are used."""

    def __init__(self, name: str, run: Any = None) -> None:
        super().__init__(name)
        self.__spec__ = SimpleNamespace(name=name, loader=None)  # type: ignore[assignment]
        self.run, self.logged = run, []

    def Table(self, **given: Any) -> dict[str, Any]:
        """Takes what the real one takes."""
        return given

    def log(self, data: dict[str, Any]) -> None:
        """Keeps it."""
        self.logged.append(data)


@pytest.fixture
def installed(monkeypatch):
    """installed(name, run) -> the stand-in, importable."""

    def put(name: str, run: Any = None) -> Tracker:
        tracker = Tracker(name, run)
        monkeypatch.setitem(sys.modules, name, tracker)
        return tracker

    return put


class Board(TrainerCallback):
    """tensorboard's callback, as far as it is used."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str, int]] = []
        self.tb_writer = SimpleNamespace(add_text=lambda *given: self.texts.append(given))


def test_wandb(installed) -> None:
    wandb = installed("wandb", run=object())
    tables.log_table(ROWS, ["wandb"], [])
    (logged,) = wandb.logged
    table = logged["monitor/generations"]
    assert table["columns"] == list(tables.COLUMNS) and logged["train/global_step"] == 5
    assert table["data"][1] == [5, "a1", "b | c\nd", 3, True, 0.0, 0.5]


def test_wandb_that_is_switched_off(installed) -> None:
    wandb = installed("wandb")
    tables.log_table(ROWS, ["wandb"], [])
    assert wandb.logged == []


def test_trackio(installed) -> None:
    trackio = installed("trackio")
    tables.log_table(ROWS, ["trackio"], [])
    frame = trackio.logged[0]["monitor/generations"]["dataframe"]
    assert list(frame.columns) == list(tables.COLUMNS) and frame["prompt"].tolist() == ["a0", "a1"]


def test_tensorboard() -> None:
    board = Board()
    tables.log_table(ROWS, ["tensorboard"], [TrainerCallback(), board])
    ((name, text, step),) = board.texts
    assert (name, step) == ("monitor/generations", 5)
    assert text.splitlines()[2] == "| 5 | a0 | b &#124; c<br>d | 3 | True | 0 | 0.5 |"


def test_a_run_that_reports_to_none_asks_for_none(installed) -> None:
    wandb, trackio, board = installed("wandb", run=object()), installed("trackio"), Board()
    tables.log_table(ROWS, [], [board])
    tables.log_table([], ["wandb", "trackio", "tensorboard"], [board])
    assert wandb.logged == trackio.logged == board.texts == []


def test_one_that_is_not_installed_is_left_out() -> None:
    tables.log_table(ROWS, ["wandb", "trackio"], [])  # neither is there


def test_a_run_hands_its_numbers_and_answers_over(make_trainer) -> None:
    """Numbers by on_log, which every integration hears; the answers by the writer."""
    seen: list[dict[str, Any]] = []

    class Hears(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            """Called by transformers."""
            seen.append(dict(logs))

    trainer = make_trainer(
        preference_pairs(8), preference_pairs(8, seed=1), max_steps=1, total_train_batch_size=8, monitor_prompts=2
    )
    trainer.args.report_to = ["tensorboard"]
    board = Board()
    trainer.add_callback(board)
    trainer.add_callback(Hears())
    trainer.train()
    assert [step for _, _, step in board.texts] == [0, 1]
    assert all(len(text.splitlines()) == 4 for _, text, _ in board.texts)
    looks = [logs for logs in seen if "monitor/chosen_drop" in logs]
    assert len(looks) == 2 and {"monitor/entropy", "monitor/accuracy"} <= looks[0].keys()
