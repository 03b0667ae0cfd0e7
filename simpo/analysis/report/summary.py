"""The few numbers of a run that one looks for first, and what was said against it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from simpo.analysis.report.blocks import Level, Text
from simpo.analysis.report.curves import with_speed
from simpo.analysis.report.run_files import Line, RunFiles, last_written, number, series
from simpo.estimates import share

_LEVELS: dict[str, Level] = {"stop": "stop", "warn": "warn", "warning": "warn", "note": "note"}
_ORDER: tuple[Level, ...] = ("stop", "warn", "note")
_NOT_FINITE = ("loss", "grad_norm")


def summary(run: RunFiles) -> dict[str, str]:
    """Name -> value, with units; what was not logged is left out."""
    found = {"state": "finished" if run.finished else "not finished", "steps": f"{run.last_step:,}"}
    last = evaluation_at_end(run)
    accuracy = last.get("eval_rewards/accuracies")
    if accuracy is not None:
        found["reward accuracy, held-out"] = f"{accuracy:.1%}"
        pairs = held_out_pairs(run)
        if pairs:
            ends = share(round(accuracy * pairs), pairs)
            found["its 95% interval"] = f"{ends.low:.0%} to {ends.high:.0%}"
    for key, name in (("eval_rewards/margins", "reward margin, held-out"), ("eval_loss", "loss, held-out")):
        if key in last:
            found[name] = show_number(last[key])
    losses = series(run.log, "loss")
    if "eval_loss" not in last and losses:
        found["loss, last logged"] = show_number(losses[max(losses)])
    seconds = [value for line in run.log if (value := number(line.get("elapsed"))) is not None]
    duration = max(seconds, default=None) if seconds else run.results.get("train_runtime")
    if duration is not None:
        found["time"] = show_time(duration)
    speeds = series(with_speed(run.log), "tokens_per_second")
    if speeds:
        found["tokens per second, median"] = show_number(median(speeds.values()))
    memory = series(run.log, "memory_gib")
    if memory:
        found[f"most memory of the {memory_of(run)}"] = f"{max(memory.values()):.3g} GiB"
    return found


def evaluation_at_end(run: RunFiles) -> dict[str, float]:
    """The last evaluation: that of the log, or of the results where the log has none."""
    found = evaluations(run)
    if found:
        return found[max(found)]
    return {key: value for key, value in run.results.items() if key.startswith("eval_")}


def evaluations(run: RunFiles) -> dict[int, dict[str, float]]:
    """step -> what was measured there; speed is left out."""
    found: dict[int, dict[str, float]] = {}
    for line in run.log:
        values = {
            key: value
            for key in line
            if key.startswith("eval_") and not key.endswith(("_runtime", "_per_second"))
            and (value := number(line[key])) is not None
        }  # fmt: skip
        if values:
            found[line["step"]] = values
    return found


def held_out_pairs(run: RunFiles) -> int:
    """How many pairs evaluations used; 0 where nothing says it."""
    data = run.manifest.get("data")
    kept = data.get("eval", {}).get("kept") if isinstance(data, dict) else None
    return int(number(run.results.get("eval_pairs", kept)) or 0)


def memory_of(run: RunFiles) -> str:
    """Whose memory the log measured."""
    on_cpu = run.manifest.get("device", "cpu") == "cpu" or run.settings.get("use_cpu") is True
    return "process" if on_cpu else "first GPU"


def warnings_of(run: RunFiles, name: str = "") -> list[Text]:
    """What was said against a run before, during and after it, the gravest first.

    Args:
        run: read.
        name: put in front, where there are several.
    """
    said = [*_state(run), *_before(run.manifest), *_during(run.warnings)]
    prefix = f"{name}: " if name else ""
    levels = [(level, text) for one in _ORDER for level, text in said if level == one]
    return [Text(prefix + text, level) for level, text in levels]


def show_number(value: float) -> str:
    """Three digits that count; all of a large one."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value and abs(value) < 1e-3:
        return re.sub(r"e([-+])0*", r"e\1", f"{value:.2e}")
    return f"{value:.3g}"


def show_time(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _state(run: RunFiles) -> Iterator[tuple[Level, str]]:
    if not run.finished and run.manifest:
        epochs = series(run.log, "epoch")
        total = number(run.settings.get("num_train_epochs"))
        of_all = f", epoch {epochs[max(epochs)]:.2f}" + (f" of {total:g}" if total else "") if epochs else ""
        where = f"Its log ends at step {run.last_step:,}{of_all}, written {last_written(run)}."
        yield "note", f"This run has not finished: it goes on, or it was stopped. {where}"
    elif not run.manifest:
        yield "note", "There is no run_manifest.json: settings, data and versions are not known."
    yield from (("note", problem) for problem in run.problems)
    # fp16's loss scaling makes gradients overflow now and then, and leaves such an update out
    keys = _NOT_FINITE[:1] if run.settings.get("fp16") is True else _NOT_FINITE
    lost = [line["step"] for line in run.log if any(_is_lost(line.get(key)) for key in keys)]
    if lost:
        times = "once" if len(lost) == 1 else f"{len(lost):,} times, first"
        yield "stop", f"Loss or gradient norm was no finite number {times} at step {lost[0]:,}."


def _is_lost(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _before(manifest: Mapping[str, Any]) -> Iterator[tuple[Level, str]]:
    """Guard rails and checks of the data."""
    advice = manifest.get("advice")
    for one in advice if isinstance(advice, list) else ():
        if isinstance(one, dict):
            fix = f" Write {one['fix']}." if one.get("fix") else ""
            source = f" ({one['source']})" if one.get("source") else ""
            text = f"{one.get('name', 'settings')}: {one.get('message', '')}".rstrip(".")
            yield _LEVELS.get(str(one.get("level")), "note"), f"{text}.{fix}{source}"
    data = manifest.get("data_warnings")
    yield from (("warn", str(one)) for one in (data if isinstance(data, list) else ()))


def _during(lines: Sequence[Line]) -> Iterator[tuple[Level, str]]:
    """What monitors raised; the same again is counted."""
    by_name: dict[tuple[str, Level], list[Line]] = {}
    for line in lines:
        key = (str(line.get("name", "monitor")), _LEVELS.get(str(line.get("level")), "note"))
        by_name.setdefault(key, []).append(line)
    for (name, level), same in by_name.items():
        first, last = same[0], same[-1]
        again = f", again until step {last.get('step')} ({len(same)} times)" if len(same) > 1 else ""
        advice = f"\n→ {first['advice']}" if first.get("advice") else ""
        yield level, f"{name}, step {first.get('step')}{again}: {last.get('text', '')}{advice}"
