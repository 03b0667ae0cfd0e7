"""Grids, stages, samplers, pruning, resuming and what is reported, with trials that are functions instead of runs."""

import csv
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simpo.errors import ConfigError
from simpo.sweep import report
from simpo.sweep.loop import Sweep, _held, identity_of, planned_trials
from simpo.sweep.record import Params, Record, best_of
from simpo.sweep.runs import Outcome
from simpo.sweep.space import SweepSettings, read_space
from simpo.sweep.study import SweepStudy

Function = Callable[[Params], float | Outcome]


class FakeTrial:
    """Reports three times on the way to its value; ends after `looks` looks."""

    def __init__(self, outcome: Outcome, looks: int) -> None:
        self.outcome, self.looks, self.stopped = outcome, looks, False
        self.left = [(step, outcome.value * step / 3) for step in (1, 2, 3)] if outcome.value is not None else []

    def poll(self) -> Outcome | None:
        self.looks -= 1
        return self.outcome if self.looks < 0 else None

    def reports(self) -> Iterator[tuple[int, float]]:
        if self.left:
            yield self.left.pop(0)

    def stop(self) -> None:
        self.stopped = True


class FakeStarter:
    """Starts trials that are computed; stops the whole sweep at trial `interrupt_at`, as Ctrl-C would."""

    def __init__(self, function: Function, interrupt_at: int | None = None) -> None:
        self.function, self.interrupt_at = function, interrupt_at
        self.launched: list[tuple[int, Params]] = []
        self.devices: list[Any] = []
        self.discarded: set[int] = set()
        self.trials: list[FakeTrial] = []

    def launch(self, number: int, params: Params, devices: Any) -> FakeTrial:
        if number == self.interrupt_at:
            raise KeyboardInterrupt
        self.launched.append((number, params))
        self.devices.append(devices)
        found = self.function(params)
        self.trials.append(FakeTrial(found if isinstance(found, Outcome) else Outcome(found), looks=4))
        return self.trials[-1]

    def discard_weights(self, number: int) -> None:
        self.discarded.add(number)


def make(tmp_path: Path, text: str) -> SweepSettings:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(path)


def go(
    tmp_path: Path, sweep: SweepSettings, starter: FakeStarter, start: Params | None = None
) -> tuple[list[Record], list[str]]:
    lines: list[str] = []
    study = SweepStudy(tmp_path, sweep, start)
    return Sweep(sweep, study, starter, start, say=lines.append, poll=0).run(), lines


GRID = "sampler: grid\nspace:\n  learning_rate: [3e-7, 1e-6]\n  beta: [2, 10]\n"


def test_grid(tmp_path: Path) -> None:
    starter = FakeStarter(lambda p: p["beta"] + p["learning_rate"] * 1e6)
    records, lines = go(tmp_path, make(tmp_path, GRID), starter)
    points = [tuple(params.values()) for _, params in starter.launched]
    assert points == list(itertools.product([3e-7, 1e-6], [2.0, 10.0]))
    assert [record.value for record in records] == [2.3, 10.3, 3.0, 11.0]
    best = best_of(records, "maximize")
    assert best is not None and best.number == 3 and starter.discarded == {0, 1, 2}
    assert "trial-0001 (2 of 4)  learning_rate 3e-07, beta 10  eval_rewards/accuracies 10.3" in "\n".join(lines)
    assert "best so far" in lines[-1] and "left" in lines[1] and "left" not in lines[-1]
    again = FakeStarter(lambda p: 0.0)
    assert len(go(tmp_path, make(tmp_path, GRID), again)[0]) == 4 and again.launched == []


def test_stages_hold_the_best_and_run_nothing_twice(tmp_path: Path) -> None:
    sweep = make(
        tmp_path, "sampler: staged\nspace:\n  learning_rate: [1, 2, 3]\n  gamma_beta_ratio: [0, 0.5]\n  beta: [2, 4]\n"
    )
    start = {"learning_rate": 9.0, "gamma_beta_ratio": 0.5, "beta": 3.0}
    starter = FakeStarter(
        lambda p: -abs(p["learning_rate"] - 2) - abs(p["gamma_beta_ratio"] - 0.2) - abs(p["beta"] - 4)
    )
    records, _ = go(tmp_path, sweep, starter, start)
    assert [tuple(p.values()) for _, p in starter.launched] == [
        *((1, 0.5, 3), (2, 0.5, 3), (3, 0.5, 3)),
        (2, 0, 3),  # 0.5 was run with the learning rates
        *((2, 0, 2), (2, 0, 4)),  # 3 is the start, and no value of its stage
    ]
    assert [record.stage for record in records] == [*["learning_rate"] * 3, "gamma_beta_ratio", *["beta"] * 2]
    best = best_of(records, "maximize")
    assert best is not None and best.params == {"learning_rate": 2, "gamma_beta_ratio": 0, "beta": 4}
    assert planned_trials(sweep, start) == 6


@pytest.mark.parametrize("kind", ["staged", "tpe\ntrials: 5", "random\ntrials: 4"])
def test_an_interrupted_sweep_goes_on_as_if_it_had_not_been(tmp_path: Path, kind: str) -> None:
    def value(params: Params) -> float:
        return -abs(params["learning_rate"] - 2) - abs(params["beta"] - 4)

    sweep = make(tmp_path, f"sampler: {kind}\nspace:\n  learning_rate: [1, 2]\n  beta: [2, 4, 6]\n")
    start = {"learning_rate": 1.0, "beta": 2.0} if kind == "staged" else None
    whole, first, second = FakeStarter(value), FakeStarter(value, interrupt_at=2), FakeStarter(value)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    go(tmp_path / "whole", sweep, whole, start)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", sweep, first, start)
    records, lines = go(tmp_path / "cut", sweep, second, start)
    assert first.launched + second.launched == whole.launched
    assert "trial-0002 resumed" in lines[0] and all(record.state == "complete" for record in records)


def test_running_trials_are_stopped_with_the_sweep(tmp_path: Path) -> None:
    sweep = make(tmp_path, GRID + "devices: [[0], [1]]\n")
    starter = FakeStarter(lambda p: 1.0, interrupt_at=1)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, sweep, starter)
    assert [trial.stopped for trial in starter.trials] == [True]
    assert {record.state for record in SweepStudy(tmp_path, sweep).records()} == {"running"}


def test_one_run_per_device_set(tmp_path: Path) -> None:
    starter = FakeStarter(lambda p: 1.0)
    go(tmp_path, make(tmp_path, GRID + "devices: [[0], [1]]\n"), starter)
    assert starter.devices == [("0",), ("1",)] * 2


def test_a_stage_waits_for_its_running_trials(tmp_path: Path) -> None:
    text = "sampler: staged\ndevices: [[0], [1], [2]]\nspace:\n  learning_rate: [1, 2]\n  beta: [2, 4]\n"
    starter = FakeStarter(lambda p: p["learning_rate"] + p["beta"])
    records, _ = go(tmp_path, make(tmp_path, text), starter, {"learning_rate": 1.0, "beta": 2.0})
    assert [tuple(record.params.values()) for record in records] == [(1, 2), (2, 2), (2, 4)]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_samplers_try_no_point_twice(tmp_path: Path, sampler: str) -> None:
    starter = FakeStarter(lambda p: p["beta"])
    records, _ = go(
        tmp_path, make(tmp_path, f"sampler: {sampler}\ntrials: 9\nspace:\n  beta: [1, 2]\n  seed: [1, 2]\n"), starter
    )
    assert len(records) == 4 and len({tuple(record.params.values()) for record in records}) == 4


def test_tpe_in_spans(tmp_path: Path) -> None:
    text = (
        "trials: 12\nspace:\n  beta: {low: 1, high: 100, log: true}\n  gamma_beta_ratio: {low: 0, high: 1, step: 0.1}\n"
    )
    starter = FakeStarter(lambda p: -abs(p["beta"] - 10) / 10 - abs(p["gamma_beta_ratio"] - 0.3))
    records, _ = go(tmp_path, make(tmp_path, text), starter)
    best = best_of(records, "maximize")
    assert best is not None and best.value is not None and best.value > -0.7
    assert all(record.params["beta"] == float(f"{record.params['beta']:.4g}") for record in records)


def test_pruning(tmp_path: Path) -> None:
    text = "sampler: grid\npruner: median\npruner_options: {n_startup_trials: 2}\nspace: {beta: [5, 6, 1, 7]}\n"
    starter = FakeStarter(lambda p: p["beta"])
    records, lines = go(tmp_path, make(tmp_path, text), starter)
    assert [record.state for record in records] == ["complete", "complete", "pruned", "complete"]
    assert [trial.stopped for trial in starter.trials] == [False, False, True, False]
    assert records[2].value == pytest.approx(1 / 3) and "pruned" in "".join(lines)


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(tmp_path: Path) -> None:
    def value(params: Params) -> float | Outcome:
        return Outcome(None, "simpo train: exit code 1\nMemoryError") if params["beta"] == 2 else 1.0

    records, lines = go(tmp_path, make(tmp_path, GRID), FakeStarter(value))
    assert [record.state for record in records] == ["failed", "complete", "failed", "complete"]
    assert records[0].error.endswith("MemoryError") and "    MemoryError" in "\n".join(lines)
    study = SweepStudy(tmp_path, make(tmp_path, GRID))
    assert study.retry_failed() == 2 and study.retry_failed() == 0
    again = FakeStarter(lambda p: 5.0)
    records, _ = go(tmp_path, make(tmp_path, GRID), again)
    assert [number for number, _ in again.launched] == [4, 5] and len(records) == 4


def test_a_metric_that_no_run_logs_ends_the_sweep_after_one_run(tmp_path: Path) -> None:
    starter = FakeStarter(lambda p: Outcome(None, "metric: the run logged no margin; it logged loss", hopeless=True))
    with pytest.raises(ConfigError, match=r"space.yaml:1: metric: the run logged no margin; it logged loss"):
        go(tmp_path, make(tmp_path, "metric: margin\n" + GRID), starter)
    assert len(starter.launched) == 1


def test_another_sweep_in_the_folder_is_refused(tmp_path: Path) -> None:
    sweep = make(tmp_path, GRID)
    SweepStudy(tmp_path, sweep).check_identity(identity_of(sweep, {"max_length": 512}, None))
    SweepStudy(tmp_path, sweep).check_identity(identity_of(sweep, {"max_length": 512, "output_dir": "moved"}, None))
    other = make(tmp_path, GRID.replace("10", "5"))
    with pytest.raises(ConfigError) as error:
        SweepStudy(tmp_path, other).check_identity(identity_of(other, {"max_length": 1024}, None))
    assert str(error.value).startswith(f"output_dir: {tmp_path} holds another sweep:")
    assert "max_length: 512 there, 1024 here" in str(error.value)
    assert 'space.beta: "2, 10" there, "2, 5" here' in str(error.value)


def test_table_csv_and_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make(tmp_path, GRID)
    values = {"learning_rate": 3e-7, "beta": 2.0}
    records = [
        Record(0, "complete", values, 0.5, 60.0),
        Record(1, "failed", values | {"beta": 10.0}, error="exit code 1\nMemoryError: no, none"),
        Record(2, "complete", values | {"learning_rate": 1e-6}, 0.75, 7200.0),
    ]
    report.print_table(records, sweep)
    printed = capsys.readouterr().out
    rows = [line.split()[0] for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert rows[1:] == ["2", "0", "1"] and "accuracies" in printed
    assert "2 h 00 min" in printed and "failed" in printed and "best" in printed
    report.write_csv(records, sweep, tmp_path / "sweep.csv")
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert rows[2]["eval_rewards/accuracies"] == "0.75" and rows[1]["error"] == "MemoryError: no, none"
    assert [row["learning_rate"] for row in rows] == ["3e-07", "3e-07", "1e-06"]
    report.write_best(records[2], ["run.yaml"], sweep, tmp_path / "best.yaml")
    assert (
        (tmp_path / "best.yaml").read_text().splitlines()[0].startswith("# eval_rewards/accuracies 0.75 in trial-0002")
    )
    report.plot(records, sweep, tmp_path / "sweep.png")
    report.plot([], sweep, tmp_path / "empty.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_one_sweep_at_a_time_in_a_folder_of_its_own(tmp_path: Path) -> None:
    with _held(tmp_path / "sweep"):
        (tmp_path / "sweep" / "study.db").touch()
        with pytest.raises(ConfigError, match="a sweep is running in"), _held(tmp_path / "sweep"):
            pass
    with _held(tmp_path / "sweep"):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no sweep"), _held(tmp_path / "other"):
        pass
