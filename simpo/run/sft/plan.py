"""What an SFT run is about to do, and the card that it leaves, for people to read."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from simpo.run.card import hub_metadata, table
from simpo.run.plan import remote_code_row, schedule_line
from simpo.run.sft.config import SFTSettings
from simpo.run.sft.settings import SFTRunSettings


def packs_of(rows: int, tokens: int, args: SFTSettings) -> int:
    """About how many rows are trained on, once they are packed; best-fit packing leaves little empty."""
    return max(1, math.ceil(tokens / args.max_length)) if args.packing else rows


def total_steps(rows: int, args: SFTSettings) -> int:
    """Optimizer steps of the whole run on so many rows or packs."""
    assert args.total_train_batch_size is not None  # set in __post_init__
    an_epoch = math.ceil(rows / args.total_train_batch_size)
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch)


def plan_lines(
    settings: SFTRunSettings,
    *,
    model_line: str,
    rows: int,
    eval_rows: int,
    exact: bool,
    data_lines: Iterable[str],
    master_dtype: str,
    engine: str,
) -> list[str]:
    """The plan of an SFT run.

    Args:
        settings: of the run.
        model_line: what is trained.
        rows, eval_rows: rows or packs to train and to evaluate on.
        exact: whether they are counted, or estimated from a sample.
        data_lines: what was dropped and cut, by cause.
        master_dtype: sentence on the dtype of the weights.
        engine: what drives the run.
    """
    args = settings.training
    about = "" if exact else "about "
    unit = f"packs of up to {args.max_length:,} tokens" if args.packing else f"rows of up to {args.max_length:,} tokens"
    steps = total_steps(rows, args)
    learnt = "answers with their end of turn" if args.assistant_only_loss else "every token"
    entries = [
        ("model", model_line),
        *remote_code_row(settings),
        ("weights", master_dtype),
        ("objective", f"SFT: mean negative log-likelihood of {learnt}"),
        ("rows", f"{about}{rows:,} {unit} to train, evaluation: {f'{about}{eval_rows:,}' if eval_rows else 'none'}"),
        (
            "batch",
            f"{args.world_size} x {args.per_device_train_batch_size} rows x {args.gradient_accumulation_steps} "
            f"micro-batches = {args.total_train_batch_size} a step",
        ),
        ("steps", f"{about}{steps:,} optimizer steps"),
        ("schedule", schedule_line(args, steps)),
        ("engine", engine),
        ("output", str(args.output_dir)),
    ]
    lines = ["Plan", *(f"  {name:<10} {value}" for name, value in entries), "Data"]
    lines += [f"  {line}" for line in data_lines]
    if settings.conversions:
        lines += ["Converted settings", *(f"  {line}" for line in settings.conversions)]
    return lines


def sft_card(settings: SFTRunSettings, manifest: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Markdown with the hub's metadata: hyper-parameters, data, metrics, and how to go on from here."""
    args, base = settings.training, settings.model.model_name_or_path
    hyper = {
        "learning rate": f"{args.learning_rate:g}",
        "rows per step": args.total_train_batch_size,
        "epochs": f"{args.num_train_epochs:g}",
        "schedule": f"{args.lr_scheduler_type}, warm-up {args.warmup_steps:g}",
        "max length": args.max_length,
        "packing": args.packing,
        "assistant_only_loss": args.assistant_only_loss,
        "weights": manifest["master_dtype"],
        "seed": args.seed,
    }
    packages = ", ".join(f"{key} {value}" for key, value in manifest["packages"].items() if value)
    name = str(args.output_dir).rstrip("/").rsplit("/", 1)[-1]
    return "\n".join(
        [
            "---", yaml.safe_dump(hub_metadata(settings, ["simpo", "sft"]), sort_keys=True).strip(), "---", "",
            f"# {name}", "",
            f"`{base}` after supervised fine-tuning, to start a preference run from: `model_name_or_path: {name}`.", "",
            "## Settings", "", table(("setting", "value"), hyper), "",
            "## Data", "", *(f"- {source}" for source in settings.data.dataset_mixer or {}), "",
            "## Metrics", "", table(("metric", "value"), {key: f"{value:.4g}" for key, value in metrics.items()}), "",
            f"Made with {packages}. `run_manifest.json` holds every setting, hash and version.", "",
        ]
    )  # fmt: skip
