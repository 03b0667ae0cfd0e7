"""Scoring models from the hub or a directory: loaded whole, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from simpo.errors import ModelError
from simpo.onpolicy.annotators.kinds import Dtype
from simpo.weights import check_weights, loading_hint, remote_code_line


def load_scorer(
    owner: Any,
    name: str,
    device: torch.device,
    dtype: Dtype,
    revision: str | None,
    *,
    example: str,
    trust_remote_code: bool = False,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model with every one of its weights, on its device and ready to score, and its tokenizer.

    Args:
        owner: a model class with `from_pretrained`, or one of transformers' Auto classes.
        example: a model that would do, for messages.

    Raises:
        ModelError: something cannot be loaded, or a weight is not in the checkpoint (a language model without a scoring
            head would be given a random one).
    """
    if name.startswith(("/", ".", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"{name}: no such directory (looked for {Path(name).expanduser().absolute()})")
    if trust_remote_code:
        _offer_removed_names()
        PartialState().print(remote_code_line(name, revision))
    check_weights(name, revision)
    wanted = {"auto": torch.float32 if device.type == "cpu" else torch.bfloat16}.get(dtype) or getattr(torch, dtype)
    common = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    # a class takes no trust_remote_code: it is the code
    model_options = common if hasattr(owner, "_model_mapping") else {"revision": revision or "main"}
    model_options = model_options | {"dtype": wanted, "use_safetensors": True}
    try:
        model, info = owner.from_pretrained(name, output_loading_info=True, **model_options)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **common)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name}: cannot be loaded as a scoring model: {reason}{loading_hint(name, error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        advice = f"name a model of this kind, e.g. {example}"
        if hasattr(owner, "_model_mapping") and getattr(model.config, "auto_map", None) and not trust_remote_code:
            advice = "set trust_remote_code: true, it comes with code of its own"
        raise ModelError(f"{name}: weights {', '.join(missing[:3])} are not in the checkpoint; {advice}")
    return model.to(device).eval(), tokenizer


def _offer_removed_names() -> None:
    """ArmoRM's code imports a documentation string that transformers 5 no longer has; without it, nothing loads."""
    module: Any = transformers.models.llama.modeling_llama
    if not hasattr(module, "LLAMA_INPUTS_DOCSTRING"):
        module.LLAMA_INPUTS_DOCSTRING = ""
