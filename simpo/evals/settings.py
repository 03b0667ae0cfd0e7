"""Settings of the benchmarks whose answers a judge reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simpo.checks import is_number
from simpo.errors import ConfigError
from simpo.evals.decoding import SETTINGS
from simpo.evals.results import default_folder, model_name
from simpo.sampling.settings import COUNT, PolicySettings, Rules
from simpo.settings.nested import nearest

Answered = Literal["alpaca_eval", "arena_hard", "mt_bench"]

_RULES: Rules = {
    "temperature": (lambda v: v is None or (is_number(v) and v >= 0), "must be 0 or more"),
    "top_p": (lambda v: v is None or (is_number(v) and 0 < v <= 1), "must be above 0 and at most 1"),
    **dict.fromkeys(("max_new_tokens", "max_questions"), COUNT),
}
_OWN = {
    ("alpaca_eval",): ("df_gamed", "alpaca_eval_python"),
    ("alpaca_eval", "arena_hard"): ("baseline_answers",),
    ("mt_bench",): ("references",),
}


@dataclass(kw_only=True)
class EvalSettings(PolicySettings):
    """What `simpo eval alpaca_eval`, `arena_hard` and `mt_bench` are told, beside which model it is and where it runs.

    Args:
        benchmark: which one.
        questions: file of the benchmark's questions; None: the official one, from the hub.
        output_dir: where answers, judgments and results go; None: outputs/eval/NAME/BENCHMARK.
        name: of the model in files and tables; None: the last part of model_name_or_path.
        setting: which published setting is decoded as; None: that of the model it was trained from, if known.
        temperature, top_p, max_new_tokens: None: as published for the benchmark and setting.
        system_message: put before each question; None: as published, which is none but for Mistral-Base
            on AlpacaEval.
        seed: of sampling.
        max_questions: at most so many, from the first on; the numbers are then no benchmark result.
        retry_errors: ask again what came to an error in an earlier start.
        judge: name of the judge on its servers, for AlpacaEval of an annotator of alpaca_eval; None: the official one,
            for MT-Bench both; `none` stops at the answers.
        judge_urls: servers of the judge; None: OpenAI's.
        judge_api_key_env: environment variable that holds the judge's key; None: OPENAI_API_KEY where OpenAI's servers
            are asked, else none.
        judge_max_in_flight: requests to the judge under way at once.
        judge_timeout, judge_retries, judge_patience: as server_timeout, server_retries and server_patience.
        price_in, price_out: dollars for a million tokens asked and answered; None: the shipped table, where it has the
            judge.
        max_excluded: warn where more than so many percent of the judgments had to be left out.
        baseline_answers: file of the baseline's answers; None: the official one, from the hub.
        references: folder with JUDGE.jsonl, the reference answers of MT-Bench; None: GPT-4's, from the hub.
        df_gamed: file that the length-controlled win rate needs; None: from the hub.
        alpaca_eval_python: interpreter that has alpaca_eval; None: this one.

    Raises:
        ConfigError: a setting is missing or out of bounds, or two contradict each other.
    """

    benchmark: Answered
    questions: str | None = None
    output_dir: str | None = None
    name: str | None = None
    setting: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    system_message: str | None = None
    seed: int = 42
    max_questions: int | None = None
    retry_errors: bool = False
    judge: str | None = None
    judge_urls: list[str] | None = None
    judge_api_key_env: str | None = None
    judge_max_in_flight: int = 16
    judge_timeout: float = 600.0
    judge_retries: int = 6
    judge_patience: float = 600.0
    price_in: float | None = None
    price_out: float | None = None
    max_excluded: float = 1.0
    baseline_answers: str | None = None
    references: str | None = None
    df_gamed: str | None = None
    alpaca_eval_python: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must_hold(_RULES)
        if self.setting is not None and self.setting not in SETTINGS:
            raise ConfigError(f"setting: {self.setting!r} is unknown: {nearest(self.setting, SETTINGS)}")
        if self.benchmark == "mt_bench" and self.temperature is not None:
            raise ConfigError("temperature: MT-Bench sets one for each category; leave it out")
        for benchmark, keys in _OWN.items():
            given = [key for key in keys if getattr(self, key) is not None]
            if given and self.benchmark not in benchmark:
                raise ConfigError(f"{given[0]}: is not used by {self.benchmark}; leave it out")
        if self.name is None:
            self.name = model_name(self.model_name_or_path)
        if "/" in self.name or not self.name.strip("."):
            raise ConfigError(f"name: {self.name!r} becomes a file's name; write one without /")
        if self.output_dir is None:
            self.output_dir = default_folder(self.name, self.benchmark)
