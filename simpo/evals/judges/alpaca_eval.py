"""AlpacaEval 2: answers and annotations in the official files, raw win rates; judged by the official package.

    preference        from 1, the baseline (output_1) is better, to 2, the model (output_2) is
    win rate          100 * mean(preference - 1), with the standard error of that mean
    discrete          the same with each preference rounded to a win or a loss; exactly 1.5 is a draw
    length            characters, as there

Source: tatsu-lab/alpaca_eval 0.6.6, `metrics/helpers.py`, `metrics/winrate.py`, `main.py`. A preference that is none
(null, or outside 1 to 2) counts for nothing, and an old 0 is a draw; so there. The length-controlled win rate is the
package's own.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simpo.checks import is_number
from simpo.errors import ConfigError, DataError, EngineError
from simpo.evals.judges import alpaca_official
from simpo.evals.judges.costs import Cost, tokens_of
from simpo.evals.judges.judging import JudgeServer, excluded_warning
from simpo.evals.layouts import Row, read_list, write_text
from simpo.evals.results import Metric, Result

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
JUDGE = "gpt-4-1106-preview"
"""The model behind that annotator, by its configs.yaml."""
EXCLUDED = ("no_preference",)

_PROMPT_TOKENS = 350  # of the annotator's template and the answers' frame


@dataclass(frozen=True)
class AlpacaEvalSettings:
    """What is judged, and by whom.

    Args:
        answers: the model's answers, `model_outputs.json`.
        baseline_answers: those of the baseline, in the same layout; None: the package takes them from the hub.
        output_dir: annotations and the official leaderboard go here.
        annotator: the package's name of the judge.
        df_gamed: local copy of that file of the hub, which the length-controlled win rate needs; None: from the hub.
        python: interpreter that has alpaca_eval; None: this one.
        server: where the judge answers: one address, or api.openai.com; `api_key_env` names its key.

    Raises:
        ConfigError: a setting is missing or wrong.
    """

    answers: str
    output_dir: str
    baseline_answers: str | None = None
    annotator: str = ANNOTATOR
    df_gamed: str | None = None
    python: str | None = None
    server: JudgeServer = field(default_factory=JudgeServer)

    def __post_init__(self) -> None:
        for key in ("answers", "output_dir", "annotator"):
            if not getattr(self, key):
                raise ConfigError(f"{key}: must not be empty")
        for key in ("df_gamed", "python"):
            path = getattr(self, key)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"{key}: there is no file {path}")
        if len(self.server.base_urls) > 1:
            raise ConfigError("base_urls: alpaca_eval asks one address; write one")


def judge_alpaca_eval(settings: AlpacaEvalSettings) -> Result:
    """Hand the answers over to the official package, and read its annotations.

    What it was given is in `alpaca_eval_job.json`, and the command line that would do the same in
    `alpaca_eval_command.txt`. Annotations are kept by the package as they come: the same call goes on from them.

    Raises:
        DataError: answers are missing or wrong, or the package says other raw numbers than its annotations.
        EngineError: the package is not installed, a file of the hub cannot be had, or it failed.
    """
    answers = read_answers(settings.answers)
    folder = Path(settings.output_dir)
    cost = _estimate(answers, settings.baseline_answers)
    model = JUDGE if settings.annotator == ANNOTATOR else settings.annotator
    print("estimate: " + cost.line(model, settings.server.price(model)))
    official = _run_official(settings, answers[0]["generator"], folder)
    annotations = folder / settings.annotator / "annotations.json"
    result = read_annotations(annotations, answers[0]["generator"])
    raw = result.metrics["win_rate"].value
    if abs(raw - official["win_rate"]) > 0.01:
        raise DataError(f"{annotations}: give a win rate of {raw:.2f}, alpaca_eval says {official['win_rate']:.2f}")
    result.metrics["lc_win_rate"] = _around(official["length_controlled_winrate"], official.get("lc_standard_error"))
    result.settings["annotator"] = settings.annotator
    result.warnings.extend(
        excluded_warning(result.counts, EXCLUDED, result.counts["instructions"], settings.server.max_excluded)
    )
    print(f"spent: ${_spent(annotations):,.2f} as alpaca_eval counts (price_per_example in {annotations})")
    return result


def check_installed(python: str | None = None) -> None:
    """Raise EngineError unless the interpreter, by default this one, finds alpaca_eval."""
    python = python or sys.executable
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('alpaca_eval') is None)"
    if subprocess.run([python, "-c", code], capture_output=True).returncode != 0:
        raise EngineError(
            f"AlpacaEval: {python} has no alpaca_eval; pip install 'simpo[alpaca-eval]', or name the interpreter of "
            "an environment that has it: --alpaca_eval_python=FILE (--judge none stops at the answers)"
        )


def read_answers(path: str | Path) -> list[Row]:
    """Read `model_outputs.json`.

    Raises:
        DataError: it cannot be read, or an answer lacks instruction, output or generator.
    """
    answers = read_list(path)
    _check_answers(answers, str(path))
    return answers


def read_annotations(path: str | Path, model: str | None = None) -> Result:
    """Raw and discrete win rates of an annotation file.

    Args:
        path: list of {instruction, output_1, generator_1, output_2, generator_2, annotator, preference}.
        model: the model that must be generator_2; None: any one.

    Raises:
        DataError: it cannot be read, a row lacks something, or it compares several models.
    """
    rows = read_list(path)
    for number, row in enumerate(rows):
        absent = [key for key in ("output_1", "generator_1", "output_2", "generator_2") if key not in row]
        if absent or "preference" not in row:
            raise DataError(f"{path}: annotation {number} lacks {', '.join(absent) or 'preference'}")
    named = {key: {row[key] for row in rows} for key in ("generator_1", "generator_2")}
    if any(len(names) != 1 for names in named.values()) or (model and named["generator_2"] != {model}):
        raise DataError(
            f"{path}: must compare {model or 'one model'} as generator_2 with one baseline as generator_1, not "
            f"{sorted(map(str, named['generator_2']))} with {sorted(map(str, named['generator_1']))}"
        )
    metrics, counts = win_rates([row["preference"] for row in rows], str(path))
    for name, key in (("length", "output_2"), ("baseline_length", "output_1")):
        metrics[name] = Metric(float(np.mean([len(row[key]) for row in rows])), "characters")
    return Result(
        "alpaca_eval",
        rows[0]["generator_2"],
        metrics,
        judge=str(rows[0].get("annotator")),
        counts=counts,
        settings={"baseline": rows[0]["generator_1"]},
    )


def win_rates(preferences: Sequence[Any], where: str = "annotations") -> tuple[dict[str, Metric], dict[str, int]]:
    """Win rates of preferences from 1 to 2, with what was counted.

    >>> metrics, counts = win_rates([2.0, 1.8, 1.0, 1.5, None])
    >>> round(metrics["win_rate"].value, 1), metrics["discrete_win_rate"].value, counts["no_preference"]
    (57.5, 62.5, 1)

    Raises:
        DataError: none of them is a preference.
    """
    numbers = [float(value) for value in preferences if is_number(value) and not math.isnan(value)]
    points = np.array([1.5 if value == 0 else value for value in numbers if value == 0 or 1 <= value <= 2]) - 1
    if not len(points):
        raise DataError(f"{where}: none of {len(preferences)} annotations has a preference")
    metrics = {}
    for name, values in (("win_rate", points), ("discrete_win_rate", (np.sign(points - 0.5) + 1) / 2)):
        mean = 100 * float(values.mean())
        error = 100 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
        metrics[name] = _around(mean, error)
    return metrics, {
        "instructions": len(preferences),
        "wins": int((points > 0.5).sum()),
        "losses": int((points < 0.5).sum()),
        "draws": int((points == 0.5).sum()),
        "no_preference": len(preferences) - len(points),
    }


def _around(value: float, error: float | None) -> Metric:
    """A share in % with its standard error and normal interval."""
    if error is None:
        return Metric(value, "%")
    return Metric(value, "%", value - 1.96 * error, value + 1.96 * error, error)


def _check_answers(answers: Sequence[Row], path: str) -> None:
    for number, row in enumerate(answers):
        for key in ("instruction", "output", "generator"):
            if not isinstance(row.get(key), str):
                raise DataError(f"{path}: answer {number} lacks {key}, a text")
    names = sorted({row["generator"] for row in answers})
    if len(names) != 1:
        raise DataError(f"{path}: must hold answers of one generator, not of {names}")


def _estimate(answers: Sequence[Row], baseline: str | None) -> Cost:
    """One call for each instruction, one token each; where the baseline's answers are not here, as long as ours."""
    theirs = read_list(baseline) if baseline else answers
    texts = [text for row in answers for text in (row["instruction"], row["output"])]
    asked = tokens_of([*texts, *(str(row.get("output", "")) for row in theirs)])
    return Cost(len(answers), asked + _PROMPT_TOKENS * len(answers), len(answers))


def _run_official(settings: AlpacaEvalSettings, model: str, folder: Path) -> dict[str, Any]:
    """The package's own metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "alpaca_eval_metrics.json"
    arguments: dict[str, Any] = {
        "model_outputs": str(Path(settings.answers).absolute()),
        "annotators_config": settings.annotator,
        "name": model,
        "output_path": str(folder.absolute()),
        "caching_path": str((folder / "annotations_cache.json").absolute()),
        "metric_kwargs": {"save_weights_dir": str((folder / "weights").absolute())},
    }
    if settings.baseline_answers is not None:
        arguments["reference_outputs"] = str(Path(settings.baseline_answers).absolute())
    gamed = None if settings.df_gamed is None else str(Path(settings.df_gamed).absolute())
    job = {"evaluate": arguments, "df_gamed": gamed, "result": str(result.absolute())}
    write_text(folder / "alpaca_eval_job.json", json.dumps(job, indent=2) + "\n")
    write_text(folder / "alpaca_eval_command.txt", _command_line(arguments))
    result.unlink(missing_ok=True)
    command = [settings.python or sys.executable, alpaca_official.__file__, str(folder / "alpaca_eval_job.json")]
    log = folder / "alpaca_eval.log"
    print(f"alpaca_eval judges; what it says goes into {log}", flush=True)
    with log.open("wb") as file:
        status = subprocess.run(command, env=_environment(settings.server), stdout=file, stderr=file).returncode
    last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    if status == alpaca_official.FOR_USERS:
        hint = "; install it with: pip install 'simpo[alpaca-eval]'" if "cannot be imported" in last else ""
        raise EngineError(f"AlpacaEval: {last}{hint}")
    if status != 0 or not result.exists():
        raise EngineError(f"AlpacaEval: the package failed: {last}; all of it: {log}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _environment(server: JudgeServer) -> dict[str, str]:
    """The package reads key and address from the environment when it is imported."""
    given = {"OPENAI_API_BASE": server.base_urls[0], "OPENAI_MAX_CONCURRENCY": str(server.max_in_flight)}
    key = os.environ[server.api_key_env] if server.api_key_env else "none"
    return {**os.environ, **given, "OPENAI_API_KEY": key, "IS_ALPACA_EVAL_2": "True"}


def _command_line(arguments: dict[str, Any]) -> str:
    options = {**arguments, "metric_kwargs": json.dumps(arguments["metric_kwargs"]), "precomputed_leaderboard": "None"}
    words = [f"  --{name} {shlex.quote(str(value))}" for name, value in options.items()]
    return " \\\n".join(["alpaca_eval evaluate", *words]) + "\n"


def _spent(annotations: Path) -> float:
    return sum(
        float(value or 0)
        for row in read_list(annotations)
        for key, value in row.items()
        if key.endswith("price_per_example")
    )
