"""What the run that made a model was told: its `run_manifest.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simpo.errors import ModelError
from simpo.run.folder import MANIFEST


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
