"""What makes a checkpoint whole: a list of its files with a hash of each, then a mark, both written last.

A checkpoint without the mark was cut short. One whose files are not those of the list is damaged.
"""

import json
import os
from pathlib import Path
from typing import Any

import xxhash
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from simpo.main_process import on_main
from simpo.store.shards import sync_folder, write_whole

IDENTITY = "run_identity.json"  # the mark: which run wrote the checkpoint
FILES = "checkpoint_files.json"
_BLOCK = 1 << 22  # bytes read at a time
_SLOW = 4 << 30  # bytes from which reading them takes so long that it is shown


def seal(folder: Path, identity: dict[str, Any]) -> None:
    """Mark a checkpoint as whole, once every process has written its part; every process must call it.

    Each process brings a share of the files to the disk and hashes it, so that this takes as long as reading them once.
    All processes must see the folder.
    """
    state = PartialState()
    state.wait_for_everyone()
    found = {name: _fingerprint(folder / name) for name in _share(_names(folder))}
    parts = gather_object([found])
    if state.is_main_process:
        files = {name: value for part in parts for name, value in part.items()}
        for place in {(folder / name).parent for name in files}:
            sync_folder(place)
        write_whole(folder / FILES, dict(sorted(files.items())))
        write_whole(folder / IDENTITY, identity)
        sync_folder(folder.parent)
    state.wait_for_everyone()


def unseal(folder: Path) -> None:
    """Take the mark away, before anything else of a checkpoint is removed or written again."""
    (folder / IDENTITY).unlink(missing_ok=True)
    if folder.is_dir():
        sync_folder(folder)


def damages(folder: Path) -> list[str]:
    """What of a sealed checkpoint is not as it was written, a line a file; every process must call it.

    Each process reads a share of the files, and all get the whole answer. One that is named by hand and has neither
    mark nor list, from elsewhere, counts as undamaged.
    """
    if not on_main(lambda: (folder / FILES).is_file() or (folder / IDENTITY).is_file()):
        return []
    try:
        listed: dict[str, dict[str, Any]] = json.loads((folder / FILES).read_text())
        if not listed:
            raise ValueError("it names no files")
        own = [text for name in _share(sorted(listed)) if (text := _damage(folder, name, listed[name]))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        own = [f"{FILES} cannot be read: {error}"]
    own += _damaged_mark(folder / IDENTITY)
    return list(dict.fromkeys(gather_object(own)))


def _damaged_mark(mark: Path) -> list[str]:
    """Of the one file that is not listed; a checkpoint that is named by hand may have none."""
    try:
        sound = not mark.is_file() or isinstance(json.loads(mark.read_text()), dict)
        return [] if sound else [f"{IDENTITY} holds no settings"]
    except (OSError, ValueError) as error:
        return [f"{IDENTITY} cannot be read: {error}"]


def _damage(folder: Path, name: str, listed: dict[str, Any]) -> str:
    path, size = folder / name, int(listed["bytes"])
    if not path.is_file():
        return f"{name} is missing"
    there = path.stat().st_size
    if there != size:
        return f"{name} has {there:,} bytes in place of {size:,}"
    return "" if _hash(path) == listed["xxh3_128"] else f"{name} holds other bytes than were written"


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "xxh3_128": _hash(path)}


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    size = path.stat().st_size
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=path.name, leave=False, disable=size < _SLOW)
    with bar, path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _names(folder: Path) -> list[str]:
    """Files of a checkpoint, as the main process sees them."""

    def listed() -> list[str]:
        files = (path for path in folder.rglob("*") if path.is_file())
        names = sorted(path.relative_to(folder).as_posix() for path in files)
        return [name for name in names if name not in (FILES, IDENTITY)]

    return on_main(listed)


def _share(names: list[str]) -> list[str]:
    state = PartialState()
    return names[state.process_index :: state.num_processes]
