"""One training run, from settings to a finished folder."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from simpo.audit.inspect import SAMPLE_ROWS, check_sample, sample_rows
from simpo.batching import PlanSummary
from simpo.config import SimPOConfig
from simpo.data.chat import resolve_chat_template
from simpo.data.load import load_datasets
from simpo.data.tokenize import TokenizeReport, tokenized
from simpo.errors import ConfigError
from simpo.forward import attention_backend
from simpo.model import load_model_config, load_tokenizer, master_dtype
from simpo.run.card import model_card
from simpo.run.folder import CheckpointCallback, check_identity, find_checkpoint, remove_earlier_run
from simpo.run.logfile import LogFile
from simpo.run.manifest import build_manifest, run_identity, write_manifest
from simpo.run.plan import model_line, plan_lines
from simpo.settings import RunSettings
from simpo.trainer import SimPOTrainer

logger = logging.getLogger(__name__)


def run_training(
    settings: RunSettings,
    *,
    dry_run: bool = False,
    overwrite: bool = False,
    resume_from_checkpoint: str | bool | None = None,
    audit: bool = True,
) -> None:
    """Check everything, print the plan, train, evaluate, and leave the model with all that is needed to repeat it.

    Args:
        settings: from `simpo.settings.read_settings`.
        dry_run: stop after the plan; tokenise only a sample of the data.
        overwrite: start afresh in an output folder that holds something.
        resume_from_checkpoint: a checkpoint's path, True for the last one, False for none; None goes on from an
            interrupted run in the output folder where there is one.
        audit: stop where a sample of the data fails a check of `simpo inspect`.

    Raises:
        SimPOError: what is wrong, where, and what to write instead.
    """
    args = settings.training
    _quiet(args)
    set_seed(args.seed)
    _merge_init_kwargs(settings)
    _check_engine(args)
    checkpoint, folder_note = _checkpoint_of(args, resume_from_checkpoint, overwrite, dry_run)
    name = str(settings.model.model_name_or_path)
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
        train, evaluation = load_datasets(settings.data, seed=args.seed)
        warnings = check_sample(train, evaluation, tokenizer, own_template, args) if audit else []
    if dry_run:
        sample = _sample_report(train, evaluation, tokenizer, args)
        _print_plan(settings, config, *sample, notes=[*folder_note, *warnings])
        return
    trainer = SimPOTrainer(
        model=name,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        peft_config=settings.model.peft_config(),
        quantization_config=settings.model.quantization_config(),
    )
    reports = [report for report in (trainer.train_report, *trainer.eval_reports.values()) if report is not None]
    plan = trainer.plan_summary()
    pairs = _pairs(trainer.train_dataset), _pairs(trainer.eval_dataset)
    _print_plan(settings, config, *pairs, reports, trainer, plan, notes=warnings)
    PartialState().wait_for_everyone()  # every process has looked at the folder before one writes into it
    if overwrite and checkpoint is None and PartialState().is_main_process:
        remove_earlier_run(args.output_dir or "")
    _train(trainer, settings, reports, plan, checkpoint)


def _check_engine(args: SimPOConfig) -> None:
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != 3:
        return
    gather = plugin.deepspeed_config.get("zero_optimization", {}).get("stage3_gather_16bit_weights_on_model_save")
    if gather in (False, None):
        raise ConfigError(
            "ZeRO-3 without gathering leaves no model behind: set zero3_save_16bit_model: true in the accelerate "
            "config (stage3_gather_16bit_weights_on_model_save in a DeepSpeed config)"
        )


def _checkpoint_of(
    args: SimPOConfig, resume: str | bool | None, overwrite: bool, dry_run: bool
) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from. A dry run only notes what would stop the run here."""
    try:
        checkpoint = find_checkpoint(args.output_dir or "", resume, overwrite=overwrite)
    except ConfigError as error:
        if not dry_run:
            raise
        return None, [f"! {error}"]
    return checkpoint, [f"goes on from {checkpoint}"] if checkpoint else []


def _quiet(args: SimPOConfig) -> None:
    """Library messages by `log_level`; ours at info on the main process."""
    level = args.get_process_log_level()
    transformers.utils.logging.set_verbosity(level)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("simpo").setLevel(level)


def _merge_init_kwargs(settings: RunSettings) -> None:
    model = settings.model
    given = settings.training.model_init_kwargs or {}
    assert isinstance(given, dict)  # SimPOConfig parsed it
    named = {"dtype": model.dtype, "revision": model.model_revision, "trust_remote_code": model.trust_remote_code}
    settings.training.model_init_kwargs = {key: value for key, value in named.items() if value} | given


def _sample_report(
    train: Dataset, evaluation: Dataset | None, tokenizer: PreTrainedTokenizerBase, args: SimPOConfig
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
    config: PretrainedConfig,
    train_pairs: int,
    eval_pairs: int,
    reports: Iterable[TokenizeReport],
    trainer: SimPOTrainer | None = None,
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
    attention = attention_backend(config, args.attn_backend, args.device, args.compute_dtype)
    lines = plan_lines(
        settings,
        model_line=model_line(str(settings.model.model_name_or_path), config, settings),
        train_pairs=train_pairs,
        eval_pairs={"eval": eval_pairs} if eval_pairs else {},
        data_lines=[line for report in reports for line in report.lines()],
        plan=plan,
        master_dtype=weights,
        engine=f"{engine_name(args, trainer)}, attention by {attention}",
    )
    print("\n".join([*lines, *notes]), flush=True)


def engine_name(args: SimPOConfig, trainer: SimPOTrainer | None = None) -> str:
    """What drives the run: one process, DDP, DeepSpeed with its stage, or FSDP, on how many processes."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:
        return f"DeepSpeed ZeRO-{plugin.zero_stage} on {args.world_size} processes"
    launched = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")  # before there is an accelerator
    if launched if trainer is None else trainer.accelerator.distributed_type == DistributedType.FSDP:
        return f"FSDP on {args.world_size} processes"
    return "one process" if args.world_size == 1 else f"DDP on {args.world_size} processes"


def _train(
    trainer: SimPOTrainer,
    settings: RunSettings,
    reports: Iterable[TokenizeReport],
    plan: PlanSummary,
    checkpoint: Path | None,
) -> None:
    args, tokenizer = settings.training, trainer.processing_class
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    identity = run_identity(settings, tokenizer, trainer.train_dataset)
    if checkpoint is not None:
        check_identity(checkpoint, identity)
        _say(f"Going on from {checkpoint}")
    limit, args.save_total_limit = args.save_total_limit, None
    trainer.add_callback(CheckpointCallback(identity, limit))
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
    if trainer.is_world_process_zero():
        write_manifest(str(args.output_dir), manifest)
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    metrics = dict(result.metrics, train_pairs=_pairs(trainer.train_dataset))
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
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
        _push(trainer, str(args.output_dir))
    trainer.accelerator.wait_for_everyone()  # no process closes its connections while another still writes
    _say(f"Done: {args.output_dir}")
    trainer.accelerator.end_training()


def _push(trainer: SimPOTrainer, folder: str) -> None:
    # not Trainer.push_to_hub, which would write the float32 masters and a card of its own over what is there
    from huggingface_hub import upload_folder

    upload_folder(
        repo_id=str(trainer.hub_model_id),
        folder_path=folder,
        commit_message="Model trained with SimPO",
        token=trainer.args.hub_token,
        ignore_patterns=["checkpoint-*"],
    )


def export_model(trainer: SimPOTrainer, folder: str) -> None:
    """Write the trained model where `from_pretrained` and vLLM find it, in one place; every process must call it.

    Weights are gathered from all shards. A run that computes in 16 bits leaves 16-bit weights; its float32 masters stay
    in the checkpoints. An adapter is left as an adapter that names its base.
    """
    accelerator, args = trainer.accelerator, trainer.args
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    model = accelerator.unwrap_model(trainer.model_wrapped)
    compute = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    if hasattr(model, "config"):
        model.config.use_cache = True  # off while activations were recomputed; users generate with it
    if not isinstance(model, PreTrainedModel) or compute is None:
        trainer.save_model(folder, _internal_call=True)  # the whole folder is pushed at the end, if at all
        return
    state = accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        kept = {name: value for name, value in state.items() if name not in tied}
        model.save_pretrained(folder, state_dict={name: _in_16_bits(value, compute) for name, value in kept.items()})
        _record_dtype(Path(folder) / "config.json", compute)
        cast(PreTrainedTokenizerBase, trainer.processing_class).save_pretrained(folder)
        torch.save(args, Path(folder) / "training_args.bin")
    accelerator.wait_for_everyone()


def _in_16_bits(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to("cpu", dtype) if value.is_floating_point() else value.cpu()


def _record_dtype(config_file: Path, dtype: torch.dtype) -> None:
    # save_pretrained records the dtype of the weights in memory, which are the float32 masters
    config: dict[str, Any] = json.loads(config_file.read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _pairs(dataset: Any) -> int:
    return 0 if dataset is None else len(dataset)


def _say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)
