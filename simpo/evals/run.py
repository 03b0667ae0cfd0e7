"""One benchmark, from settings to results: answers, judgments, `results.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simpo.errors import ConfigError, DataError
from simpo.evals.answers import Answered, write_answers
from simpo.evals.decoding import ALPACA_EVAL, ARENA_HARD, MT_BENCH
from simpo.evals.downstream import DownstreamSettings, run_downstream
from simpo.evals.judges import arena_hard, mt_bench
from simpo.evals.judges.alpaca_eval import ANNOTATOR, AlpacaEvalSettings, check_installed, judge_alpaca_eval
from simpo.evals.judges.arena_hard import ArenaHardSettings, judge_arena_hard
from simpo.evals.judges.judging import JudgeServer
from simpo.evals.judges.mt_bench import MTBenchSettings, judge_mt_bench
from simpo.evals.layouts import file_name
from simpo.evals.pairs.measure import run_pairs
from simpo.evals.pairs.settings import PairsSettings
from simpo.evals.questions import BASELINES, REFERENCES, SIZES, official_file
from simpo.evals.results import Metric, Result, write_result
from simpo.evals.settings import EvalSettings
from simpo.sampling.loop import Processes
from simpo.settings.flat import Paths, read_flat

_OPENAI = ("https://api.openai.com/v1",)
_SERVER_NAMES = {
    "base_urls": "judge_urls", "api_key_env": "judge_api_key_env", "max_in_flight": "judge_max_in_flight",
    "timeout": "judge_timeout", "retries": "judge_retries", "patience": "judge_patience",
}  # fmt: skip  # in messages


AnyBenchmark = EvalSettings | PairsSettings | DownstreamSettings


def read_eval_settings(benchmark: str, files: Paths, overrides: Sequence[str] = ()) -> AnyBenchmark:
    """Read and check the settings of `simpo eval BENCHMARK`.

    Raises:
        ConfigError: with file and line, setting, value, and what to write instead.
    """
    if benchmark == "pairs":
        return read_flat(PairsSettings, files, overrides)
    if benchmark == "downstream":
        return read_flat(DownstreamSettings, files, overrides)
    return read_flat(EvalSettings, files, [f"--benchmark={benchmark}", *overrides])


def run_eval(settings: AnyBenchmark) -> list[Result]:
    """Evaluate and print the results; what an earlier call has finished is not done again, but for `pairs`.

    Returns:
        The results as in the output folder: one for each judge, in JUDGE/results.json; none with `judge: none`, and on
        processes other than the first.

    Raises:
        SimPOError: with what to do about it. What was done stays.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    if isinstance(settings, PairsSettings):
        results = [run_pairs(settings)]
    elif isinstance(settings, DownstreamSettings):
        results = run_downstream(settings)
    else:
        results = _answer_and_judge(settings)
    if not first:
        return []
    for result in results:
        print("\n".join(result_lines(result)))
    if results:
        print(f"in {settings.output_dir}; simpo compare shows results side by side")
    return results


def _answer_and_judge(settings: EvalSettings) -> list[Result]:
    judge = None if settings.judge == "none" else _Judging(settings)  # its key is looked for before anything is asked
    answered = write_answers(settings)
    if judge is None or Processes(settings).rank > 0:
        return []
    results = [_with_answers(result, settings, answered) for result in judge.run(answered)]
    for result in results:
        write_result(Path(str(settings.output_dir)) / file_name(str(result.judge)), result)
    return results


class _Judging:
    """The judge of a benchmark, made from one set of settings."""

    def __init__(self, settings: EvalSettings) -> None:
        urls = tuple(settings.judge_urls or _OPENAI)
        key = settings.judge_api_key_env or ("OPENAI_API_KEY" if urls == _OPENAI else None)
        try:
            self.server = JudgeServer(
                urls,
                api_key_env=key,
                max_in_flight=settings.judge_max_in_flight,
                timeout=settings.judge_timeout,
                retries=settings.judge_retries,
                patience=settings.judge_patience,
                price_in=settings.price_in,
                price_out=settings.price_out,
                retry_errors=settings.retry_errors,
                max_excluded=settings.max_excluded,
            )
        except ConfigError as error:
            name, colon, text = str(error).partition(":")
            hint = "" if settings.judge else " (--judge none stops at the answers)"
            raise ConfigError(f"{_SERVER_NAMES.get(name, name)}{colon}{text}{hint}") from error
        self.settings = settings
        self.folder = str(Path(str(settings.output_dir)) / "judged")  # AlpacaEval's; else beside the answers
        self.judges = tuple([settings.judge] if settings.judge else mt_bench.JUDGES)
        # What the judge needs is looked for before anything is asked.
        for key in ("baseline_answers", "df_gamed", "alpaca_eval_python"):
            if getattr(settings, key) is not None and not Path(getattr(settings, key)).is_file():
                raise ConfigError(f"{key}: there is no file {getattr(settings, key)}")
        self.baseline = settings.baseline_answers or ""
        if settings.benchmark == ARENA_HARD and not self.baseline:
            self.baseline = str(official_file(BASELINES[ARENA_HARD], "baseline_answers"))
        if settings.benchmark == ALPACA_EVAL:
            if len(urls) > 1:
                raise ConfigError("judge_urls: alpaca_eval asks one address; write one")
            check_installed(settings.alpaca_eval_python)
        self.references = settings.references or ""
        if settings.benchmark == MT_BENCH:
            self.references = self.references or str(official_file(REFERENCES[MT_BENCH], "references").parent)
            for name in self.judges:
                mt_bench.reference_file(self.references, name)

    def run(self, answered: Answered) -> list[Result]:
        judge, questions, answers = self.settings.judge, str(answered.question_file), str(answered.file)
        beside = str(answered.question_file.parent)  # where the official programs look for model_judgment
        if self.settings.benchmark == ALPACA_EVAL:
            if answered.missing:
                raise DataError(
                    f"{len(answered.missing)} questions have no answer, and alpaca_eval knows them by their place: "
                    "ask them again with --retry_errors, or look at what is said of them above"
                )
            return [judge_alpaca_eval(self._alpaca_eval(answered))]
        if self.settings.benchmark == ARENA_HARD:
            return [
                judge_arena_hard(
                    ArenaHardSettings(questions, answers, self.baseline, beside, judge or arena_hard.JUDGE, self.server)
                )
            ]
        return judge_mt_bench(MTBenchSettings(questions, answers, self.references, beside, self.judges, self.server))

    def _alpaca_eval(self, answered: Answered) -> AlpacaEvalSettings:
        settings = self.settings
        return AlpacaEvalSettings(
            str(answered.file),
            self.folder,
            baseline_answers=settings.baseline_answers,
            df_gamed=settings.df_gamed,
            python=settings.alpaca_eval_python,
            annotator=settings.judge or ANNOTATOR,
            server=self.server,
        )


def _with_answers(result: Result, settings: EvalSettings, answered: Answered) -> Result:
    """The same with how the answers came to be, and what a reader must know of them."""
    warnings = []
    asked, official = len(answered.questions), SIZES[settings.benchmark]
    if asked != official:
        warnings.append(f"{asked} questions were asked; the benchmark has {official}")
    if answered.missing:
        warnings.append(f"{len(answered.missing)} questions have no answer and are left out")
    if answered.cut:
        warnings.append(f"{answered.cut} answers were cut at their bound of length")
    metrics = dict(result.metrics)
    if answered.lengths is not None:
        metrics["tokens"] = Metric(answered.lengths, "tokens")
    return replace(
        result,
        metrics=metrics,
        settings={**result.settings, "answers": answered.decoding},
        warnings=[*result.warnings, *warnings],
    )


def result_lines(result: Result) -> list[str]:
    """A result for people."""
    judge = f", judged by {result.judge}" if result.judge else ""
    lines = [f"{result.benchmark}: {result.model}{judge}"]
    for name, metric in result.metrics.items():
        around = (
            f"  [{metric.low:.2f}, {metric.high:.2f}]" if metric.low is not None and metric.high is not None else ""
        )
        error = f"  (standard error {metric.stderr:.2f})" if metric.stderr is not None and not around else ""
        lines.append(f"  {name:18} {metric.value:8.2f} {metric.unit}{around}{error}")
    if result.counts:
        lines.append("  " + ", ".join(f"{name} {count:,}" for name, count in result.counts.items()))
    return [*lines, *(f"  warning: {text}" for text in result.warnings)]
