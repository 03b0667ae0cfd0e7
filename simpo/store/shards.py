"""The files of a store: records in shards, and an index of where each one stands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from simpo.errors import StoreError

Record = dict[str, Any]

PART = ".part"
"""End of the name of a file that is still being written."""

_RECORDS = re.compile(r"records-(\d+)-(\d+)\.jsonl")


class Place(NamedTuple):
    """Where a record stands: its file's name, the bytes from start up to end, and its row (-1 without one)."""

    key: str
    file: str
    start: int
    end: int
    row: int


def shards_in(folder: Path) -> list[tuple[int, int, Path]]:
    """Rank, number and path of every records file, in this order."""
    found = ((_RECORDS.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), int(match[2]), path) for match, path in found if match)


def index_name(rank: int) -> str:
    """The name of a process's index."""
    return f"index-{rank:05d}.jsonl"


def places_in(folder: Path) -> list[Place]:
    """Every record that is whole: what the index says, and what stands behind it in the records files."""
    places: list[Place] = []
    indexed: dict[int, dict[str, list[Place]]] = {}
    for rank, _, path in shards_in(folder):
        if rank not in indexed:
            indexed[rank] = _read_index(folder / index_name(rank))
        known = indexed[rank].get(path.name, [])
        if known and known[-1].end > path.stat().st_size:  # not of these files: look through all of them
            known = []
        places += known
        places += _scan(path, known[-1].end if known else 0)[0]
    return places


def _read_index(path: Path) -> dict[str, list[Place]]:
    """Places by file, in each from its first byte on without a gap; of an index that has one, what is before it."""
    found: dict[str, list[Place]] = {}
    if not path.exists():
        return found
    for line in path.read_bytes().splitlines(keepends=True):
        entry = parse_line(line)
        try:
            place = Place(**(entry or {}))
        except TypeError:
            break
        known = found.setdefault(place.file, [])
        if place.start != (known[-1].end if known else 0):
            break
        known.append(place)
    return found


def _scan(path: Path, start: int) -> tuple[list[Place], int]:
    """The whole records of a file from a byte on, and the byte behind the last one."""
    places = []
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            record = parse_line(line)
            if record is None or not isinstance(record.get("key"), str):
                if file.read(1):  # only the last line can be torn by a kill
                    raise StoreError(f"{path}: damaged at byte {start}; restore it, or start anew in another folder")
                break
            places.append(Place(record["key"], path.name, start, start + len(line), row_of(record)))
            start += len(line)
    return places, start


def mend(folder: Path) -> None:
    """Cut torn lines off, and bring each index up to its records. Only under the lock, before anybody appends."""
    by_rank: dict[int, list[Place]] = {}
    for rank, _, path in shards_in(folder):
        known = _read_index(folder / index_name(rank)).get(path.name, [])
        if known and known[-1].end > path.stat().st_size:
            known = []
        more, end = _scan(path, known[-1].end if known else 0)
        if end < path.stat().st_size:
            os.truncate(path, end)
        by_rank.setdefault(rank, []).extend([*known, *more])
    for rank, places in by_rank.items():
        path = folder / index_name(rank)
        text = b"".join(_index_line(place) for place in places)
        if not path.exists() or path.read_bytes() != text:
            _replace(path, text)


def take_out(folder: Path, again: Callable[[Record], bool]) -> int:
    """Remove finished records; returns how many. Only under the lock, when files are mended; mend them once more."""
    count = 0
    for rank, _, path in shards_in(folder):
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not again(parse_line(line) or {})]
        if len(kept) < len(lines):
            (folder / index_name(rank)).unlink(missing_ok=True)  # first: it would point into other lines
            _replace(path, b"".join(kept))
            count += len(lines) - len(kept)
    return count


def append_index(path: Path, places: list[Place]) -> None:
    """Write down where records stand."""
    # Not synced: the next start makes again what is missing. A torn line before others is made again likewise.
    with open(path, "ab") as file:
        file.write(b"".join(_index_line(place) for place in places))


def _index_line(place: Place) -> bytes:
    return (json.dumps(place._asdict(), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def parse_line(line: bytes) -> Record | None:
    """The JSON object of a whole line; None where the line is torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def row_of(record: Mapping[str, Any]) -> int:
    """The row that a record says, or -1."""
    row = record.get("row")
    return row if isinstance(row, int) else -1


def write_whole(path: Path, value: Record) -> None:
    """Write a JSON file in one move: it is there as a whole or not at all."""
    _replace(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))


def _replace(path: Path, text: bytes) -> None:
    part = path.with_name(path.name + PART)
    with open(part, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of files to the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
