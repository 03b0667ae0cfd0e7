"""Which model it is: what the run that made it was told (its `run_manifest.json`), and its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from simpo.errors import ModelError
from simpo.run.folder import MANIFEST

_BLOCK = 2**16


def run_manifest(name_or_path: str) -> dict[str, Any]:
    """The manifest of the run that left this folder, or one of whose checkpoints it is; empty where there was none.

    Raises:
        ModelError: it cannot be read.
    """
    folder = Path(name_or_path)
    places = [folder, folder.resolve().parent] if folder.name.startswith("checkpoint-") else [folder]
    file = next((place / MANIFEST for place in places if (place / MANIFEST).is_file()), None)
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {**found, "settings": dict(found["settings"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: cannot be read as the manifest of a run: {error}") from error


def run_settings(name_or_path: str) -> dict[str, Any]:
    """The settings of that run; empty where there was none.

    Raises:
        ModelError: the manifest cannot be read.
    """
    settings: dict[str, Any] = run_manifest(name_or_path).get("settings", {})
    return settings


def weights_hash(name_or_path: str) -> str | None:
    """A hash of a folder's weights, of an adapter too: another one after another training; None for a hub name.

    Names and sizes are hashed, and 64 blocks of each file from its first to its last byte: no more than 4 MiB a file.
    """
    files = sorted([*Path(name_or_path).glob("*.safetensors"), *Path(name_or_path).glob("pytorch_model*.bin")])
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for start in range(0, size, max(_BLOCK, size // 64)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest() if files else None
