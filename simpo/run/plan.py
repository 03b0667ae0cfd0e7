"""What is about to happen, in a few lines, before it costs anything."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import TrainingArguments

from simpo.batching import PlanSummary
from simpo.config import PreferenceConfig
from simpo.objectives import OBJECTIVES
from simpo.run.manifest import AnySettings, settings_text
from simpo.settings import Advice, RunSettings, recommendations
from simpo.settings.oldnames import show
from simpo.weights import remote_code_line


def steps_per_epoch(pairs: int, args: PreferenceConfig) -> int:
    """Optimizer steps in one pass over `pairs` pairs; the last may hold fewer."""
    assert args.total_train_batch_size is not None
    cut = math.floor if args.dataloader_drop_last else math.ceil
    return cut(pairs / args.total_train_batch_size)


def total_steps(pairs: int, args: PreferenceConfig) -> int:
    """Optimizer steps of the whole run."""
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch(pairs, args))


def plan_lines(
    settings: RunSettings,
    *,
    model_line: str,
    train_pairs: int,
    eval_pairs: Mapping[str, int],
    data_lines: Iterable[str],
    plan: PlanSummary | None,
    master_dtype: str,
    engine: str,
    advice: Sequence[Advice] = (),
) -> list[str]:
    """The plan of a run for people to read.

    Args:
        settings: of the run.
        model_line: what is trained.
        train_pairs: pairs that remain for training.
        eval_pairs: the same for each evaluation set.
        data_lines: what was dropped and cut, by cause.
        plan: how an epoch is cut into micro-batches; None before all data are tokenised.
        master_dtype: sentence on the dtype of the weights.
        engine: what drives the run.
        advice: what is known to go wrong with these settings.
    """
    args = settings.training
    steps = total_steps(train_pairs, args)
    evaluation = ", ".join(f"{name} {pairs:,}" for name, pairs in eval_pairs.items()) or "none"
    rows = [
        ("model", model_line),
        *remote_code_row(settings),
        ("weights", master_dtype),
        ("objective", _objective(args)),
        ("pairs", f"{train_pairs:,} to train, evaluation: {evaluation}"),
        ("lengths", f"max_length {args.max_length}, max_prompt_length {args.max_prompt_length}, {args.tokenization}"),
        ("batch", _batch(args)),
        *([("cut", str(plan))] if plan is not None else []),
        (
            "steps",
            f"{steps:,} optimizer steps ({_epochs(train_pairs, args)})",
        ),
        ("schedule", schedule_line(args, steps)),
        ("engine", engine),
        ("output", str(args.output_dir)),
    ]
    lines = ["Plan"]
    lines += [f"  {name:<10} {value}" for name, value in rows]
    lines += ["Data", *(f"  {line}" for line in data_lines)]
    lines += ["Chosen and recommended", *(f"  {line}" for line in recommendations(settings, advice))]
    if advice:
        lines += ["Guard rails", *(f"  {line}" for one in advice for line in one.lines())]
    if settings.conversions:
        lines += ["Converted settings", *(f"  {line}" for line in settings.conversions)]
    if settings.composed:
        lines += ["Settings, all files and overrides together"]
        lines += [f"  {line}" for line in settings_text(settings.resolved).splitlines()]
    return lines


def remote_code_row(settings: AnySettings) -> list[tuple[str, str]]:
    """A line of the plan where code that comes with the model is run; none otherwise."""
    model = settings.model
    if not model.trust_remote_code:
        return []
    return [("code", remote_code_line(str(model.model_name_or_path), model.model_revision))]


def _objective(args: PreferenceConfig) -> str:
    spec = OBJECTIVES[args.objective]
    values = ", ".join(
        f"{name} {show(value)}" for name, value in args.objective_settings.items() if value or value == 0.0
    )
    gamma = f" (gamma {args.gamma:g})" if args.gamma else ""
    sft = f", sft_weight {args.sft_weight:g}" if args.sft_weight else ""
    reference = "; log-probs of the initial policy are computed first" if spec.reference or args.log_kl else ""
    return f"{spec.title}: {values}{gamma}{sft}{reference}"


def _batch(args: PreferenceConfig) -> str:
    sharing = "prompts shared" if args.prefix_sharing else "prompts repeated"
    if args.max_tokens_per_microbatch is not None:
        size = f"micro-batches of up to {args.max_tokens_per_microbatch:,} tokens"
    else:
        pairs = args.per_device_train_batch_size
        count = args.micro_batches_per_step
        at_most = "up to " if count > 1 else ""
        size = f"{at_most}{_count(count, 'micro-batch')} x about {_count(pairs, 'pair')}"
    return f"{_count(args.world_size, 'device')} x {size} = {args.total_train_batch_size} pairs a step ({sharing})"


def _epochs(pairs: int, args: PreferenceConfig) -> str:
    epochs = total_steps(pairs, args) / max(1, steps_per_epoch(pairs, args))
    return f"{epochs:.3g} x {steps_per_epoch(pairs, args):,} an epoch"


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def schedule_line(args: TrainingArguments, steps: int) -> str:
    """Kind of schedule, peak learning rate and warm-up of a run of so many steps."""
    kind = str(args.lr_scheduler_type).removeprefix("SchedulerType.").lower()
    return f"{kind}, peak {args.learning_rate:g} after {args.get_warmup_steps(steps)} warm-up steps"


def model_line(name: str, config: Any, settings: AnySettings) -> str:
    """Name, architecture and what of it is trained."""
    text = config.get_text_config()
    model = settings.model
    trained = "all weights"
    if model.use_peft:
        quantised = "4-bit " if model.load_in_4bit else "8-bit " if model.load_in_8bit else ""
        trained = (
            f"LoRA rank {model.lora_r} on {model.lora_target_modules or 'the default modules'}, {quantised}base frozen"
        )
    shape = f"{config.model_type}, {text.num_hidden_layers} layers x {text.hidden_size}, vocabulary {text.vocab_size:,}"
    return f"{name} ({shape}); {trained}"
