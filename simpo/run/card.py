"""The model card that a run leaves beside its model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from simpo.objectives import OBJECTIVES
from simpo.run.manifest import AnySettings
from simpo.settings import RunSettings
from simpo.settings.oldnames import show

_CITATION = """\
```bibtex
@inproceedings{meng2024simpo,
  title     = {{SimPO}: Simple Preference Optimization with a Reference-Free Reward},
  author    = {Meng, Yu and Xia, Mengzhou and Chen, Danqi},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2405.14734}
}
```"""


def model_card(settings: RunSettings, manifest: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Markdown with the hub's metadata: objective, hyper-parameters, data, metrics, citation."""
    args, base = settings.training, settings.model.model_name_or_path
    spec = OBJECTIVES[args.objective]
    sources = list(settings.data.dataset_mixer or {})
    meta = hub_metadata(settings, [args.objective, "preference-optimization", "alignment"])
    name = Path(str(args.output_dir)).name
    batch = manifest["effective_batch"]
    hyper = {
        "learning rate": f"{args.learning_rate:g}",
        "objective": spec.title,
        **{name: show(value) for name, value in args.objective_settings.items()},
        "sft_weight": f"{args.sft_weight:g}",
        "pairs per step": batch["pairs_per_step"],
        "devices": batch["devices"],
        "epochs": f"{args.num_train_epochs:g}",
        "schedule": f"{args.lr_scheduler_type}, warm-up {args.warmup_steps:g}",
        "max length (prompt)": f"{args.max_length} ({args.max_prompt_length})",
        "tokenization": args.tokenization,
        "weights": manifest["master_dtype"],
        "seed": args.seed,
    }
    data = [f"- {source}" for source in sources]
    packages = ", ".join(f"{key} {value}" for key, value in manifest["packages"].items() if value)
    return "\n".join(
        [
            "---", yaml.safe_dump(meta, sort_keys=True).strip(), "---", "",
            f"# {name}", "",
            f"`{base}` tuned on preferences with {spec.title} ([arXiv {spec.paper}](https://arxiv.org/abs/{spec.paper})).",
            "",
            "## Settings", "", table(("setting", "value"), hyper), "",
            "## Data", "", *data, "",
            "## Metrics", "", table(("metric", "value"), {key: f"{value:.4g}" for key, value in metrics.items()}), "",
            f"Made with {packages}. `run_manifest.json` holds every setting, hash and version.", "",
            "## Citation", "", _CITATION, "",
        ]
    )  # fmt: skip


def hub_metadata(settings: AnySettings, tags: list[str]) -> dict[str, Any]:
    """What the hub reads at the head of a card; local paths are left out."""
    base, sources = settings.model.model_name_or_path, list(settings.data.dataset_mixer or {})
    meta: dict[str, Any] = {
        "library_name": "peft" if settings.model.use_peft else "transformers",
        "tags": tags,
        "pipeline_tag": "text-generation",
    }
    if base and not Path(base).exists():
        meta["base_model"] = base
    hub = [source for source in sources if not Path(source).exists()]
    if hub:
        meta["datasets"] = hub
    return meta


def table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    """A Markdown table of two columns."""
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows.items()])
