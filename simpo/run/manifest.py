"""`run_manifest.json`: everything that one needs to repeat a run, or to see why a repeat differs."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from transformers import PreTrainedTokenizerBase, TrainingArguments

from simpo.batching import PlanSummary
from simpo.config import ModelSettings, PreferenceConfig
from simpo.data.config import DataConfig
from simpo.data.fingerprint import rows_fingerprint
from simpo.data.schema import TOKEN_COLUMNS
from simpo.redact import redact, redact_command, without_secrets
from simpo.run.folder import MANIFEST, SETTINGS
from simpo.settings import RunSettings

_PACKAGES = (
    "simpo", "torch", "transformers", "trl", "accelerate", "datasets", "peft", "deepspeed", "tokenizers", "flash-attn",
    "bitsandbytes", "numpy",
)  # fmt: skip

# Settings that fix which numbers a run computes. How a step is cut (devices, engine, micro-batch) is not among them.
_IDENTITY = (
    "objective", "sft_weight", "max_length", "max_prompt_length", "tokenization", "add_empty_system",
    "total_train_batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps", "lr_scheduler_kwargs",
    "num_train_epochs", "max_steps", "optim", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2",
    "adam_epsilon", "bf16", "fp16", "seed", "data_seed",
    "dataloader_drop_last", "disable_dropout",
)  # fmt: skip


class AnySettings(Protocol):
    """What every kind of run was told."""

    @property
    def model(self) -> ModelSettings:
        """What is trained."""

    @property
    def data(self) -> DataConfig:
        """What is read."""

    @property
    def training(self) -> TrainingArguments:
        """How it is trained."""

    @property
    def resolved(self) -> dict[str, Any]:
        """Every setting that was given."""

    @property
    def conversions(self) -> list[str]:
        """Old names that were converted."""

    @property
    def files(self) -> list[Path]:
        """Settings files."""


def run_identity(settings: RunSettings, tokenizer: PreTrainedTokenizerBase, pairs: Any) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that goes on from it."""
    identity = identity_of(settings, tokenizer, _IDENTITY) | settings.training.objective_settings
    return identity | {"train_pairs": len(pairs), "train_pairs_hash": rows_fingerprint(pairs)}


def identity_of(settings: AnySettings, tokenizer: PreTrainedTokenizerBase, keys: tuple[str, ...]) -> dict[str, Any]:
    """The part of an identity that every kind of run has: training settings by their names, model and tokenizer."""
    identity: dict[str, Any] = {key: getattr(settings.training, key) for key in keys}
    identity["lr_scheduler_type"] = str(identity["lr_scheduler_type"]).removeprefix("SchedulerType.").lower()
    identity["optim"] = str(identity["optim"]).removeprefix("OptimizerNames.").lower()
    model = settings.model
    identity |= {
        "model_name_or_path": model.model_name_or_path,
        "model_revision": model.model_revision,
        "lora": [model.lora_r, model.lora_alpha, model.lora_dropout, model.lora_target_modules]
        if model.use_peft
        else None,
        "quantised": model.load_in_4bit or model.load_in_8bit,
        "tokenizer": tokenizer_hash(tokenizer),
        "chat_template": text_hash(tokenizer.chat_template),
    }
    return identity


def text_hash(text: Any) -> str | None:
    """First 16 hex digits of the SHA-256 of a text; None for None."""
    if text is None:
        return None
    content = text if isinstance(text, str) else json.dumps(text, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hash of the vocabulary, merges and special tokens, wherever the tokenizer lies on disk."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return text_hash(backend.to_str() + json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str))
    return text_hash(json.dumps(tokenizer.get_vocab(), sort_keys=True))


def rendered_example(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """How the chat template renders a small conversation; None without a template."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there."}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def package_versions() -> dict[str, str | None]:
    """Versions of what a run stands on; None where a package is absent."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in _PACKAGES}


def git_commit(folder: Path) -> str | None:
    """Commit of the checkout that holds `folder`, with "+changes" where files differ from it; None outside one."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def effective_batch(args: PreferenceConfig, plan: PlanSummary) -> dict[str, float]:
    """How a step of pairs is spread over devices and micro-batches, on average."""
    assert args.total_train_batch_size is not None
    micro_batches = plan.micro_batches / max(1, plan.steps)
    return {
        "pairs_per_step": args.total_train_batch_size,
        "devices": args.world_size,
        "micro_batches_per_device": round(micro_batches, 3),
        "tokens_per_epoch": plan.tokens,
        "longest_micro_batch_tokens": plan.longest,
        "imbalance": round(plan.imbalance, 4),
    }


def pairs_manifest(
    args: PreferenceConfig, tokenizer: PreTrainedTokenizerBase, pairs: Any, plan: PlanSummary
) -> dict[str, Any]:
    """The part of a manifest that a run on pairs has."""
    first = [pairs[row] for row in range(min(2, len(pairs)))]
    return {
        "gamma": args.gamma,
        "effective_batch": effective_batch(args, plan),
        "first_pairs": [
            {key: list(map(int, pair[key])) for key in TOKEN_COLUMNS}
            | {f"{key[:-4]}_text": tokenizer.decode(pair[key]) for key in TOKEN_COLUMNS}
            for pair in first
        ],
    }


def shared_manifest(
    settings: AnySettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data_report: dict[str, Any],
    master_dtype: str,
    engine: str,
    resumed_from: Path | None,
) -> dict[str, Any]:
    """The part of the manifest of a run that is about to start that every kind of run has."""
    return {
        "status": "running",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": redact_command(sys.argv),
        "files": redact([str(path) for path in settings.files]),
        "settings": settings.resolved,
        "conversions": redact(settings.conversions),
        "engine": engine,
        "master_dtype": master_dtype,
        "resumed_from": str(resumed_from) if resumed_from else None,
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "simpo_commit": git_commit(Path(__file__).parent),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "chat_template_hash": text_hash(tokenizer.chat_template),
        "rendered_example": rendered_example(tokenizer),
        "data": data_report,
    }


def write_manifest(output_dir: str | Path, manifest: dict[str, Any]) -> None:
    """Write the manifest in one piece: a reader sees the old one or the new one."""
    path = Path(output_dir) / MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n")
    part.replace(path)


def note_interruption(output_dir: str | Path) -> None:
    """Let the manifest say that a signal ended the run; nothing is done where there is none, or the run is finished."""
    with contextlib.suppress(OSError, ValueError):
        manifest = json.loads((Path(output_dir) / MANIFEST).read_text())
        if manifest.get("status") != "finished":
            write_manifest(output_dir, manifest | {"status": "interrupted"})


def settings_text(resolved: Mapping[str, Any]) -> str:
    """The settings of a run as one YAML file that repeats it; secrets are left out."""
    kept = without_secrets(resolved)
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120)
    return text + "".join(f"# {key} is not kept here\n" for key in resolved if key not in kept)


def write_settings(output_dir: str | Path, resolved: Mapping[str, Any]) -> None:
    """Write `settings.yaml`: all files and overrides of a run as one, converted to present names."""
    Path(output_dir, SETTINGS).write_text(settings_text(resolved), encoding="utf-8")
