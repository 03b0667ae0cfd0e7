"""How answers are decoded, as published.

Sources: princeton-nlp/SimPO, eval/alpacaeval2/configs and eval/arenahard/configs; for Gemma tatsu-lab/alpaca_eval,
models_configs/gemma-2-9b-it-SimPO; for MT-Bench lm-sys/FastChat, fastchat/llm_judge (temperatures by category, 1024 new
tokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALPACA_EVAL, ARENA_HARD, MT_BENCH = "alpaca_eval", "arena_hard", "mt_bench"


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the answers of one benchmark are sampled.

    Args:
        temperature: 0 is greedy.
        top_p: keep the smallest set of most likely tokens with so much probability together.
        max_new_tokens: bound of an answer.
        stop_token_ids: tokens that end an answer, beside those of model and template.
        system_message: put before each question; None for none, which is not the same as an empty one.
        by_category: temperatures of the categories that have one of their own.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    system_message: str | None = None
    by_category: Mapping[str, float] | None = None

    def temperature_of(self, category: str | None) -> float:
        """The temperature for a question of a category."""
        return (self.by_category or {}).get(category or "", self.temperature)


@dataclass(frozen=True, slots=True)
class Setting:
    """What differs from one published setting to another.

    Args:
        alpaca_temperature: of AlpacaEval 2.
        alpaca_max_new_tokens: of AlpacaEval 2.
        stop_token_ids: named by the published configurations.
        system_message: of AlpacaEval's published prompt; for the other benchmarks none is published.
        initial_models: the models that the setting starts from, by hub name.
    """

    alpaca_temperature: float
    alpaca_max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    initial_models: tuple[str, ...]
    system_message: str | None = None


_LLAMA_3 = (128001, 128009)  # <|end_of_text|>, <|eot_id|>
SETTINGS = {
    "mistral-base": Setting(0.7, 2048, (), ("alignment-handbook/zephyr-7b-sft-full",), system_message=""),
    "mistral-instruct": Setting(0.5, 2048, (), ("mistralai/Mistral-7B-Instruct-v0.2",)),
    "llama3-base": Setting(0.9, 4096, _LLAMA_3, ("princeton-nlp/Llama-3-Base-8B-SFT",)),
    "llama3-instruct": Setting(0.9, 4096, _LLAMA_3, ("meta-llama/Meta-Llama-3-8B-Instruct",)),
    "gemma": Setting(0.5, 4096, (1, 107), ("google/gemma-2-9b-it",)),  # <eos>, <end_of_turn>
}
"""The published settings by name. Llama3-Instruct v0.2 is decoded as v0.1."""

DEFAULT_SETTING = Setting(0.9, 4096, (), ())
"""For models of none of the settings: as Llama 3, whose four settings of a temperature are the largest group."""

MT_BENCH_TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip


def find_setting(*models: str | None) -> str | None:
    """The published setting that the first known one of some models starts or stems from.

    >>> find_setting("outputs/mine", "google/gemma-2-9b-it")
    'gemma'
    >>> find_setting("princeton-nlp/Llama-3-Base-8B-SFT-SimPO")
    'llama3-base'
    """
    for model in models:
        for name, setting in SETTINGS.items():
            if model in setting.initial_models:
                return name
        published = [name for start, name in _PUBLISHED.items() if model is not None and model.startswith(start)]
        if published:
            return published[0]
    return None


_PUBLISHED = {
    "princeton-nlp/Mistral-7B-Base-SFT-": "mistral-base",
    "princeton-nlp/Mistral-7B-Instruct-": "mistral-instruct",
    "princeton-nlp/Llama-3-Base-8B-SFT-": "llama3-base",
    "princeton-nlp/Llama-3-Instruct-8B-": "llama3-instruct",
    "princeton-nlp/gemma-2-9b-it-": "gemma",
}  # how names of the published models begin


def decoding_of(benchmark: str, setting: str | None) -> Decoding:
    """The published decoding of a benchmark; `setting` is a key of `SETTINGS` or None."""
    own = SETTINGS[setting] if setting is not None else DEFAULT_SETTING
    stops, system = own.stop_token_ids, own.system_message
    if benchmark == ALPACA_EVAL:
        return Decoding(own.alpaca_temperature, 1.0, own.alpaca_max_new_tokens, stops, system)
    if benchmark == ARENA_HARD:
        return Decoding(0.0, 1.0, 4096, stops)
    assert benchmark == MT_BENCH
    return Decoding(0.7, 1.0, 1024, stops, by_category=MT_BENCH_TEMPERATURES)
