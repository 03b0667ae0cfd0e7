"""Finished records in a folder, kept whatever happens to the process that makes them.

    store.json                  the settings that the records were made with
    store.lock                  held by the one run that writes
    records-RANK-NUMBER.jsonl   a record a line, with its key; each process writes files of its own
    index-RANK.jsonl            where each record stands; made again from the records where it is behind them
    summary.json                what `finish` was given; its presence says that nothing is left to do

A record is on the disk before its index line, and its line is whole or the last one: a kill at any moment leaves at
most one torn line, which the next start cuts off.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from simpo.errors import StoreError
from simpo.store.shards import (
    PART,
    Place,
    Record,
    append_index,
    index_name,
    mend,
    parse_line,
    places_in,
    row_of,
    shards_in,
    sync_folder,
    take_out,
    write_whole,
)

SETTINGS_FILE, LOCK_FILE, SUMMARY_FILE = "store.json", "store.lock", "summary.json"
FORMAT = 1
SHARD_BYTES = 2**26
"""A records file that has reached so many bytes is followed by another one."""


class Store:
    """Append-only records by key, for one run at a time.

    Use it as a context manager. With several processes rank 0 enters first, which holds the lock and mends what a kill
    left; the others enter when it has (a barrier between them is the caller's business) and leave before it.

    Args:
        folder: made if missing; empty, or a store with the same settings.
        settings: what the records depend on, as JSON; a store with records made with other ones is refused.
        rank: number of this process, from 0.
        again: finished records for which it is true are taken out when rank 0 enters, to be done again.
        shard_bytes: size of a records file from which on another one is begun.

    Raises (on entering):
        StoreError: another process has the folder, it holds something else or records of other settings, a file in it
            is damaged, or it cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        *,
        rank: int = 0,
        again: Callable[[Record], bool] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder = Path(folder)
        self.settings: Record = json.loads(json.dumps(settings))
        self.rank = rank
        self.done: set[str] = set()
        self._again = again
        self._shard_bytes = shard_bytes
        self._lock: FileLock | None = None
        self._shard: Path | None = None
        self._fd: int | None = None

    def __enter__(self) -> Store:
        try:
            if self.rank == 0:
                self._enter_first()
            _check_settings(self.folder, self.settings)
            self.done = {place.key for place in places_in(self.folder)}
        except OSError as error:
            self._release()
            raise self._failed(error) from error
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._release()

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep a finished record; when this returns it is on the disk. From one thread at a time.

        Args:
            key: not in `done` yet.
            record: JSON, without a field `key`; a field `row`, a whole number, gives its place in `records`.

        Raises:
            StoreError: the disk is full or cannot be written; what was done before stays.
        """
        assert key not in self.done and "key" not in record
        line = (json.dumps({"key": key, **record}, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        try:
            shard, start = self._open_shard()
            self._write(line, start)
            place = Place(key, shard.name, start, start + len(line), row_of(record))
            self.done.add(key)  # from here on the record is safe: the index can be made again
            append_index(self.folder / index_name(self.rank), [place])
        except OSError as error:
            raise self._failed(error) from error

    def records(self) -> Iterator[Record]:
        """Every finished record of all processes, by row, then by key."""
        return read_records(self.folder)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write down that nothing is left to do, with some numbers for people. For rank 0.

        Raises:
            StoreError: the disk is full or cannot be written.
        """
        try:
            write_whole(self.folder / SUMMARY_FILE, dict(summary))
        except OSError as error:
            raise self._failed(error) from error

    def _enter_first(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / LOCK_FILE)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._lock = None
            raise StoreError(
                f"{self.folder}: another process writes into it (it holds {LOCK_FILE}); wait until it has ended, or "
                "choose another folder"
            ) from None
        if not (self.folder / SETTINGS_FILE).exists():
            others = sorted(path.name for path in self.folder.iterdir() if path.name not in _OWN_BEFORE)
            if others:
                raise StoreError(
                    f"{self.folder}: holds files of something else ({', '.join(others[:3])}); choose an empty folder"
                )
            self._write_settings()
        elif read_settings_of(self.folder) != self.settings and not places_in(self.folder):
            self._write_settings()  # nothing was made with the former ones
        _check_settings(self.folder, self.settings)
        mend(self.folder)
        if self._again is not None and take_out(self.folder, self._again):
            (self.folder / SUMMARY_FILE).unlink(missing_ok=True)
            mend(self.folder)

    def _write_settings(self) -> None:
        write_whole(self.folder / SETTINGS_FILE, {"format": FORMAT, "settings": self.settings})

    def _open_shard(self) -> tuple[Path, int]:
        """The file to append to and its size; it is opened, or followed by a new one where it is full."""
        size = None if self._fd is None else os.fstat(self._fd).st_size
        if self._shard is not None and size is not None and size < self._shard_bytes:
            return self._shard, size
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        number = max((number for rank, number, _ in shards_in(self.folder) if rank == self.rank), default=0)
        self._shard = self.folder / f"records-{self.rank:05d}-{number:05d}.jsonl"
        if self._shard.exists() and self._shard.stat().st_size >= self._shard_bytes:
            self._shard = self.folder / f"records-{self.rank:05d}-{number + 1:05d}.jsonl"
        self._fd = os.open(self._shard, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
        sync_folder(self.folder)
        return self._shard, os.fstat(self._fd).st_size

    def _write(self, line: bytes, start: int) -> None:
        assert self._fd is not None
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except OSError:
            # a line cut short by a full disk must not stand before others
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
            raise

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _failed(self, error: OSError) -> StoreError:
        kept = f"; {len(self.done)} finished records stay, the same command goes on from them" if self.done else ""
        return StoreError(f"{error.filename or self.folder}: {error.strerror or error}{kept}")


def read_records(folder: str | Path) -> Iterator[Record]:
    """The finished records of a store, by row, then by key; the store may be in use.

    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    path = Path(folder)
    read_settings_of(path)
    try:
        with contextlib.ExitStack() as stack:
            files: dict[str, Any] = {}
            for place in sorted(places_in(path), key=lambda place: (place.row, place.key)):
                if place.file not in files:
                    files[place.file] = stack.enter_context(open(path / place.file, "rb"))
                files[place.file].seek(place.start)
                record = parse_line(files[place.file].read(place.end - place.start))
                if record is None or record.pop("key", None) != place.key:
                    raise StoreError(f"{path / place.file}: damaged at byte {place.start}; restore it, or start anew")
                yield record
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error


def read_settings_of(folder: str | Path) -> Record:
    """The settings that a store was made with.

    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    path = Path(folder) / SETTINGS_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise StoreError(
                f"{path}: has format {found['format']}, this version writes {FORMAT}; choose another folder"
            )
        settings: Record = found["settings"]
        return settings
    except FileNotFoundError:
        raise StoreError(
            f"{folder}: holds no records (there is no {SETTINGS_FILE}); name the folder of a run"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


def read_summary(folder: str | Path) -> Record | None:
    """What `Store.finish` was given; None while there is something left to do."""
    path = Path(folder) / SUMMARY_FILE
    try:
        summary: Record = json.loads(path.read_text(encoding="utf-8"))
        return summary
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


_OWN_BEFORE = {LOCK_FILE, SETTINGS_FILE + PART}  # what a start that was killed at once may leave


def _check_settings(folder: Path, settings: Record) -> None:
    before = read_settings_of(folder)
    keys = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    if keys:
        both = "; ".join(f"{key}: {_show(before.get(key))} there, {_show(settings.get(key))} now" for key in keys)
        raise StoreError(
            f"{folder}: holds records made with other settings ({both}); choose another folder, or the same settings"
        )


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
