"""The report of a run, or of several side by side, from what lies in their folders."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from simpo.analysis.report.before_after import figures, samples
from simpo.analysis.report.blocks import Block, Files, Page, Section, Table, Text
from simpo.analysis.report.curves import curve_pictures
from simpo.analysis.report.drawing import NO_PICTURES, can_draw
from simpo.analysis.report.page import write_page
from simpo.analysis.report.run_files import RunFiles, names_of, number, read_run
from simpo.analysis.report.summary import evaluation_at_end, evaluations, show_number, summary, warnings_of
from simpo.errors import ConfigError
from simpo.run.folder import MANIFEST, REPORT
from simpo.run.logfile import LOG_FILE
from simpo.settings.oldnames import show

_PLACES = ("output_dir", "run_name", "logging_dir", "hub_model_id", "reference_cache")  # differ between any two runs
_SIDES = ("prompt", "chosen", "rejected")
_Runs = Mapping[str, RunFiles]


def write_report(folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write the report of a run into its folder, or that of several into the current one.

    Args:
        folders: of runs, finished or not.
        output: the file to write; None: `report.html` there.

    Raises:
        ConfigError: a folder is no run's, or the file cannot be written.
    """
    paths = [Path(folder) for folder in folders]
    path = Path(output) if output is not None else (paths[0] if len(paths) == 1 else Path()) / REPORT
    if output is not None and path.is_dir():
        raise ConfigError(f"--output {path} is a folder; name a file in it, such as {path / REPORT}")
    if output is not None and not path.parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}; make it first")
    return write_page(report_page(paths, path.parent), path)


def report_page(folders: Sequence[str | Path], beside: str | Path = ".") -> Page:
    """The page of a run, or of several.

    Args:
        folders: of runs, finished or not.
        beside: folder that the page will lie in, from which its links lead to files.

    Raises:
        ConfigError: a folder is no run's, or none is given.
    """
    read = [read_run(folder) for folder in folders]
    if not read:
        raise ConfigError("a report needs a run at least; give the output_dir of one")
    runs = dict(zip(names_of(read), read, strict=True))
    several = len(runs) > 1
    first = [Section("Runs", [_summaries(runs)]), Section("Settings", _differing(runs))] if several else []
    sections = [
        *first,
        Section("Warnings", _warnings(runs)),
        Section("Training", _training(runs)),
        Section("Evaluation", _evaluation(runs)),
        Section("Before and after", figures(runs)),
        Section("Samples", samples(runs)),
        *([] if several else [Section("Settings", _settings(read[0]))]),
        Section("Data", _data(runs)),
        Section("Files", _files(runs, Path(beside))),
    ]
    title = f"{len(runs)} runs: {', '.join(list(runs)[:3])}{', …' * (len(runs) > 3)}" if several else next(iter(runs))
    return Page(title, {} if several else summary(read[0]), sections, _about(read))


def _summaries(runs: _Runs) -> Table:
    """The lead numbers of each run in a row."""
    found = {name: summary(run) for name, run in runs.items()}
    head = list(dict.fromkeys(key for one in found.values() for key in one))
    return Table(["run", *head], [[name, *(one.get(key, "") for key in head)] for name, one in found.items()])


def _warnings(runs: _Runs) -> list[Block]:
    found = [text for name, run in runs.items() for text in warnings_of(run, name if len(runs) > 1 else "")]
    return list(found) or [Text("Nothing was raised, before training or during it.")]


def _settings(run: RunFiles) -> list[Block]:
    """What was given, and what is recommended for what matters most."""
    advised = run.manifest.get("recommended")
    advised = advised if isinstance(advised, dict) else {}
    chosen = {name: one.get("chosen") for name, one in advised.items()} | dict(run.settings)
    if not chosen:
        return []
    first = [name for name in chosen if name in advised]
    rows = [
        [name, _value(chosen[name]), str(advised.get(name, {}).get("recommended", ""))]
        for name in [*first, *(name for name in chosen if name not in advised)]
    ]
    return [
        Table(("setting", "this run", "recommended"), rows, "Settings that were given; others keep their defaults.")
    ]


def _differing(runs: _Runs) -> list[Block]:
    """Settings that not all runs share."""
    given = {name: dict(run.settings) for name, run in runs.items()}
    keys = [key for key in dict.fromkeys(key for one in given.values() for key in one) if key not in _PLACES]
    rows = [[key, *(_value(one[key]) if key in one else "" for one in given.values())] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if not any(given.values()):
        return []
    if not rows:
        return [Text("All runs have the same settings.")]
    return [Table(["setting", *given], rows, "Settings that differ; empty: the default.")]


def _data(runs: _Runs) -> list[Block]:
    """What became of the rows of each set."""
    rows = []
    for name, run in runs.items():
        data = run.manifest.get("data")
        for key, one in data.items() if isinstance(data, dict) else ():
            if isinstance(one, dict):
                label = f"{name}, {key}" if len(runs) > 1 else str(key)
                causes = [_causes(one.get(what)) for what in ("dropped", "truncated")]
                lengths = [" / ".join(_count(one, f"{side}_{kind}") for kind in ("mean", "max")) for side in _SIDES]
                rows.append([label, _count(one, "total"), _count(one, "kept"), *causes, *lengths,
                             _count(one, "total_tokens")])  # fmt: skip
    head = ("set", "rows", "pairs kept", "dropped", "cut", *_SIDES, "all tokens")
    caption = "Rows of each set and what became of them; tokens of prompts and responses, mean / longest."
    return [Table(head, rows, caption)] if rows else []


def _count(counts: Mapping[str, Any], key: str) -> str:
    value = number(counts.get(key))
    return "" if value is None else f"{value:,.0f}"


def _causes(counts: Any) -> str:
    if not isinstance(counts, dict) or not counts:
        return "0"
    return ", ".join(f"{count:,} {cause}" for cause, count in counts.items())


def _training(runs: _Runs) -> list[Block]:
    logs = {name: run.log for name, run in runs.items()}
    if not can_draw():
        return [NO_PICTURES, *_last_values(runs)]
    pictures = curve_pictures(logs)
    if pictures:
        return list(pictures)
    return [Text("There is too little in the log for curves, which begin with two entries."), *_last_values(runs)]


def _last_values(runs: _Runs) -> list[Block]:
    """Numbers of the last log line of training, where there are no pictures of them."""
    found = {
        name: next((line for line in reversed(run.log) if "loss" in line), {}) for name, run in runs.items()
    }  # fmt: skip
    keys = list(dict.fromkeys(key for line in found.values() for key in line if number(line[key]) is not None))
    rows = [[key, *(_cell(number(line.get(key))) for line in found.values())] for key in keys]
    return [Table(["number", *found], rows, "As last logged.")] if rows else []


def _evaluation(runs: _Runs) -> list[Block]:
    """The first and the last evaluation of a run; of several the last ones."""
    if len(runs) > 1:
        columns = {f"{name}, step {run.last_step:,}": evaluation_at_end(run) for name, run in runs.items()}
    else:
        (run,) = runs.values()
        found = evaluations(run)
        columns = {f"step {step:,}": found[step] for step in dict.fromkeys((min(found), max(found)))} if found else {}
        columns = columns or {"at the end": evaluation_at_end(run)}
    keys = dict.fromkeys(key for one in columns.values() for key in one)
    rows = [
        [key.removeprefix("eval_"), *(_cell(one.get(key)) for one in columns.values())]
        for key in keys
        if key not in ("eval_pairs", "epoch")
    ]
    return [Table(["on held-out pairs", *columns], rows)] if rows else []


def _files(runs: _Runs, beside: Path) -> list[Block]:
    """Links from the page's folder; of several runs to their reports, logs and manifests."""
    rows = []
    for name, run in runs.items():
        if len(runs) == 1:
            rows += [(path, what) for path, what in run.present]
        else:
            report = [(run.folder / REPORT, "report")] if (run.folder / REPORT).is_file() else []
            kept = [(path, what) for path, what in run.present if path.name in (LOG_FILE, MANIFEST)]
            rows += [(path, f"{name}: {what}") for path, what in [*report, *kept]]
    return [Files([(os.path.relpath(path, beside), what) for path, what in rows])] if rows else []


def _about(runs: Sequence[RunFiles]) -> str:
    made = f"Made by simpo report {metadata.version('simpo')} on {time.strftime('%Y-%m-%d %H:%M')}."
    if len(runs) > 1 or not runs[0].manifest:
        return made
    manifest = runs[0].manifest
    packages = manifest.get("packages")
    packages = packages if isinstance(packages, dict) else {}
    facts = [manifest.get(key) for key in ("engine", "device", "master_dtype")]
    facts += [f"{name} {version}" for name, version in packages.items() if version]
    return f"{made} The run began {manifest.get('started', '')}: {', '.join(str(fact) for fact in facts if fact)}."


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_value(one) for one in value)
    return show(value)


def _cell(value: float | None) -> str:
    return "" if value is None else show_number(value)
