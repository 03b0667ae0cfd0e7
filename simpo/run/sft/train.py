"""One SFT run, from settings to a folder that a preference run starts from."""

import copy
import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import is_flash_attn_2_available
from trl import SFTTrainer

from simpo.audit.inspect import SAMPLE_ROWS, sample_rows
from simpo.data.chat import inspect_template, own_template, resolve_chat_template
from simpo.data.dialogue_ids import DialogueOptions, DialogueReport, tokenize_dialogues
from simpo.data.dialogues import load_dialogues
from simpo.data.fingerprint import rows_fingerprint
from simpo.errors import ConfigError
from simpo.model import load_causal_lm, load_model_config, load_tokenizer, master_dtype
from simpo.run.attempt import Attempt, RunRecord, attempt
from simpo.run.checkpoints.resume import choose_checkpoint
from simpo.run.engine import check_engine, engine_name
from simpo.run.folder import check_kept
from simpo.run.interrupt import command_again, interruptible
from simpo.run.manifest import identity_of, shared_manifest
from simpo.run.messages import quiet_libraries, say
from simpo.run.plan import model_line
from simpo.run.sft.config import SFTSettings
from simpo.run.sft.plan import packs_of, plan_lines, sft_card
from simpo.run.sft.settings import SFTRunSettings

logger = logging.getLogger(__name__)

# Settings that fix which numbers a run computes. Which packs meet in a micro-batch is not among them.
_IDENTITY = (
    "max_length", "packing", "packing_strategy", "assistant_only_loss", "add_empty_system", "loss_type",
    "total_train_batch_size", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "num_train_epochs", "max_steps", "optim", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2",
    "adam_epsilon", "bf16", "fp16", "seed", "data_seed", "dataloader_drop_last",
)  # fmt: skip


class _Trainer(SFTTrainer):
    """TRL's trainer, without the card that it writes over ours at every checkpoint."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Leave it to the end of the run."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As transformers', less its pickle of the arguments, which nobody reads: settings stand in the manifest."""
        super()._save(output_dir, state_dict)
        Path(str(output_dir or self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)


def run_sft(
    settings: SFTRunSettings,
    *,
    dry_run: bool = False,
    overwrite: bool = False,
    resume_from_checkpoint: str | bool | None = None,
) -> None:
    """Check everything, print the plan, train, evaluate, and leave a model that a preference run starts from.

    Args:
        settings: from `read_sft_settings`.
        dry_run: stop after the plan; tokenise only a sample of the data.
        overwrite: start afresh in an output folder that holds something.
        resume_from_checkpoint: a checkpoint's path, True for the last one, False for none; None goes on from an
            interrupted run in the output folder where there is one.

    Raises:
        Interrupted: a signal ended it; the same call goes on.
        SimPOError: what is wrong, where, and what to write instead.
    """
    with interruptible(command_again(overwrite, resume_from_checkpoint)) as interruption:
        args = settings.training
        quiet_libraries(args)
        set_seed(args.seed)
        check_engine(args)
        if overwrite:
            check_kept(str(args.output_dir), str(settings.model.model_name_or_path))
        if dry_run:
            _show_plan(settings, choose_checkpoint(args, resume_from_checkpoint, overwrite, dry_run=True)[1])
            return
        with attempt(args, interruption, overwrite=overwrite, resume=resume_from_checkpoint) as run:
            _run(settings, run)


class _Counted(NamedTuple):
    """Rows or packs that are trained on and evaluated on, and what became of the conversations."""

    train: int
    evaluation: int
    reports: list[DialogueReport]


def _show_plan(settings: SFTRunSettings, notes: list[str]) -> None:
    """What a run would do, by a sample of its data."""
    args = settings.training
    config, tokenizer = _load_tokenizer(settings)
    with args.main_process_first(desc="reading data"):
        train, evaluation, _ = load_dialogues(settings.data, args.seed, args.dataset_num_proc)
        _print_plan(settings, config, _sampled(train, evaluation, tokenizer, args), notes)


def _run(settings: SFTRunSettings, run: Attempt) -> None:
    args = settings.training
    config, tokenizer = _load_tokenizer(settings)
    with args.main_process_first(desc="reading data"):
        train, evaluation, _ = load_dialogues(settings.data, args.seed, args.dataset_num_proc)
        rows, reports = _tokenized(train, evaluation, tokenizer, args)
    model = _load_model(settings)
    _stop_after_answers(model, tokenizer)
    trainer = _build_trainer(settings, model, tokenizer, rows)
    count = len(trainer.train_dataset)
    counted = _Counted(count, len(trainer.eval_dataset) if evaluation is not None else 0, reports)
    _print_plan(settings, config, counted, run.notes, exact=True)
    identity = identity_of(settings, trainer.processing_class, _IDENTITY) | {"train_rows": count, "stage": "sft"}
    identity |= {"train_rows_hash": rows_fingerprint(trainer.train_dataset, ("input_ids", "labels"))}
    run.train(
        trainer,
        RunRecord(
            identity=identity,
            manifest=_manifest(trainer, settings, reports, run.checkpoint),
            card=partial(sft_card, settings),
            counts={"train": {"train_rows": count}},
            message="Model after supervised fine-tuning",
        ),
    )


def _hub_options(settings: SFTRunSettings) -> dict[str, Any]:
    return {"revision": settings.model.model_revision, "trust_remote_code": settings.model.trust_remote_code}


def _load_tokenizer(settings: SFTRunSettings) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    name, hub = str(settings.model.model_name_or_path), _hub_options(settings)
    config, tokenizer = load_model_config(name, **hub), load_tokenizer(name, **hub)
    template = resolve_chat_template(settings.data.chat_template, tokenizer)
    if template is not None:  # saved with the model, so that it is used at inference and in the preference run
        tokenizer.chat_template = template
    return config, tokenizer


def _options(args: SFTSettings) -> DialogueOptions:
    return DialogueOptions(args.max_length, args.assistant_only_loss, args.add_empty_system)


def _tokenized(
    train: Dataset, evaluation: Dataset | None, tokenizer: PreTrainedTokenizerBase, args: SFTSettings
) -> tuple[dict[str, Dataset], list[DialogueReport]]:
    rows, reports = {}, []
    for name, data in (("train", train), ("eval", evaluation)):
        if data is not None:
            rows[name], report = tokenize_dialogues(
                data, tokenizer, _options(args), num_proc=args.dataset_num_proc, desc=name
            )
            reports.append(report)
    return rows, reports


def _sampled(
    train: Dataset, evaluation: Dataset | None, tokenizer: PreTrainedTokenizerBase, args: SFTSettings
) -> _Counted:
    """Tokenise a sample of each set; counts of rows or packs are extrapolated from it."""
    counts, reports = [0, 0], []
    for at, (name, data) in enumerate((("train", train), ("eval", evaluation))):
        if data is None:
            continue
        sample = data.select(sample_rows(data, SAMPLE_ROWS))
        _, report = tokenize_dialogues(sample, tokenizer, _options(args), desc=name)
        share = len(data) / len(sample)
        counts[at] = packs_of(round(share * report.kept), round(share * report.tokens), args)
        report.desc = f"{name}, a sample of {len(sample):,} of {len(data):,} rows"
        reports.append(report)
    return _Counted(counts[0], counts[1], reports)


def choose_attention(requested: str | None, args: SFTSettings) -> str | None:
    """The attention that the run uses: what is asked for, else flash-attn where it serves, else transformers' choice.

    All of them keep packed conversations apart: flash-attn by their bounds, SDPA and eager attention by a mask that
    transformers makes of the positions, of (tokens of a micro-batch)^2 entries.
    """
    if requested is not None:
        return requested
    in_16_bits = args.bf16 or args.fp16
    return "flash_attention_2" if in_16_bits and args.device.type == "cuda" and is_flash_attn_2_available() else None


def _weights(settings: SFTRunSettings) -> tuple[torch.dtype | str, str]:
    args = settings.training
    return master_dtype(
        settings.model.dtype,
        full_fine_tuning=not settings.model.use_peft,
        deepspeed=getattr(args, "deepspeed_plugin", None) is not None,
        bf16=bool(args.bf16),
        fp16=args.fp16,
    )


def _load_model(settings: SFTRunSettings) -> PreTrainedModel:
    args = settings.training
    given = args.model_init_kwargs or {}
    if not isinstance(given, dict):
        raise ConfigError(f"model_init_kwargs: {given!r} is not a mapping; write {{name: value}} or JSON")
    options = {
        "dtype": _weights(settings)[0],
        "attn_implementation": choose_attention(settings.model.attn_implementation, args),
        "quantization_config": settings.model.quantization_config(),
        **_hub_options(settings),
    }
    return load_causal_lm(str(settings.model.model_name_or_path), **(options | given))


def _stop_after_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generation stop at the EOS and at the token that the template ends an answer with, which is what is learnt.

    A base model's own list knows its EOS only: Llama-3's would not stop at <|eot_id|>.
    """
    generation = model.generation_config
    assert generation is not None  # every causal language model has one
    known = generation.eos_token_id
    stops = [known] if isinstance(known, int) else list(known or [])
    ends = [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        ends.append(inspect_template(tokenizer, own_template(tokenizer)).end_of_turn)
    generation.eos_token_id = [*stops, *(end for end in dict.fromkeys(ends) if end is not None and end not in stops)]


def _build_trainer(
    settings: SFTRunSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: dict[str, Dataset]
) -> Any:
    args = copy.copy(settings.training)
    args.assistant_only_loss = False  # the labels say it already; TRL would look for conversations
    args.model_init_kwargs = None  # the model is loaded
    if args.n_gpu > 1:  # torch.nn.DataParallel would cut packs in pieces
        logger.warning(
            "%d GPUs are visible to one process; using the first. Start with `accelerate launch`", args.n_gpu
        )
        args._n_gpu = 1
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:  # the shipped files say 1, since preference runs accumulate by themselves
        plugin.gradient_accumulation_steps = args.gradient_accumulation_steps
        plugin.deepspeed_config["gradient_accumulation_steps"] = args.gradient_accumulation_steps
    try:
        return _Trainer(
            model=model,
            args=args,
            train_dataset=rows["train"],
            eval_dataset=rows.get("eval"),
            processing_class=tokenizer,
            peft_config=settings.model.peft_config(),
        )
    except ValueError as error:
        raise ConfigError(f"TRL refuses these settings: {error}") from error


def _print_plan(
    settings: SFTRunSettings, config: PretrainedConfig, counted: _Counted, notes: list[str], *, exact: bool = False
) -> None:
    args = settings.training
    attention = choose_attention(settings.model.attn_implementation, args) or "sdpa (eager where a model has none)"
    lines = plan_lines(
        settings,
        model_line=model_line(str(settings.model.model_name_or_path), config, settings),
        rows=counted.train,
        eval_rows=counted.evaluation,
        exact=exact,
        data_lines=[line for report in counted.reports for line in report.lines()],
        master_dtype=_weights(settings)[1],
        engine=f"{engine_name(args)}, attention by {attention}",
    )
    if args.packing and not attention.startswith(("flash", "kernels")):
        tokens = args.per_device_train_batch_size * args.max_length
        lines.append(
            f"  packs without flash-attn need a mask of up to {tokens:,} x {tokens:,} tokens for each micro-batch"
        )
    say("\n".join([*lines, *notes]))


def _manifest(
    trainer: Any, settings: SFTRunSettings, reports: list[DialogueReport], checkpoint: Path | None
) -> dict[str, Any]:
    args, tokenizer, first = settings.training, trainer.processing_class, trainer.train_dataset[0]
    learnt = [token for token in first["labels"] if token >= 0]
    return {
        "stage": "sft",
        **shared_manifest(
            settings,
            tokenizer,
            data_report={report.desc: dataclasses.asdict(report) for report in reports},
            master_dtype=_weights(settings)[1],
            engine=engine_name(args, trainer),
            resumed_from=checkpoint,
        ),
        "effective_batch": {
            "rows_per_step": args.total_train_batch_size,
            "devices": args.world_size,
            "micro_batches_per_device": args.gradient_accumulation_steps,
        },
        "generation_stops_at": tokenizer.convert_ids_to_tokens(trainer.model.generation_config.eos_token_id),
        "first_row": {
            "input_ids": list(map(int, first["input_ids"])),
            "text": tokenizer.decode(first["input_ids"]),
            "learnt": tokenizer.decode(learnt),
        },
    }
