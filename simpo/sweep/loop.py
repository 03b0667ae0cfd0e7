"""A sweep from its two files to its table: start trials, watch them, write down how each ended."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from simpo.errors import ConfigError, SimPOError
from simpo.processes import sole_owner
from simpo.redact import without_secrets
from simpo.sweep import report
from simpo.sweep.axes import show_value
from simpo.sweep.proposals import Proposal, most_trials, next_in_grid, next_in_stages
from simpo.sweep.record import Params, Record, best_of
from simpo.sweep.runs import Devices, Launcher, Outcome
from simpo.sweep.space import SweepSettings, check_candidates, read_space, start_of
from simpo.sweep.study import STUDY_FILE, SweepStudy, make_pruner, require_packages

_POLL = 0.5  # seconds between two looks at the running trials
Say = Callable[[str], None]


class Trial(Protocol):
    """A trial that goes on."""

    def poll(self) -> Outcome | None:
        """None while it goes on."""

    def reports(self) -> Iterator[tuple[int, float]]:
        """New values of the metric, each with its optimizer step."""

    def stop(self) -> None:
        """End it now."""


class Starter(Protocol):
    """What starts trials; in the tests without a process."""

    def launch(self, number: int, params: Params, devices: Devices) -> Trial:
        """Start a trial, or go on with an interrupted one."""

    def discard_weights(self, number: int) -> None:
        """Remove what takes space and is not needed any more."""


class Sweep:
    """Runs trials until the space or their number is exhausted.

    Args:
        sweep: what SPACE.yaml says.
        study: where trials are recorded.
        starter: starts them.
        start: in a staged search, where it begins.
        say: prints a line.
        poll: seconds between two looks.
    """

    def __init__(
        self,
        sweep: SweepSettings,
        study: SweepStudy,
        starter: Starter,
        start: Params | None = None,
        say: Say = print,
        poll: float = _POLL,
    ) -> None:
        self.sweep, self.study, self.starter, self.start = sweep, study, starter, start
        self.say, self.poll = say, poll
        self.total = planned_trials(sweep, start)
        self._running: dict[int, tuple[Record, Trial, float]] = {}  # by slot

    def run(self) -> list[Record]:
        """All trials, at the end. An exception, as from Ctrl-C, stops the running ones, which can be resumed."""
        interrupted = [record for record in self.study.records() if record.state == "running"]
        try:
            while True:
                self._fill(interrupted)
                if not self._running:
                    return self.study.records()
                ended = [slot for slot in list(self._running) if self._look(slot)]
                if not ended:
                    time.sleep(self.poll)
        finally:
            for _, trial, _ in self._running.values():
                trial.stop()

    def _fill(self, interrupted: list[Record]) -> None:
        for slot, devices in enumerate(self.sweep.slots):
            if slot in self._running:
                continue
            if interrupted:
                record, how = interrupted.pop(0), "resumed"
            else:
                proposal = self.propose()
                if proposal.params is None:
                    return
                record, how = self.study.add(proposal.params, proposal.stage), "started"
            stage = f" (stage {record.stage})" if record.stage else ""
            on = f" on devices {','.join(devices) or 'none'}" if devices is not None else ""
            self.say(f"{record.name} {how}{stage}{on}: {report.show_params(record.params)}")
            self._running[slot] = record, self.starter.launch(record.number, record.params, devices), time.monotonic()

    def propose(self) -> Proposal:
        """The next trial, by sampler and records."""
        records = self.study.records()
        values = self.sweep.finite_values()
        if self.sweep.sampler == "grid":
            assert values is not None  # read_space
            return next_in_grid(values, records)
        if self.sweep.sampler == "staged":
            assert values is not None and self.start is not None
            return next_in_stages(values, self.start, records, self.sweep.direction)
        if len(records) >= self.total:
            return Proposal(None)
        return Proposal(self.study.suggest(records))

    def _look(self, slot: int) -> bool:
        """Whether the slot's trial has ended; then it is recorded."""
        record, trial, since = self._running[slot]
        pruned = self._is_pruned(record, trial)
        outcome = None if pruned else trial.poll()
        if not pruned and outcome is None:
            return False
        if pruned:
            trial.stop()
            ended = replace(record, state="pruned")
        else:
            assert outcome is not None
            if outcome.hopeless:
                raise ConfigError(f"{self.sweep.where.get('metric', self.sweep.path)}: {outcome.error}")
            self._is_pruned(record, trial)  # what it reported last; too late to stop it
            state = "failed" if outcome.value is None else "complete"
            ended = replace(record, state=state, value=outcome.value, error=outcome.error)  # type: ignore[arg-type]
        self._end(slot, replace(ended, seconds=time.monotonic() - since))
        return True

    def _is_pruned(self, record: Record, trial: Trial) -> bool:
        for step, value in trial.reports():
            self.study.report(record.number, step, value)
            if self.study.should_stop(record.number):
                return True
        return False

    def _end(self, slot: int, record: Record) -> None:
        self.study.finish(record)
        del self._running[slot]
        records = self.study.records()
        self.say(report.finished_line(record, records, self.sweep, self.total))
        if record.error:
            self.say("\n".join(f"    {line}" for line in record.error.splitlines()))
        if self.sweep.keep == "best":
            best = best_of(records, self.sweep.direction)
            for other in records:
                if other.state != "running" and (best is None or other.number != best.number):
                    self.starter.discard_weights(other.number)


def planned_trials(sweep: SweepSettings, start: Params | None = None) -> int:
    """How many trials there will be, at most."""
    values = sweep.finite_values()
    if sweep.trials is None:
        assert values is not None  # read_space
        return most_trials(values, start)
    return sweep.trials if values is None else min(sweep.trials, most_trials(values, None))


def run_sweep(
    configs: Sequence[str],
    space_file: str,
    overrides: Sequence[str],
    *,
    launch_config: Callable[[str], Path],
    dry_run: bool = False,
    retry_failed: bool = False,
    audit: bool = True,
    strict: bool = False,
) -> None:
    """Search, then leave a table, `sweep.csv`, `sweep.png` and `best.yaml` in the configuration's output_dir.

    Args:
        configs: settings files, a later one wins.
        space_file: SPACE.yaml.
        overrides: `--key=value` words for every trial.
        launch_config: finds the file that `accelerate` in SPACE.yaml names.
        dry_run: check and say what would be run.
        retry_failed: run failed trials of an earlier call again.
        audit: check a sample of the data in every trial, as `simpo train` does.
        strict: count warnings of a trial as errors, as `simpo train --strict` does.

    Raises:
        ConfigError: something is wrong with the files, or the folder holds another sweep, or one that is running.
        SimPOError: all trials failed.
    """
    sweep = read_space(space_file)
    base = check_candidates(sweep, configs, overrides)
    start = start_of(sweep, base) if sweep.sampler == "staged" else None
    launcher_file = launch_config(sweep.accelerate) if sweep.accelerate is not None else None
    _check_surroundings(sweep, base)
    output = Path(str(base["output_dir"]))
    starter = Launcher(sweep, output, configs, overrides, base, launcher_file, audit, strict)
    for line in describe(sweep, output, start):
        print(line, flush=True)
    if dry_run:
        return
    with _held(output):
        study = SweepStudy(output, sweep, start)
        study.check_identity(identity_of(sweep, base, start))
        if retry_failed:
            print(f"{study.retry_failed()} failed trials are run again", flush=True)
        records = Sweep(sweep, study, starter, start, say=lambda line: print(line, flush=True)).run()
        _finish(records, sweep, configs, output)


def _check_surroundings(sweep: SweepSettings, base: dict[str, Any]) -> None:
    if "LOCAL_RANK" in os.environ:
        raise ConfigError("simpo sweep inside `accelerate launch`: start it directly; it launches each trial itself")
    require_packages()
    make_pruner(sweep)
    if not base.get("output_dir"):
        raise ConfigError("output_dir is missing; write the folder of the sweep into the configuration")


def describe(sweep: SweepSettings, output: Path, start: Params | None) -> list[str]:
    """What will be run, in a few lines."""
    at_once = f", {len(sweep.slots)} at a time" if len(sweep.slots) > 1 else ""
    decides = sweep.command or sweep.metric
    lines = [f"Sweep in {output}: {planned_trials(sweep, start)} trials at most{at_once}, {sweep.direction} {decides}"]
    for at, (key, axis) in enumerate(sweep.space.items()):
        name = f"stage {at + 1}: {key}" if start is not None else key
        begins = f" (other stages begin at {show_value(start[key])})" if start is not None and at else ""
        lines.append(f"  {name}: {axis}{begins}")
    return lines


def identity_of(sweep: SweepSettings, base: dict[str, Any], start: Params | None) -> dict[str, Any]:
    """What fixes the trials and their values, flat; numbers of trials, devices and what is kept may change."""
    found: dict[str, Any] = {
        key: getattr(sweep, key)
        for key in ("sampler", "seed", "metric", "direction", "command", "pruner", "pruner_options")
    }
    found |= {f"space.{key}": str(axis) for key, axis in sweep.space.items()} | {"space": list(sweep.space)}
    if start is not None:
        found |= {f"start.{key}": value for key, value in start.items()}
    settings = {key: value for key, value in without_secrets(base).items() if key != "output_dir"}
    return found | {key: value for key, value in settings.items() if key not in sweep.space}


def _finish(records: Sequence[Record], sweep: SweepSettings, configs: Sequence[str], output: Path) -> None:
    best = best_of(records, sweep.direction)
    report.print_table(records, sweep)
    report.write_csv(records, sweep, output / "sweep.csv")
    report.plot(records, sweep, output / "sweep.png")
    if best is not None:
        report.write_best(best, configs, sweep, output / "best.yaml")
        print(f"Best: {output / best.name}  {report.show_params(best.params)}")
        print(f"Its settings: {output / 'best.yaml'}; all trials: {output / 'sweep.csv'}, {output / 'sweep.png'}")
    elif records and all(record.state == "failed" for record in records):
        raise SimPOError(
            f"all {len(records)} trials failed; the last one: {records[-1].error.splitlines()[-1]}. Their logs are "
            f"{output}/trial-*/logs/train.log; once the cause is gone, --retry-failed runs them again"
        )
    else:
        print("No trial came to its end, so there is no best one; a gentler pruner lets some of them through")


@contextlib.contextmanager
def _held(output: Path) -> Iterator[None]:
    """The sweep's folder, held against a second sweep; SIGTERM ends it like Ctrl-C.

    Raises:
        ConfigError: the folder holds something else, or a sweep is running in it.
    """
    names = {path.name for path in output.iterdir()} if output.exists() else set()
    if names and STUDY_FILE not in names and names != {"sweep.lock"}:
        raise ConfigError(f"output_dir: {output} is not empty and holds no sweep; choose another --output_dir")
    output.mkdir(parents=True, exist_ok=True)
    busy = f"output_dir: a sweep is running in {output}; wait for it, or choose another"
    with sole_owner(output / "sweep.lock", busy):
        yield
