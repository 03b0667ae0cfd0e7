"""One trial as processes of its own: `simpo train` on a set of devices, then the user's command, if there is one."""

import contextlib
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from simpo.errors import Interrupted
from simpo.processes import GRACE, child_environment, describe_exit, stop_left_over, stop_tree, write_note
from simpo.redact import redact_command
from simpo.run.folder import checkpoints, discard_weights, is_finished
from simpo.run.logfile import LOG_FILE
from simpo.sweep.record import Params, folder_name
from simpo.sweep.space import SweepSettings, override_words

_LAST_LINES = 12
Devices = tuple[str, ...] | None


class Outcome(NamedTuple):
    """How a trial ended: a value, or an error with the last lines of its log; `hopeless`: all others would share it."""

    value: float | None
    error: str = ""
    hopeless: bool = False


@dataclass(frozen=True)
class Launcher:
    """Starts trials.

    Attributes:
        sweep: what SPACE.yaml says.
        output: folder of the sweep.
        configs: settings files.
        overrides: `--key=value` words for every trial.
        base: settings of the configuration, by name.
        launch_config: the accelerate configuration, or None.
        audit: whether trials check a sample of their data.
        strict: whether warnings make trials fail.
    """

    sweep: SweepSettings
    output: Path
    configs: Sequence[str]
    overrides: Sequence[str]
    base: dict[str, Any]
    launch_config: Path | None = None
    audit: bool = True
    strict: bool = False

    def launch(self, number: int, params: Params, devices: Devices) -> "TrialRun":
        """Start a trial, or go on with one that was interrupted; a run that came to its end is not run again."""
        folder = self.output / folder_name(number)
        logs = folder / "logs"
        stop_left_over(logs / "process.json")
        logs.mkdir(parents=True, exist_ok=True)
        if not is_finished(folder) and not checkpoints(folder):
            _clear(folder)  # a run that was stopped before its first checkpoint, or while it wrote its model
        command = self.command(number, params, devices)
        (logs / "command.txt").write_text(shlex.join(redact_command(command)) + "\n")
        return TrialRun(folder, command, self.sweep, _environment(devices))

    def command(self, number: int, params: Params, devices: Devices = None) -> list[str]:
        """The command line of a trial."""
        folder = self.output / folder_name(number)
        own_checks = ["--no-audit"] * (not self.audit) + ["--strict"] * self.strict
        words = [sys.executable, "-m", "simpo.cli", "train", *self.configs, *own_checks, "--no-report"]
        if self.launch_config is not None:
            words.append(f"--accelerate={_own_launch_config(self.launch_config, folder / 'logs', devices)}")
        # The finished model is what a trial leaves; the best checkpoint can be asked for only where there are some.
        limited = ["--save_total_limit=1"] if self.base.get("load_best_model_at_end") else ["--save_strategy=no"]
        name = f"{self.base.get('run_name') or self.output.name}-{folder.name}"
        own = [f"--output_dir={folder}", f"--run_name={name}", "--push_to_hub=false"]
        return [*words, *limited, *self.overrides, *override_words(params), *own]

    def discard_weights(self, number: int) -> None:
        """Remove the weights and checkpoints of a trial; its logs, metrics and settings stay."""
        discard_weights(self.output / folder_name(number))


class TrialRun:
    """The processes of one trial. `poll` until it gives an outcome; `reports` in between.

    Args:
        folder: of the run.
        command: its command line.
        sweep: what SPACE.yaml says.
        environment: of its processes.
    """

    def __init__(self, folder: Path, command: Sequence[str], sweep: SweepSettings, environment: dict[str, str]) -> None:
        self.folder, self.sweep, self._environment, self._command = folder, sweep, environment, command
        self._logs = folder / "logs"
        self._read_to = 0
        self._measuring = is_finished(folder)
        self._process: subprocess.Popen[bytes] | None = None
        if not self._measuring:
            self._start(command, "train.log", "train.log")
        elif sweep.command is not None:
            self._start_command()

    def poll(self) -> Outcome | None:
        """None while the trial goes on."""
        code = self._process.poll() if self._process is not None else 0
        if code is None:
            return None
        if code == Interrupted.exit_code and not self._measuring:  # by a signal to it alone: it goes on where it was
            self._start(self._command, "train.log", "train.log")
            return None
        stage = "command" if self._measuring and self.sweep.command is not None else "simpo train"
        if code != 0:
            log = self._logs / ("command.err" if stage == "command" else "train.log")
            return Outcome(None, f"{stage}: {describe_exit(code)}\n{last_lines(log)}".rstrip())
        if not self._measuring:
            self._measuring = True
            if self.sweep.command is not None:
                self._start_command()
                return None
        if self.sweep.command is not None:
            return number_of_command(self._logs / "command.out")
        return metric_of_run(self.folder, self.sweep.metric)

    def reports(self) -> Iterator[tuple[int, float]]:
        """(step, metric) of every new entry of the run's log that has the metric."""
        path = self.folder / LOG_FILE
        if self._measuring or not path.is_file():
            return
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._read_to:  # begun anew
                self._read_to = 0
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._read_to += len(line)
                entry = json.loads(line)
                if self.sweep.metric in entry:
                    yield int(entry["step"]), float(entry[self.sweep.metric])

    def stop(self) -> None:
        """SIGTERM, then SIGKILL, for the whole tree of processes."""
        if self._process is not None and self._process.poll() is None:  # its number may be another process's by now
            stop_tree(self._process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=GRACE)

    def _start_command(self) -> None:
        assert self.sweep.command is not None
        command = self.sweep.command.replace("{output_dir}", shlex.quote(str(self.folder)))
        self._start(command, "command.out", "command.err")

    def _start(self, command: Sequence[str] | str, out: str, err: str) -> None:
        with (self._logs / out).open("ab" if out == err else "wb") as output, (self._logs / err).open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                shell=isinstance(command, str),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if out == err else errors,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then stops its trials in order
            )
        write_note(self._logs / "process.json", self._process.pid)


def metric_of_run(folder: Path, metric: str) -> Outcome:
    """The metric of a finished run: from its final results, else the last one that was logged."""
    values = [entry[metric] for entry in _log_entries(folder) if metric in entry]
    results: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        results = json.loads((folder / "all_results.json").read_text())
    value = results.get(metric, values[-1] if values else None)
    if value is None:
        known = sorted(results.keys() | {key for entry in _log_entries(folder) for key in entry})
        text = f"metric: the run logged no {metric}; it logged {', '.join(known) or 'nothing'}"
        return Outcome(None, text, hopeless=True)
    return _checked(float(value), metric)


def number_of_command(output: Path) -> Outcome:
    """The number on the last line that a command printed."""
    lines = output.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    try:
        return _checked(float(last), "command")
    except ValueError:
        return Outcome(None, f"command: the last line of its output is no number: {last[:200]!r}")


def _checked(value: float, name: str) -> Outcome:
    return Outcome(value) if math.isfinite(value) else Outcome(None, f"{name}: {value} is no result")


def _log_entries(folder: Path) -> list[dict[str, Any]]:
    path = folder / LOG_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def last_lines(log: Path, count: int = _LAST_LINES) -> str:
    """The end of a log without empty lines; a progress bar counts as the state it was left in."""
    with contextlib.suppress(OSError):
        lines = [line.rsplit("\r", 1)[-1].rstrip() for line in log.read_bytes().decode(errors="replace").split("\n")]
        return "\n".join([line for line in lines if line.strip()][-count:])
    return ""


def _clear(folder: Path) -> None:
    """Empty a trial's folder but for its logs, which a later attempt appends to."""
    for path in folder.iterdir():
        if path.name != "logs":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _environment(devices: Devices) -> dict[str, str]:
    found = child_environment()
    if devices is not None:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return found


def _own_launch_config(config: Path, logs: Path, devices: Devices) -> Path:
    """A trial's copy of the accelerate configuration: as many processes as devices, and a port of its own."""
    settings: dict[str, Any] = yaml.safe_load(config.read_text()) or {}
    settings["main_process_port"] = 0
    if devices:
        settings["num_processes"] = len(devices)
        settings.pop("gpu_ids", None)
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / "accelerate.yaml"
    path.write_text(f"# {config}, for this trial\n" + yaml.safe_dump(settings, sort_keys=False))
    return path
