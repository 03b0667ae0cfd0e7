"""When a process judges that another one is lost or hangs; the clock is the test's."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from simpo.errors import ConfigError
from simpo.run.folder import SIGNS, find_checkpoint
from simpo.run.watch import heartbeat as module
from simpo.run.watch import signs
from simpo.run.watch.heartbeat import Heartbeat, hang_timeout, heartbeat
from simpo.run.watch.shared_folder import SharedFolder
from simpo.run.watch.signs import Observer, Sign, give
from simpo.settings import read_settings

TIMEOUT = 100.0


class Watched:
    """This process beside one other, with a clock that stands still by itself."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for place in (module, signs):
            monkeypatch.setattr(place, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.pulse = Heartbeat(SharedFolder(folder, "run"), TIMEOUT, "out")
        self.pulse._observer = Observer([self.pulse._file, folder / "other"])
        self.file = folder / "other"
        self.other = Sign(1, "node-b", "another machine", 4321, step=3, place="loaders.py:90 (fetch)")

    def pass_time(self, seconds: float, *, beats: bool = True, moves: bool = False) -> list[str]:
        """What is found in that time, in which this process does not get on."""
        end = self.now + seconds
        while self.now < end:
            self.now += 2
            self.other = dataclasses.replace(self.other, beats=self.other.beats + beats, moves=self.other.moves + moves)
            give(self.file, self.other)
            self.pulse._beat(waits=True)
            if lines := self.pulse._judge(self.now):
                return lines
        return []


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


def test_one_that_hangs(watched: Watched) -> None:
    watched.pulse._watched = True
    assert watched.pass_time(TIMEOUT - 10) == []
    (line,) = watched.pass_time(20)
    assert line == "process 1 on node-b (pid 4321) hangs at step 3, in loaders.py:90 (fetch)"


def test_one_that_gives_no_signs_is_lost_rather_than_behind(watched: Watched) -> None:
    watched.pulse._watched = True
    (line,) = watched.pass_time(TIMEOUT + 10, beats=False)
    assert "was lost at step 3" in line and watched.now <= TIMEOUT + 2


def test_long_phases_are_left_alone_but_not_the_lost(watched: Watched) -> None:
    """Loading, compiling, saving: signs, and no moves."""
    assert watched.pass_time(20 * TIMEOUT) == []
    (line,) = watched.pass_time(TIMEOUT, beats=False)
    assert "was lost" in line


def test_while_another_works_this_one_may_wait(watched: Watched) -> None:
    watched.pulse._watched = True
    assert watched.pass_time(20 * TIMEOUT, moves=True) == []
    assert watched.pass_time(TIMEOUT + 10)


def test_when_a_hang_is_looked_for(watched: Watched, tmp_path: Path) -> None:
    pulse, args, control = watched.pulse, TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl()
    state = TrainerState(global_step=0)

    def after(event: str) -> bool:
        named = {"metrics": {}} if event == "predict" else {}
        getattr(pulse, f"on_{event}")(args, state, control, **named)
        return pulse._watched

    assert not after("train_begin") and not after("step_begin")  # the first step may compile
    assert after("step_end") and after("step_begin")
    assert after("prediction_step") and not after("evaluate")
    assert after("step_begin")
    assert after("step_end") and not after("epoch_end")
    assert after("prediction_step") and not after("predict")
    assert not after("train_end")


def test_saving_takes_its_time_also_within_a_step(watched: Watched) -> None:
    """A monitor saves before it stops a run; a hang is looked for again from the next step on."""
    pulse, saved = watched.pulse, []
    trainer: Any = SimpleNamespace(
        add_callback=lambda callback: None,
        model=torch.nn.Linear(1, 1),
        _save_checkpoint=lambda model, trial=None: saved.append(watched.pass_time(20 * TIMEOUT)),
    )
    pulse.follow(trainer)
    pulse._watched = True
    trainer._save_checkpoint("model", trial=None)
    assert saved == [[]] and watched.pass_time(20 * TIMEOUT) == []  # sealing, and removing older ones
    pulse._watched = True
    assert watched.pass_time(TIMEOUT + 10)


def test_the_time_out(make_config) -> None:
    assert hang_timeout(read_settings(make_config()).training) == 600
    assert hang_timeout(read_settings(make_config(ddp_timeout=60)).training) == 20
    assert hang_timeout(read_settings(make_config(hang_timeout=0)).training) == 0
    with pytest.raises(ConfigError, match="hang_timeout: 1800 must be below ddp_timeout: 1800"):
        read_settings(make_config(hang_timeout=1800))
    with pytest.raises(ConfigError, match=r"hang_timeout: -1\S* must be a number of seconds"):
        read_settings(make_config(hang_timeout=-1))


def test_one_process_watches_nothing_and_clears_up(make_config, tmp_path: Path) -> None:
    (tmp_path / "out" / SIGNS).mkdir(parents=True)
    (tmp_path / "out" / SIGNS / "left-0.json").write_text("of a run that was killed")
    assert find_checkpoint(tmp_path / "out", None, overwrite=False) is None  # as fresh as an empty folder
    with heartbeat(read_settings(make_config()).training) as pulse:
        assert pulse is None and not (tmp_path / "out" / SIGNS).exists()
