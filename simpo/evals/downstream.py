"""The Open LLM Leaderboard's six tasks (its first version, arXiv 2405.14734 appendix C) through `lm_eval`.

lm_eval owns prompts, few-shot examples, scoring and standard errors; here are the preset, the metric of each task as
the leaderboard took it, and files. A task that is done is not run again by the next start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from simpo.errors import ConfigError, DataError
from simpo.evals.results import Metric, Result, default_folder, model_name, write_result
from simpo.store import write_whole
from simpo.weights import check_weights, say_remote_code

LM_EVAL = "0.4.13"
"""The tested release of lm_eval."""


class Task(NamedTuple):
    """A task of the preset.

    Fields:
        shots: examples in the prompt.
        metric: lm_eval's key of the number: metric, comma, filter.
        data: its data set on the hub.
        part: what is read of it.
    """

    shots: int
    metric: str
    data: str
    part: str | None = None


TASKS: dict[str, Task] = {
    "mmlu": Task(5, "acc,none", "cais/mmlu", "a configuration for each of 57 subjects"),
    "arc_challenge": Task(25, "acc_norm,none", "allenai/ai2_arc", "configuration ARC-Challenge"),
    "hellaswag": Task(10, "acc_norm,none", "Rowan/hellaswag"),
    "truthfulqa_mc2": Task(0, "acc,none", "truthfulqa/truthful_qa", "configuration multiple_choice"),
    "winogrande": Task(5, "acc,none", "allenai/winogrande", "configuration winogrande_xl"),
    "gsm8k": Task(5, "exact_match,strict-match", "openai/gsm8k", "configuration main"),
}
"""In the order of tables. MMLU is the mean over its subjects, as on the leaderboard, where lm_eval's own weighs them by
their questions."""


@dataclass
class DownstreamSettings:
    """What is evaluated, and where.

    Args:
        model_name_or_path: a hub name or a directory, also of an adapter.
        output_dir: of results.json and lm_eval's own results of each task; empty: outputs/eval/NAME/downstream.
        initial_model: evaluated too, into `output_dir/initial`, to see what training changed.
        name: of the model in tables; empty: the last part of model_name_or_path.
        tasks: of the preset; all six by default.
        apply_chat_template: put prompts into the model's chat template; the published numbers did not.
        batch_size: requests that are computed together; `auto` finds the largest.
        dtype: of the weights; `auto` is the model's own.
        device: where; None: a GPU where there is one.
        limit: only so many questions of each task (and subject): a trial, not a result.
        include_path: folder with lm_eval task files that go before its own of the same name, such as ones that read
            local files.
        model_revision, trust_remote_code: as for training.

    Raises:
        ConfigError: a setting is missing or out of bounds.
    """

    model_name_or_path: str
    output_dir: str = ""
    initial_model: str | None = None
    name: str = ""
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    apply_chat_template: bool = False
    batch_size: int | str = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: str | None = None
    limit: int | None = None
    include_path: str | None = None
    model_revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ConfigError("model_name_or_path: must not be empty")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            what = f"{unknown[0]!r} is no task of the preset" if unknown else "is empty"
            raise ConfigError(f"tasks: {what}; write some of {', '.join(TASKS)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: {self.limit} must be at least 1; leave it out for all questions")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ConfigError(f"include_path: {self.include_path} is no folder")
        self.name = self.name or model_name(self.model_name_or_path)
        self.output_dir = self.output_dir or default_folder(self.name, "downstream")


def run_downstream(settings: DownstreamSettings) -> list[Result]:
    """Evaluate the model, and the initial one if it is named; every process of `accelerate launch` must call it.

    Returns:
        Results in that order, which are also written; nothing on processes other than the first.

    Raises:
        ConfigError: lm_eval is missing.
        DataError: a task's data set cannot be loaded.
    """
    results = [_evaluate(settings, settings.model_name_or_path, settings.name, Path(settings.output_dir))]
    if settings.initial_model is not None:
        folder = Path(settings.output_dir) / "initial"
        results.append(_evaluate(settings, settings.initial_model, model_name(settings.initial_model), folder))
    return [result for result in results if result is not None]


def _evaluate(settings: DownstreamSettings, model: str, name: str, folder: Path) -> Result | None:
    evaluate, load = _lm_eval()
    about = _about(settings, model)
    files = {task: folder / "lm_eval" / f"{task}.json" for task in settings.tasks}
    # before any is written: all processes must agree on what is left to do
    found: dict[str, Any] = {task: _done(file, about) for task, file in files.items()}
    loaded: Any = None
    for task in [task for task, results in found.items() if results is None]:
        loaded = loaded or load(settings, model)
        answer = _run_task(evaluate, loaded, task, settings)
        if answer is not None:
            found[task] = {key: answer.get(key) for key in _KEPT}
            files[task].parent.mkdir(parents=True, exist_ok=True)
            write_whole(files[task], {"about": about, **found[task]})
    if any(results is None for results in found.values()):
        return None  # lm_eval gives results to the first process only
    result = summarise(found, name, about, settings)
    write_result(folder, result)
    return result


_KEPT = ("results", "group_subtasks", "versions", "n-shot", "n-samples")


def _about(settings: DownstreamSettings, model: str) -> dict[str, Any]:
    """What the numbers of one model depend on."""
    import lm_eval

    from simpo.sampling.policy import weights_fingerprint

    kept = asdict(settings)
    for key in ("output_dir", "initial_model", "name", "tasks", "batch_size", "device"):
        del kept[key]
    known = {"model_name_or_path": model, "weights": weights_fingerprint(model)}  # a run may have been made anew there
    return {**kept, **known, "lm_eval": str(lm_eval.__version__)}


def _done(file: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The results of a task that an earlier start finished with the same settings."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept if kept["about"] == about else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lm_eval() -> tuple[Any, Any]:
    """lm_eval's `simple_evaluate`, and what loads a model for it."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ConfigError(
            f"downstream tasks need lm_eval ({error}); pip install 'simpo[downstream]' (lm-eval {LM_EVAL})"
        ) from error

    def load(settings: DownstreamSettings, model: str) -> Any:
        from simpo.sampling.policy import base_model

        base = base_model(model, settings.model_revision)
        if settings.trust_remote_code:
            say_remote_code(base, settings.model_revision)
        for name in {base, model}:
            check_weights(name, settings.model_revision if name == model else None)
        return HFLM(
            pretrained=base,
            **(
                {"peft": model, "tokenizer": model}
                if base != model
                else {"revision": settings.model_revision or "main"}
            ),
            dtype=settings.dtype,
            batch_size=settings.batch_size,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            **({"device": settings.device} if settings.device else {}),
        )

    return simple_evaluate, load


def _run_task(evaluate: Any, model: Any, task: str, settings: DownstreamSettings) -> dict[str, Any] | None:
    from lm_eval.tasks import TaskManager

    spec = TASKS[task]
    try:
        answer: dict[str, Any] | None = evaluate(
            model=model,
            tasks=[task],
            num_fewshot=spec.shots,
            limit=settings.limit,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.apply_chat_template,
            task_manager=TaskManager(include_path=settings.include_path),
            log_samples=False,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "cache" not in str(error):  # what `datasets` says offline
            raise
        raise DataError(_missing_data(task, error)) from error
    return answer


def _missing_data(task: str, error: Exception) -> str:
    spec = TASKS[task]
    lines = str(error).strip().splitlines()
    part = f" ({spec.part})" if spec.part else ""
    return (
        f"{task}: its data set {spec.data}{part} cannot be loaded: {lines[0] if lines else type(error).__name__}. "
        f"Where the hub is reachable, run `lm_eval --model dummy --tasks {task} --limit 1`; then copy the folder "
        "HF_HOME (by default ~/.cache/huggingface) to this machine and set HF_HOME and HF_HUB_OFFLINE=1; or name a "
        "folder with an lm_eval task file of that name that reads local files in include_path"
    )


def summarise(
    found: Mapping[str, Mapping[str, Any]], name: str, about: Mapping[str, Any], settings: DownstreamSettings
) -> Result:
    """A result from lm_eval's.

    Args:
        found: task -> what lm_eval returned for it.
        name: of the model in tables.
        about: what the numbers depend on.
        settings: of the evaluation.

    Returns:
        All in %: a metric for each task, with its normal 95% interval; and with all six tasks their average, whose
        standard error takes the tasks for independent.

    Raises:
        DataError: lm_eval gave no such number.
    """
    metrics = {task: _metric(task, found[task]) for task in TASKS if task in found}
    if len(metrics) == len(TASKS):
        metrics["average"] = _mean(list(metrics.values()))
    versions = {task: version for results in found.values() for task, version in (results["versions"] or {}).items()}
    counts = {
        task: sum(count["effective"] for count in (results["n-samples"] or {}).values())
        for task, results in found.items()
    }
    shots = {task: TASKS[task].shots for task in found}
    warnings = [f"only {settings.limit} questions of each task: a trial"] if settings.limit else []
    settings_of = {**about, "shots": shots, "versions": versions}
    return Result("downstream", name, metrics, counts=counts, settings=settings_of, warnings=warnings)


def _metric(task: str, found: Mapping[str, Any]) -> Metric:
    results = found["results"]
    parts = list(_leaves(task, found["group_subtasks"] or {}))
    key = TASKS[task].metric
    name, _, kind = key.partition(",")
    try:
        numbers = [(float(results[part][key]), results[part].get(f"{name}_stderr,{kind}")) for part in parts]
    except (KeyError, TypeError) as error:
        raise DataError(f"{task}: lm_eval gave no {key} ({error}); simpo is tested with lm_eval {LM_EVAL}") from error
    return _mean([_percent(value, stderr if isinstance(stderr, int | float) else None) for value, stderr in numbers])


def _leaves(task: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The tasks that a group holds, through all levels; a task alone is itself."""
    if not groups.get(task):
        yield task
        return
    for part in groups[task]:
        yield from _leaves(part, groups)


def _percent(value: float, stderr: float | None) -> Metric:
    return Metric(100 * value, "%", stderr=None if stderr is None or math.isnan(stderr) else 100 * stderr)


def _mean(parts: Sequence[Metric]) -> Metric:
    """The mean of independent numbers, with its standard error and normal interval."""
    value = sum(part.value for part in parts) / len(parts)
    errors = [part.stderr for part in parts if part.stderr is not None]
    if len(errors) < len(parts):
        return Metric(value, "%")
    stderr = math.sqrt(sum(error**2 for error in errors)) / len(parts)
    return Metric(value, "%", value - 1.959964 * stderr, value + 1.959964 * stderr, stderr)
