"""Scores of pairs that stay: a model is scored once for the same weights, token ids and settings.

Shape letters: N pairs.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from simpo.data.schema import TOKEN_COLUMNS
from simpo.evals.pairs.measure import ReadPairs, score, weights_dtype
from simpo.evals.pairs.settings import PairsSettings
from simpo.sampling.policy import base_model, weights_fingerprint
from simpo.store import PART

if TYPE_CHECKING:
    from accelerate import Accelerator

_KEY = b"simpo_scores"
_FORMAT = 1
_ROWS = 10_000  # hashed at once
_CONFIGS = ("config.json", "adapter_config.json")


def kept_scores(path: Path, settings: PairsSettings, read: ReadPairs, accelerator: Accelerator) -> bool:
    """See to it that `path` holds the scores of these pairs; every process must call it, the main one writes.

    The file has the fields of `ScoredPairs` as columns, in the order of the data, and what they depend on in its
    metadata: weights, token ids, dtype and attention. It is used again only where all of that is the same.

    Returns:
        Whether the model was scored; False where the file was there.

    Raises:
        ModelError: it cannot be loaded, packs do not serve it, or log-probs are not finite.
    """
    from accelerate.utils import broadcast_object_list

    key = json.dumps(_key(settings, read, weights_dtype(settings, accelerator)), sort_keys=True)
    there = [accelerator.is_main_process and _key_of(path) == key]
    if accelerator.num_processes > 1:  # what the main process sees counts: others may have another disk
        broadcast_object_list(there)
    if there[0]:
        return False
    pairs = score(settings, read, accelerator)
    if accelerator.is_main_process:
        part = path.with_name(path.name + PART)
        pq.write_table(pa.table(pairs._asdict()).replace_schema_metadata({_KEY: key}), part)
        os.replace(part, path)
    accelerator.wait_for_everyone()
    return True


def _key_of(path: Path) -> str | None:
    try:
        return str((pq.read_schema(path).metadata or {}).get(_KEY, b"").decode())
    except (OSError, pa.ArrowInvalid):  # none is there, or not a whole one
        return None


def _key(settings: PairsSettings, read: ReadPairs, dtype: str) -> dict[str, Any]:
    """What scores depend on; how packs are cut is not part of it."""
    return {
        "format": _FORMAT,
        "weights": identity_of_weights(settings.model_name_or_path, settings.model_revision),
        "pairs": tokens_hash(read),
        "dtype": dtype,
        "prefix_sharing": settings.prefix_sharing,
        "attn_backend": settings.attn_backend,
    }


def identity_of_weights(name_or_path: str, revision: str | None) -> list[Any]:
    """What tells a model from another one, and from itself after more training: of a folder its weights and configs,
    of a hub name the commit; of an adapter the same of its base too."""
    base = base_model(name_or_path, revision)
    if base == name_or_path:
        return [_identity(name_or_path, revision)]
    return [_identity(name_or_path, revision), _identity(base, None)]


def _identity(name: str, revision: str | None) -> list[Any]:
    from huggingface_hub import try_to_load_from_cache

    fingerprint = weights_fingerprint(name)
    if fingerprint is not None:
        texts = [(Path(name) / file).read_bytes() for file in _CONFIGS if (Path(name) / file).is_file()]
        return [fingerprint, hashlib.blake2b(b"\0".join(texts), digest_size=12).hexdigest()]
    if Path(name).exists():
        return [str(Path(name).resolve())]
    for file in _CONFIGS:
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return [name, Path(found).parent.name]  # of the snapshot: its commit
    return [name, revision]


def tokens_hash(read: ReadPairs) -> str:
    """Hash of all token ids of all pairs, and of where the pairs come from."""
    digest = hashlib.blake2b(json.dumps(read.places()).encode(), digest_size=12)
    data = read.data.select_columns(list(TOKEN_COLUMNS)).with_format("arrow")
    for batch in data.iter(batch_size=_ROWS):
        for name in TOKEN_COLUMNS:
            column = batch[name].combine_chunks()
            lengths = column.value_lengths().to_numpy(zero_copy_only=False).astype("<i8")
            ids = column.flatten().to_numpy(zero_copy_only=False).astype("<i8")
            digest.update(lengths.tobytes() + ids.tobytes())
    return digest.hexdigest()
