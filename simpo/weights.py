"""Weights are read as safetensors only, and code that comes with a model runs only where that was asked for.

A pickle can run any code when it is read; safetensors hold numbers alone.
"""

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpo.errors import ModelError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_ADAPTER = "adapter_model.safetensors"
# What would let `from_pretrained` read pickles.
_UNSAFE = {"use_safetensors": True, "weights_only": True}


def check_weights(name_or_path: str, revision: str | None = None, options: Mapping[str, Any] | None = None) -> None:
    """Refuse weights that would be read from pickles. Nothing is loaded.

    A hub name's own weights are left to `use_safetensors`, which must be given to `from_pretrained` as well; adapters
    are looked up here, since PEFT takes what it finds.

    Args:
        name_or_path: hub name or directory, also of an adapter.
        revision: on the hub.
        options: that are passed to `from_pretrained`.

    Raises:
        ModelError: with the command that converts them.
    """
    for key, only in _UNSAFE.items():
        if (options or {}).get(key, only) not in (only, None):
            raise ModelError(f"{key}: {(options or {})[key]} would read pickles, which can run any code; leave it out")
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        if _adapter_without_safetensors(name_or_path, revision):
            raise ModelError(f"{name_or_path}: its adapter is no safetensors file; {_convert_adapter(name_or_path)}")
        return
    pickles = sorted({file.name for kind in _PICKLES for file in folder.glob(kind)} - {"training_args.bin"})
    if (folder / "adapter_config.json").is_file() and not (folder / _ADAPTER).is_file():
        if pickles:
            raise ModelError(f"{folder}: its weights are a pickle, {pickles[0]}; {_convert_adapter(folder)}")
    elif pickles and (_names_a_pickle(folder) or not any(folder.glob("*.safetensors"))):
        raise ModelError(f"{folder}: its weights are pickles, {', '.join(pickles[:3])}; {convert(folder)}")


def convert(name_or_path: str | Path) -> str:
    """How weights become safetensors, for error messages."""
    return (
        "only safetensors are read, since a pickle can run any code; convert them once: python -c "
        f"\"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{name_or_path}', "
        "use_safetensors=False).save_pretrained('converted')\", and copy the tokenizer's files"
    )


def _convert_adapter(name_or_path: str | Path) -> str:
    return (
        "only safetensors are read, since a pickle can run any code; convert it once: python -c "
        '"import torch; from safetensors.torch import save_file; '
        f"save_file(torch.load('{name_or_path}/adapter_model.bin', weights_only=True), "
        f"'{name_or_path}/{_ADAPTER}')\""
    )


def loading_hint(name_or_path: str, error: Exception) -> str:
    """What to add to the failed load of a model without safetensors, or that wants its code run; "" for others."""
    if "trust_remote_code" in str(error):
        return "; it comes with code of its own: set trust_remote_code: true for it, if you trust it"
    return f"; {convert(name_or_path)}" if "model.safetensors" in str(error) else ""


def _names_a_pickle(folder: Path) -> bool:
    """Whether a config names the file of weights itself, which goes before `use_safetensors`."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError):  # loading the config says what is wrong with it
        return False
    return isinstance(named, str) and not named.endswith((".safetensors", ".safetensors.index.json"))


def _adapter_without_safetensors(name: str, revision: str | None) -> bool:
    from transformers.utils.hub import cached_file
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name, revision=revision) is None:
            return False
        return cached_file(name, _ADAPTER, revision=revision, _raise_exceptions_for_missing_entries=False) is None
    except (OSError, ValueError):  # no such model; loading it says so
        return False


@functools.cache
def say_remote_code(name_or_path: str, revision: str | None = None) -> None:
    """Print, once, that code which comes with a model is run."""
    if os.environ.get("RANK", "0") == "0":
        print(remote_code_line(name_or_path, revision), flush=True)


def remote_code_line(name_or_path: str, revision: str | None = None) -> str:
    """That code which comes with a model is run, and where it is from."""
    return f"trust_remote_code: running Python code that comes with {name_or_path} (revision {revision or 'main'})"
