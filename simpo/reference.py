"""Log-probs of the initial policy as data: cached on disk under everything that they depend on.

Objectives that compare with a frozen initial policy need two numbers a pair from it, not a second model. They are
computed once, in one pass before training, and kept for other runs on the same data.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn
from transformers.utils.hub import cached_file, extract_commit_hash

from simpo.data.fingerprint import rows_fingerprint
from simpo.errors import ConfigError
from simpo.main_process import on_main
from simpo.packing import PackedDataset

PART_ROWS = 16_384  # pairs that an interrupted pass loses at most
REFERENCE_COLUMNS = ("ref_chosen", "ref_rejected")
_PROBES = 4  # pairs that are computed again before a cache is believed
_SAMPLES = 16  # places of a weight file or tensor that its fingerprint looks at
_SOURCES = (
    "logps.py", "packing.py", "forward.py", "reference.py", "attention/layout.py", "attention/backends.py",
    "attention/sdpa.py", "attention/varlen.py", "attention/flex.py",
)  # fmt: skip


class ReferenceCache:
    """The log-probs of one data set under one policy, in files of `PART_ROWS` pairs each.

    Args:
        folder: of all caches; None: `simpo/reference` in the Hugging Face home.
        key: everything that the numbers depend on, as JSON values.
    """

    def __init__(self, folder: str | None, key: Mapping[str, Any]) -> None:
        from huggingface_hub.constants import HF_HOME

        self.key = json.dumps(key, sort_keys=True)
        name = hashlib.sha256(self.key.encode()).hexdigest()[:24]
        self.path = (Path(folder) if folder else Path(HF_HOME) / "simpo" / "reference") / name

    def read(self, rows: range) -> dict[str, np.ndarray] | None:
        """The arrays of one part, [len(rows)] float32 each; None where there are none that are whole.

        Raises:
            ConfigError: the file holds numbers of another model or data set.
        """
        file = self._file(rows)
        try:
            with safe_open(file, framework="numpy") as part:
                key = (part.metadata() or {}).get("key")
                arrays = {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
        if key != self.key:
            raise ConfigError(
                f"{file} holds log-probs of another model or data set; delete the folder, and they are computed again"
            )
        return arrays if all(len(array) == len(rows) for array in arrays.values()) else None

    def write(self, rows: range, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of one part; a reader sees all of it or nothing.

        Raises:
            ConfigError: the folder cannot be written.
        """
        file = self._file(rows)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, unfinished = tempfile.mkstemp(dir=file.parent, suffix=".unfinished")
            os.close(handle)
            save_file(dict(arrays), unfinished, metadata={"key": self.key})
            os.replace(unfinished, file)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"cannot write log-probs of the initial policy to {file.parent}: {error}; "
                "write reference_cache: a folder with room"
            ) from error

    def _file(self, rows: range) -> Path:
        return self.path / f"rows-{rows.start:09d}-{rows.stop:09d}.safetensors"


def parts(rows: int) -> list[range]:
    """The rows of a data set in parts."""
    return [range(start, min(start + PART_ROWS, rows)) for start in range(0, rows, PART_ROWS)]


def cache_key(*, policy: str, pairs: Any, dtype: torch.dtype, mismatched: Mapping[str, Any] | None) -> dict[str, Any]:
    """What reference log-probs depend on.

    The token ids stand for tokenizer, template, lengths and data.

    Args:
        policy: from `policy_fingerprint`.
        pairs: tokenised rows.
        dtype: what the layers compute in.
        mismatched: what fixes the mismatched pairs, where there are such.
    """
    code = hashlib.sha256()
    for name in _SOURCES:
        code.update((Path(__file__).parent / name).read_bytes())
    return {
        "policy": policy,
        "pairs": rows_fingerprint(pairs),
        "dtype": str(dtype).removeprefix("torch."),
        "mismatched": mismatched,
        "code": code.hexdigest()[:16],
    }


def policy_fingerprint(
    model: str | nn.Module, options: Mapping[str, Any] | None = None, quantization_config: Any = None
) -> str:
    """Names a policy: by its files, or its commit on the hub, and how they are loaded; or by its weights in memory.

    Files and weights are sampled, not read whole; that a cache belongs to a model is checked by a few pairs as well.

    Args:
        model: a path or hub name, or the model itself.
        options: passed to `from_pretrained`.
        quantization_config: how to load the weights.
    """
    if isinstance(model, nn.Module):
        return _weights_fingerprint(model)
    options = dict(options or {})
    revision = options.pop("revision", None) or "main"
    if os.path.isdir(model):
        name = _files_fingerprint(Path(model))
    else:
        file = cached_file(model, "config.json", revision=revision, token=options.get("token"))
        name = f"{model}@{extract_commit_hash(file, None) or revision}"
    if not options and quantization_config is None:
        return name
    loading = json.dumps([options, quantization_config], sort_keys=True, default=str)
    return f"{name} {hashlib.sha256(loading.encode()).hexdigest()[:16]}"  # options may hold a token


def _files_fingerprint(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    kinds = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
    for file in sorted(file for kind in kinds for file in folder.glob(kind)):
        if file.name == "training_args.bin":
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for place in range(_SAMPLES):
                stream.seek(place * max(0, size - 65_536) // max(1, _SAMPLES - 1))
                digest.update(stream.read(65_536))
    return digest.hexdigest()


@torch.no_grad()
def _weights_fingerprint(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().flatten()
        if flat.numel():  # float32 cannot count the elements of a large matrix
            places = torch.linspace(0, flat.numel() - 1, 64 * _SAMPLES, dtype=torch.float64).long().to(flat.device)
            digest.update(flat[places].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def disagreement(cached: np.ndarray, fresh: np.ndarray, tokens: np.ndarray, *, exact: bool) -> int | None:
    """The first pair whose log-probs differ by more than rounding explains, or None.

    Args:
        cached, fresh: [n] summed log-probs.
        tokens: [n] tokens of each response.
        exact: computed in float32.
    """
    allowed = (1e-4 if exact else 0.05) * tokens + (1e-3 if exact else 0.5)
    wrong = np.flatnonzero(~(np.abs(cached - fresh) <= allowed))
    return int(wrong[0]) if len(wrong) else None


def fill_references(
    packed: PackedDataset,
    cache: ReferenceCache,
    compute: Callable[[range], dict[str, np.ndarray]] | None,
    *,
    exact: bool,
    name: str,
) -> None:
    """Give a data set its reference log-probs, from the cache or computed; every process must call it.

    Args:
        packed: the data set.
        cache: where they are kept; only the main process touches it.
        compute: gives the arrays of some rows under the initial policy, on all processes; None where the policy is no
            longer the initial one.
        exact: log-probs are computed in float32.
        name: of the data set, for errors.

    Raises:
        ConfigError: the cache holds numbers of another model, or there are none and the policy is already trained.
    """
    found: list[dict[str, np.ndarray]] = []
    for rows in parts(len(packed)):
        arrays = on_main(lambda rows=rows: cache.read(rows))  # type: ignore[misc]
        if arrays is None:
            if compute is None:
                raise ConfigError(
                    f"log-probs of the initial policy on the {name} data are needed, but this policy is trained "
                    f"already and {cache.path} does not hold them; run `simpo reference CONFIG` first, or set "
                    "reference_cache to the folder of the run that is to go on"
                )
            arrays = compute(rows)
            on_main(lambda rows=rows, arrays=arrays: cache.write(rows, arrays))  # type: ignore[misc]
        elif compute is not None and not found:
            _check_few(packed, arrays, compute, cache, exact)
        found.append(arrays)
    packed.references = {key: np.concatenate([part[key] for part in found]) for key in found[0]}


def _check_few(
    packed: PackedDataset,
    cached: Mapping[str, np.ndarray],
    compute: Callable[[range], dict[str, np.ndarray]],
    cache: ReferenceCache,
    exact: bool,
) -> None:
    """Compute a few pairs again: whatever the key missed, numbers of another model are not used."""
    few = range(min(_PROBES, len(cached["ref_chosen"])))
    fresh = compute(few)
    for side in ("chosen", "rejected"):
        tokens = np.array([len(packed.pairs[row][f"{side}_ids"]) for row in few])
        row = disagreement(cached[f"ref_{side}"][: len(few)], fresh[f"ref_{side}"], tokens, exact=exact)
        if row is not None:
            raise ConfigError(
                f"{cache.path} does not hold log-probs of this model: {side} of pair {row} has "
                f"{cached[f'ref_{side}'][row]:.4f} there and {fresh[f'ref_{side}'][row]:.4f} now; delete the folder, "
                "and they are computed again"
            )
