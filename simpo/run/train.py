"""One training run, from settings to a finished folder."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from accelerate import PartialState
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase, set_seed

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
from simpo.run.attempt import Attempt, RunRecord, attempt
from simpo.run.card import model_card
from simpo.run.checkpoints.resume import choose_checkpoint
from simpo.run.engine import check_engine, engine_name
from simpo.run.folder import check_kept
from simpo.run.guard import guard_rails, stop_on_problems, told_before
from simpo.run.interrupt import command_again, interruptible
from simpo.run.logfile import LogFile
from simpo.run.manifest import pairs_manifest, run_identity, shared_manifest
from simpo.run.messages import quiet_libraries, say
from simpo.run.plan import model_line, plan_lines
from simpo.settings import Advice, RunSettings
from simpo.trainer import PreferenceTrainer


class _Inputs(NamedTuple):
    """What a run is made from, before any weight is read."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    evaluation: Dataset | None
    warnings: Sequence[str]
    advice: list[Advice]
    origin: Callable[[int], str]


class _Counted(NamedTuple):
    """Pairs that are trained on and evaluated on, and what became of the rows."""

    train: int
    evaluation: int
    reports: Sequence[TokenizeReport]


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
        args = settings.training
        _begin(settings)
        check_engine(args)
        if overwrite:
            check_kept(str(args.output_dir), str(settings.model.model_name_or_path))
        if dry_run:
            _, notes = choose_checkpoint(args, resume_from_checkpoint, overwrite, dry_run=True)
            inputs = _read_inputs(settings, audit=audit, strict=strict)
            _print_plan(settings, inputs, _sampled(inputs, args), notes=notes)
            return
        with attempt(args, interruption, overwrite=overwrite, resume=resume_from_checkpoint) as run:
            _run(settings, run, _read_inputs(settings, audit=audit, strict=strict))


def _run(settings: RunSettings, run: Attempt, inputs: _Inputs) -> None:
    trainer = _build_trainer(settings, inputs)
    trainer.is_interrupted = lambda: run.interruption.stopped
    reports = [report for report in (trainer.train_report, *trainer.eval_reports.values()) if report is not None]
    counted = _Counted(_pairs(trainer.train_dataset), _pairs(trainer.eval_dataset), reports)
    plan = trainer.plan_summary()
    _print_plan(settings, inputs, counted, trainer, plan, notes=run.notes)
    tokenizer = trainer.processing_class
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    identity = run_identity(settings, tokenizer, trainer.train_dataset)
    manifest = shared_manifest(
        settings,
        tokenizer,
        data_report={report.desc: dataclasses.asdict(report) for report in reports},
        master_dtype=trainer.master_dtype_note,
        engine=engine_name(settings.training, trainer),
        resumed_from=run.checkpoint,
    )
    manifest |= pairs_manifest(settings.training, tokenizer, trainer.train_dataset, plan)
    manifest |= told_before(settings, inputs.advice, inputs.warnings)
    trainer.add_callback(LogFile())
    run.train(
        trainer,
        RunRecord(
            identity=identity,
            manifest=manifest,
            card=partial(model_card, settings),
            counts={"train": {"train_pairs": counted.train}, "eval": {"eval_pairs": counted.evaluation}},
            settings=settings.resolved,
        ),
    )


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


def _merge_init_kwargs(settings: RunSettings) -> None:
    model = settings.model
    given = settings.training.model_init_kwargs or {}
    assert isinstance(given, dict)  # PreferenceConfig parsed it
    named = {"dtype": model.dtype, "revision": model.model_revision, "trust_remote_code": model.trust_remote_code}
    settings.training.model_init_kwargs = {key: value for key, value in named.items() if value} | given


def _sampled(inputs: _Inputs, args: PreferenceConfig) -> _Counted:
    """Tokenise a sample of each set; pair counts are extrapolated from it."""
    counts, reports = [], []
    for name, data in (("train", inputs.train), ("eval", inputs.evaluation)):
        if data is None:
            counts.append(0)
            continue
        sample = data.select(sample_rows(data, SAMPLE_ROWS))
        kept, report = tokenized(sample, inputs.tokenizer, args, name)
        counts.append(round(len(data) * len(kept) / len(sample)))
        if report is not None:
            report.desc = f"{name}, a sample of {len(sample):,} of {len(data):,} rows"
            reports.append(report)
    return _Counted(counts[0], counts[1], reports)


def _print_plan(
    settings: RunSettings,
    inputs: _Inputs,
    counted: _Counted,
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
        train_pairs=counted.train,
        eval_pairs={"eval": counted.evaluation} if counted.evaluation else {},
        data_lines=[line for report in counted.reports for line in report.lines()],
        plan=plan,
        master_dtype=weights,
        engine=f"{engine_name(args, trainer)}, attention by {attention}",
        advice=inputs.advice,
    )
    print("\n".join([*lines, *notes, *inputs.warnings]), flush=True)


def _pairs(dataset: Any) -> int:
    return 0 if dataset is None else len(dataset)
