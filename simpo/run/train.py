"""One training run, from settings to a finished folder."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from simpo.audit.inspect import SAMPLE_ROWS, SampleCheck, check_sample, sample_rows
from simpo.batching import PlanSummary
from simpo.config import PreferenceConfig
from simpo.data.chat import resolve_chat_template
from simpo.data.load import load_mix
from simpo.data.tokenize import TokenizeReport, tokenized
from simpo.errors import ConfigError
from simpo.forward import attention_backend
from simpo.initial_policy import named_sets
from simpo.model import load_model_config, load_tokenizer, master_dtype
from simpo.objectives import OBJECTIVES
from simpo.run.builds import remove_stale_locks
from simpo.run.card import model_card
from simpo.run.checkpoints.engines import check_writer
from simpo.run.checkpoints.faults import check_writable, saving_into
from simpo.run.checkpoints.resume import choose_checkpoint
from simpo.run.checkpoints.training import train_safely
from simpo.run.export import export_model, push_folder
from simpo.run.folder import remove_earlier_run
from simpo.run.guard import guard_rails, stop_on_problems, told_before
from simpo.run.interrupt import Interruption, command_again, interruptible
from simpo.run.logfile import LogFile
from simpo.run.manifest import build_manifest, run_identity, write_manifest
from simpo.run.owner import Owner, owner_of
from simpo.run.parallelism import check_parallelism
from simpo.run.plan import model_line, plan_lines
from simpo.run.watch.heartbeat import Heartbeat, heartbeat
from simpo.settings import Advice, RunSettings
from simpo.trainer import PreferenceTrainer

logger = logging.getLogger(__name__)


def run_training(
    settings: RunSettings,
    *,
    dry_run: bool = False,
    overwrite: bool = False,
    resume_from_checkpoint: str | bool | None = None,
    audit: bool = True,
    strict: bool = False,
) -> None:
    """Check everything, print the plan, train, evaluate, and leave the model with all that is needed to repeat it.

    Args:
        settings: from `simpo.settings.read_settings`.
        dry_run: stop after the plan; tokenise only a sample of the data.
        overwrite: start afresh in an output folder that holds something.
        resume_from_checkpoint: a checkpoint's path, True for the last one, False for none; None goes on from an
            interrupted run in the output folder where there is one.
        audit: stop where a sample of the data fails a check of `simpo inspect`.
        strict: stop at warnings too, of these checks and of the guard rails.

    Raises:
        Interrupted: a signal ended it; the same call goes on.
        SimPOError: what is wrong, where, and what to write instead.
    """
    with interruptible(command_again(overwrite, resume_from_checkpoint)) as interruption:
        if dry_run:
            _show_plan(settings, overwrite, resume_from_checkpoint, audit, strict)
            return
        _begin(settings)
        check_engine(settings.training)
        folder = settings.training.output_dir or ""
        check_writable(folder)
        with owner_of(folder) as owner:
            owner.take_existing()
            with heartbeat(settings.training) as pulse, interruption.noted_in(folder):
                _run(settings, interruption, owner, pulse, overwrite, resume_from_checkpoint, audit, strict)


def _show_plan(
    settings: RunSettings, overwrite: bool, resume_from_checkpoint: str | bool | None, audit: bool, strict: bool
) -> None:
    """What a run would do, by a sample of its data."""
    args = settings.training
    _begin(settings)
    check_engine(args)
    _, folder_note = choose_checkpoint(args, resume_from_checkpoint, overwrite, dry_run=True)
    inputs = _read_inputs(settings, audit=audit, strict=strict)
    sample = _sample_report(inputs.train, inputs.evaluation, inputs.tokenizer, args)
    _print_plan(settings, inputs, *sample, notes=[*folder_note, *inputs.warnings])


def _run(
    settings: RunSettings,
    interruption: Interruption,
    owner: Owner,
    pulse: Heartbeat | None,
    overwrite: bool,
    resume_from_checkpoint: str | bool | None,
    audit: bool,
    strict: bool,
) -> None:
    args = settings.training
    checkpoint, folder_note = choose_checkpoint(args, resume_from_checkpoint, overwrite, dry_run=False)
    inputs = _read_inputs(settings, audit=audit, strict=strict)
    trainer = _build_trainer(settings, inputs)
    reports = [report for report in (trainer.train_report, *trainer.eval_reports.values()) if report is not None]
    plan = trainer.plan_summary()
    pairs = _pairs(trainer.train_dataset), _pairs(trainer.eval_dataset)
    _print_plan(settings, inputs, *pairs, reports, trainer, plan, notes=[*folder_note, *inputs.warnings])
    PartialState().wait_for_everyone()  # every process has looked at the folder before one writes into it
    owner.take()
    if overwrite and checkpoint is None and PartialState().is_main_process:
        remove_earlier_run(args.output_dir or "")
    trainer.add_callback(interruption)  # before those that ask at the end of a step whether it is saved
    if pulse is not None:
        pulse.follow(trainer)
    _train(trainer, settings, inputs, reports, plan, checkpoint, interruption)


def run_reference(settings: RunSettings) -> None:
    """Compute and keep the log-probs of the initial policy that a run with these settings will use.

    Args:
        settings: of the run.

    Raises:
        ConfigError: the objective needs none.
        SimPOError: what is wrong, where, and what to write instead.
    """
    args = settings.training
    if not (OBJECTIVES[args.objective].reference or args.log_kl):
        raise ConfigError(
            f"objective: {args.objective} needs no log-probs of the initial policy; write log_kl: true to log "
            "log-ratios to it all the same"
        )
    _begin(settings)
    trainer = _build_trainer(settings, _read_inputs(settings, audit=False))
    trainer.compute_references()
    for name, data in named_sets(trainer.train_dataset, trainer.eval_dataset).items():
        references = trainer.loaders.packs_of(data).references
        means = ", ".join(f"{key} {values.mean():.2f}" for key, values in references.items())
        say(f"{name}: {_pairs(data):,} pairs; mean log-probs in nats: {means}")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


class _Inputs(NamedTuple):
    """What a run is made from, before any weight is read."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    evaluation: Dataset | None
    warnings: Sequence[str]
    advice: list[Advice]
    origin: Callable[[int], str]


def _begin(settings: RunSettings) -> None:
    quiet_libraries(settings.training)
    set_seed(settings.training.seed)
    _merge_init_kwargs(settings)


def _read_inputs(settings: RunSettings, *, audit: bool, strict: bool = False) -> _Inputs:
    args, name = settings.training, str(settings.model.model_name_or_path)
    hub: dict[str, Any] = {
        "revision": settings.model.model_revision,
        "trust_remote_code": settings.model.trust_remote_code,
    }
    config = load_model_config(name, **hub)
    tokenizer = load_tokenizer(name, **hub)
    own_template = tokenizer.chat_template
    template = resolve_chat_template(settings.data.chat_template, tokenizer)
    if template is not None:  # saved with the model, so that it is used at inference too
        tokenizer.chat_template = template
    with args.main_process_first(desc="reading data"):
        train, evaluation, mix = load_mix(settings.data, seed=args.seed)
        look = SampleCheck()
        if audit:
            look = check_sample(train, evaluation, tokenizer, own_template, args, mix.numbers)
    advice = guard_rails(settings, config, train, evaluation, look.lengths)
    stop_on_problems(look.findings, advice, strict=strict)
    return _Inputs(config, tokenizer, train, evaluation, look.warnings, advice, mix.origin)


def _build_trainer(settings: RunSettings, inputs: _Inputs) -> PreferenceTrainer:
    trainer = PreferenceTrainer(
        model=str(settings.model.model_name_or_path),
        args=settings.training,
        train_dataset=inputs.train,
        eval_dataset=inputs.evaluation,
        processing_class=inputs.tokenizer,
        peft_config=settings.model.peft_config(),
        quantization_config=settings.model.quantization_config(),
    )
    trainer.name_row = inputs.origin
    return trainer


def check_engine(args: TrainingArguments) -> None:
    """Refuse an engine that would leave no model behind, or that cuts sequences; every process must call it.

    What would let DeepSpeed wait for ever is put right.

    Raises:
        ConfigError: ZeRO-3 does not gather its weights at saving; one sequence is split over devices; checkpoints would
            be written while the training goes on.
    """
    check_parallelism(args)
    check_writer(args)
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:
        remove_stale_locks()
    if plugin is None or plugin.zero_stage != 3:
        return
    gather = plugin.deepspeed_config.get("zero_optimization", {}).get("stage3_gather_16bit_weights_on_model_save")
    if gather in (False, None):
        raise ConfigError(
            "ZeRO-3 without gathering leaves no model behind: set zero3_save_16bit_model: true in the accelerate "
            "config (stage3_gather_16bit_weights_on_model_save in a DeepSpeed config)"
        )


def quiet_libraries(args: TrainingArguments) -> None:
    """Library messages by `log_level`; ours at info on the main process."""
    level = args.get_process_log_level()
    transformers.utils.logging.set_verbosity(level)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("simpo").setLevel(level)


def _merge_init_kwargs(settings: RunSettings) -> None:
    model = settings.model
    given = settings.training.model_init_kwargs or {}
    assert isinstance(given, dict)  # PreferenceConfig parsed it
    named = {"dtype": model.dtype, "revision": model.model_revision, "trust_remote_code": model.trust_remote_code}
    settings.training.model_init_kwargs = {key: value for key, value in named.items() if value} | given


def _sample_report(
    train: Dataset, evaluation: Dataset | None, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig
) -> tuple[int, int, list[TokenizeReport]]:
    """Tokenise a sample of each set; pair counts are extrapolated from it."""
    counts, reports = [], []
    for name, data in (("train", train), ("eval", evaluation)):
        if data is None:
            counts.append(0)
            continue
        sample = data.select(sample_rows(data, SAMPLE_ROWS))
        kept, report = tokenized(sample, tokenizer, args, name)
        counts.append(round(len(data) * len(kept) / len(sample)))
        if report is not None:
            report.desc = f"{name}, a sample of {len(sample):,} of {len(data):,} rows"
            reports.append(report)
    return counts[0], counts[1], reports


def _print_plan(
    settings: RunSettings,
    inputs: _Inputs,
    train_pairs: int,
    eval_pairs: int,
    reports: Iterable[TokenizeReport],
    trainer: PreferenceTrainer | None = None,
    plan: PlanSummary | None = None,
    notes: Iterable[str] = (),
) -> None:
    args = settings.training
    if not PartialState().is_main_process:
        return
    if trainer is None:
        options = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
        _, weights = master_dtype(
            options.get("dtype"),
            full_fine_tuning=not settings.model.use_peft,
            deepspeed=getattr(args, "deepspeed_plugin", None) is not None,
            bf16=bool(args.bf16),
            fp16=args.fp16,
        )
    else:
        weights = trainer.master_dtype_note
    attention = attention_backend(inputs.config, args.attn_backend, args.device, args.compute_dtype)
    lines = plan_lines(
        settings,
        model_line=model_line(str(settings.model.model_name_or_path), inputs.config, settings),
        train_pairs=train_pairs,
        eval_pairs={"eval": eval_pairs} if eval_pairs else {},
        data_lines=[line for report in reports for line in report.lines()],
        plan=plan,
        master_dtype=weights,
        engine=f"{engine_name(args, trainer)}, attention by {attention}",
        advice=inputs.advice,
    )
    print("\n".join([*lines, *notes]), flush=True)


def engine_name(args: TrainingArguments, trainer: Trainer | None = None) -> str:
    """What drives the run: one process, DDP, DeepSpeed with its stage, or FSDP, on how many processes."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:
        return f"DeepSpeed ZeRO-{plugin.zero_stage} on {args.world_size} processes"
    launched = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")  # before there is an accelerator
    if launched if trainer is None else trainer.accelerator.distributed_type == DistributedType.FSDP:
        return f"FSDP on {args.world_size} processes"
    return "one process" if args.world_size == 1 else f"DDP on {args.world_size} processes"


def _train(
    trainer: PreferenceTrainer,
    settings: RunSettings,
    inputs: _Inputs,
    reports: Iterable[TokenizeReport],
    plan: PlanSummary,
    checkpoint: Path | None,
    interruption: Interruption,
) -> None:
    args, tokenizer = settings.training, trainer.processing_class
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    identity = run_identity(settings, tokenizer, trainer.train_dataset)
    trainer.add_callback(LogFile())
    manifest = build_manifest(
        settings,
        tokenizer,
        train_dataset=trainer.train_dataset,
        plan=plan,
        data_report={report.desc: dataclasses.asdict(report) for report in reports},
        master_dtype=trainer.master_dtype_note,
        engine=engine_name(args, trainer),
        resumed_from=checkpoint,
    )
    manifest |= told_before(settings, inputs.advice, inputs.warnings)
    result = train_safely(
        trainer,
        identity=identity,
        checkpoint=checkpoint,
        manifest=manifest,
        interruption=interruption,
        settings=settings.resolved,
    )
    metrics = dict(result.metrics, train_pairs=_pairs(trainer.train_dataset))
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    with saving_into(str(args.output_dir), keep=checkpoint):
        export_model(trainer, str(args.output_dir))  # before the evaluation: whatever happens there, the model is safe
    if trainer.eval_dataset is not None:
        evaluated = trainer.evaluate() | {"eval_pairs": _pairs(trainer.eval_dataset)}
        trainer.log_metrics("eval", evaluated)
        trainer.save_metrics("eval", evaluated)
        metrics |= evaluated
    if trainer.is_world_process_zero():
        manifest |= {"status": "finished", "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "metrics": metrics}
        Path(str(args.output_dir), "README.md").write_text(model_card(settings, manifest, metrics))
        write_manifest(str(args.output_dir), manifest)  # last: it says that everything else is there
    if args.push_to_hub and trainer.is_world_process_zero():
        push_folder(trainer, str(args.output_dir))
    trainer.accelerator.wait_for_everyone()  # no process closes its connections while another still writes
    say(f"Done: {args.output_dir}")
    trainer.accelerator.end_training()


def _pairs(dataset: Any) -> int:
    return 0 if dataset is None else len(dataset)


def say(text: str) -> None:
    """Print once, however many processes there are."""
    if PartialState().is_main_process:
        print(text, flush=True)
