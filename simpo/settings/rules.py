"""The guard rails: what is known to go wrong, as data. `simpo.settings.lint` applies them.

A rule stands on something published: the paper, the authors' repository, or what follows from arithmetic. What nobody
has shown is no rule. docs/configuration.md lists them, and a test compares.
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from simpo.settings.case import CUT_SHARE, LONG_RUN, Case

Level = Literal["warning", "note"]

_HIGH, _BREAKS = 2e-6, 1e-5  # learning rates of full fine-tuning
_ADAPTER_HIGH = 5e-5  # no published bound: half of ten times _BREAKS
_SPARE = 2  # times the 99.9th percentile

_INSTRUCT = re.compile(r"(?<![a-z])(instruct|it|chat)(?![a-z])", re.IGNORECASE)
_OTHERS_ANSWERS = re.compile(r"ultrafeedback[-_]binarized|hh[-_]rlhf|orca[-_]dpo[-_]pairs|nectar", re.IGNORECASE)
# Math as a word, or as one within others as in OpenMathInstruct; not in Mathias, who has a home folder
_REASONING = re.compile(r"(?i:gsm8k|reasoning|metamath)|(?<![A-Za-z])maths?(?![a-z])|Maths?(?![a-z])|MATH")


class Rule(NamedTuple):
    """One thing that is known.

    Fields:
        name: of the rule.
        level: `warning` usually spoils a run, and stops it with --strict; `note` is to be known.
        setting: that it is about.
        condition: when it fires.
        message: what is so, and why it matters; `{case...}` stands for values.
        source: where that is known from.
        fix: the line of YAML to write instead, with `{case...}` likewise; "" where there is none.
    """

    name: str
    level: Level
    setting: str
    condition: Callable[[Case], bool]
    message: str
    source: str
    fix: str


_README = "SimPO repository, README, Hyperparameter tuning"
_README_SFT = "SimPO repository, README, Adding an extra SFT loss"

RULES: tuple[Rule, ...] = (
    Rule(
        "learning_rate_breaks", "warning", "learning_rate",
        lambda c: c.full and c.rate >= _BREAKS,
        "{case.rate:g} is a learning rate for adapters; with all weights trained, 1e-5 breaks the model: it answers "
        "incoherently or repeats itself",
        _README, "learning_rate: 1.0e-6",
    ),
    Rule(
        "learning_rate_high", "warning", "learning_rate",
        lambda c: c.full and _HIGH < c.rate < _BREAKS,
        "{case.rate:g} is more than twice the highest recommended one; both rewards then tend to fall fast, and "
        "answers end in repetition",
        f"{_README}; its issue 12", "learning_rate: 1.0e-6",
    ),
    Rule(
        "learning_rate_adapter_high", "warning", "learning_rate",
        lambda c: c.adapter and c.rate > _ADAPTER_HIGH,
        "{case.rate:g} is above 5e-5; the best rate of adapters is about ten times that of full training, here 1e-5. "
        "The bound is this project's own: ten times the rate at which full training breaks is 1e-4, and half of it is "
        "far enough from the best",
        "TRL documentation, LoRA Without Regret, for the ratio; the bound is this project's own",
        "learning_rate: 1.0e-5",
    ),
    Rule(
        "learning_rate_adapter_low", "warning", "learning_rate",
        lambda c: c.adapter and c.rate <= _HIGH,
        "{case.rate:g} is a learning rate for full training; the best rate of adapters is about ten times that",
        "TRL documentation, LoRA Without Regret", "learning_rate: 1.0e-5",
    ),
    Rule(
        "total_train_batch_size", "warning", "total_train_batch_size",
        lambda c: not c.small and c.training.total_train_batch_size != 128,
        "{case.training.total_train_batch_size} pairs a step; every published value was found at 128, and other sizes "
        "change the result",
        _README, "total_train_batch_size: 128  # without gradient_accumulation_steps",
    ),
    Rule(
        "beta_low", "warning", "beta",
        lambda c: c.simpo and bool(c.training.length_normalization) and (c.training.beta or 0) < 1,
        "{case.training.beta:g} is a beta of DPO; rewards are means over tokens here, and below 1 they hardly differ: "
        "the preference gets little weight",
        f"{_README}: 2 to 10", "beta: 2.0",
    ),
    Rule(
        "gamma_beta_ratio_high", "warning", "gamma_beta_ratio",
        lambda c: c.simpo and bool(c.training.length_normalization) and (c.training.gamma_beta_ratio or 0) > 1,
        "the loss asks for answers that differ by {case.training.gamma_beta_ratio:g} nats per token, beyond what the "
        "authors searched",
        f"{_README}: 0 to 1, starting at 0.5", "gamma_beta_ratio: 0.5  # without gamma",
    ),
    Rule(
        "half_precision_masters", "note", "dtype",
        lambda c: not c.model.use_peft and not c.deepspeed and c.dtype not in (None, "float32"),
        "{case.dtype} is not what the weights get: they are loaded as float32, since a step of 1e-6 changes no "
        "bfloat16 weight above 0.0005; bf16: true computes in bfloat16 all the same",
        "bfloat16 has 8 significant bits", "dtype: float32  # without the dtype of model_init_kwargs",
    ),
    Rule(
        "max_length_cuts", "warning", "max_length",
        lambda c: c.cut_share > CUT_SHARE,
        "{case.cut_share:.0%} of the pairs are longer than {case.training.max_length} tokens and are cut: they lose "
        "the beginning of the prompt or the ends of answers, and lengths are no longer the data's own",
        "docs/data.md, truncated", "{case.room}",
    ),
    Rule(
        "max_length_spare", "note", "max_length",
        lambda c: c.facts.lengths is not None and c.training.max_length > _SPARE * c.enough,
        "{case.training.max_length} is far above the data: of 1000 pairs one is longer than {case.longest} tokens. "
        "Nothing is padded, so it costs nothing; an outlier alone could fill the memory",
        "docs/performance.md", "max_length: {case.enough}",
    ),
    Rule(
        "tokenization_paper", "warning", "tokenization",
        lambda c: c.training.tokenization == "paper" and c.unpublished,
        "paper repeats the token ids of the published runs, faults included: the assistant's header is scored, and "
        "with a template that has a default system turn that too. {case.name} is none of their models",
        "docs/data.md, token ids", "tokenization: standard",
    ),
    Rule(
        "off_policy", "note", "dataset_mixer",
        lambda c: bool(_INSTRUCT.search(c.name) and _OTHERS_ANSWERS.search(c.hub_sources)),
        "{case.hub_sources}: answers of other models. For instruct models the authors sampled answers of the model "
        "itself, so that the data are nearer to what it says",
        "arXiv 2405.14734, section 3; docs/on-policy.md",
        "dataset_mixer: {{outputs/onpolicy/my-model/pairs: 1.0}}  # made by simpo onpolicy",
    ),
    Rule(
        "reasoning_rate", "note", "learning_rate",
        lambda c: c.full and 5e-7 < c.rate <= _HIGH and bool(_REASONING.search(c.sources)),
        "{case.sources} is about reasoning, where smaller learning rates such as 5e-7 did better",
        _README, "learning_rate: 5.0e-7",
    ),
    Rule(
        "reasoning_kept", "note", "sft_weight",
        lambda c: c.simpo and c.training.sft_weight == 0 and bool(_REASONING.search(c.sources)),
        "{case.sources} is about reasoning; a positive sft_weight kept more of it (GSM8K), and made chat worse. No "
        "value was published: 0.1 is a start",
        _README_SFT, "sft_weight: 0.1",
    ),
    Rule(
        "sft_weight_chat", "note", "sft_weight",
        lambda c: c.simpo and c.training.sft_weight > 0 and not _REASONING.search(c.sources),
        "{case.training.sft_weight:g} keeps reasoning (GSM8K) at the cost of chat quality",
        _README_SFT, "sft_weight: 0.0",
    ),
    Rule(
        "no_evaluation", "note", "test_size",
        lambda c: c.facts.eval_pairs == 0,
        "nothing is held out: the run cannot say how it does on pairs that it has not seen",
        "docs/data.md", "test_size: 0.02",
    ),
    Rule(
        "no_checkpoints", "note", "save_strategy",
        # with load_best_model_at_end, where checkpoints stand follows from the evaluations
        lambda c: (
            not (c.small or c.training.load_best_model_at_end)
            and c.steps > LONG_RUN
            and c.checkpoint_distance >= c.steps
        ),
        "no checkpoint before the end of {case.steps:,} steps: if the run is stopped, it begins anew",
        "training_configs/: every 200 steps", "{case.checkpoints}",
    ),
    Rule(
        "small_model", "note", "model_name_or_path",
        lambda c: c.small and (c.rate > _HIGH or c.training.total_train_batch_size != 128),
        "{case.name} has about {case.facts.parameters:,} parameters; the known values are of 7 to 9 billion, so "
        "learning_rate and total_train_batch_size are not judged",
        "arXiv 2405.14734, section 3", "",
    ),
)  # fmt: skip
"""All rules, in the order in which they are shown."""
