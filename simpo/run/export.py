"""The trained model, where `from_pretrained` and vLLM find it."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from simpo.run.folder import MANIFEST, REPORT, SIGNS


def push_folder(trainer: Trainer, folder: str, message: str = "Model trained with SimPO") -> None:
    """Upload the finished folder without its checkpoints and without what quotes the data.

    Those are report, samples, and the first pairs of the manifest.
    """
    # not Trainer.push_to_hub, which would write the float32 masters and a card of its own over what is there
    from huggingface_hub import upload_file, upload_folder

    target: dict[str, Any] = {"repo_id": str(trainer.hub_model_id), "token": trainer.args.hub_token}
    left_out = ["checkpoint-*", REPORT, MANIFEST, "monitor/*", f"{SIGNS}/*"]
    upload_folder(folder_path=folder, commit_message=message, ignore_patterns=left_out, **target)
    manifest = json.loads(Path(folder, MANIFEST).read_text())
    manifest.pop("first_pairs", None)
    content = json.dumps(manifest, indent=2).encode()
    upload_file(path_or_fileobj=content, path_in_repo=MANIFEST, commit_message=message, **target)


def export_model(trainer: Trainer, folder: str) -> None:
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
    accelerator.wait_for_everyone()


def _in_16_bits(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to("cpu", dtype) if value.is_floating_point() else value.cpu()


def _record_dtype(config_file: Path, dtype: torch.dtype) -> None:
    # save_pretrained records the dtype of the weights in memory, which are the float32 masters
    config: dict[str, Any] = json.loads(config_file.read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
