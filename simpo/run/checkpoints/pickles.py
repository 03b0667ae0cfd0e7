"""The pickles of a checkpoint are looked at before an engine reads them.

transformers reads optimizer, schedule and random states with `weights_only=True`. DeepSpeed and torch's distributed
checkpoints read theirs without, so a file from elsewhere could run code. Here every file is read first by an unpickler
that makes numbers and the few classes that engines write, and nothing else.
"""

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import safe_globals

from simpo.errors import ModelError

_SUFFIXES = {".pt", ".pth", ".bin", ".pkl", ".ckpt"}
# What DeepSpeed and transformers (numpy's random state) write beside tensors: modules and names.
_ENGINES = (
    ("deepspeed.runtime.fp16.loss_scaler", ("LossScaler", "DynamicLossScaler")),
    ("deepspeed.runtime.zero.config", ("ZeroStageEnum",)),
    ("deepspeed.utils.tensor_fragment", ("fragment_address",)),
    ("numpy._core.multiarray", ("_reconstruct",)),
    ("numpy", ("ndarray", "dtype")),
    ("numpy.dtypes", ("UInt32DType",)),
)
# What the index of a distributed checkpoint is made of.
_INDEX = re.compile(
    r"torch\.distributed\.checkpoint\.(metadata\.(\w*Metadata|MetadataIndex|StorageMeta|TensorProperties|"
    r"_MEM_FORMAT_ENCODING)|filesystem\._StorageInfo)|torch\.(Size|bool|u?int\d+|b?float\w+|complex\d+)|"
    r"torch\.serialization\._get_layout|pathlib\.(Posix|Windows)Path|collections\.OrderedDict"
)


def check_pickles(checkpoint: Path) -> None:
    """Refuse a checkpoint with a file that could run code when it is read.

    Raises:
        ModelError: with the file and what is wrong with it.
    """
    _check_latest(checkpoint / "latest")
    for file in _files(checkpoint):
        if file.suffix in _SUFFIXES:
            engine = file.parent != checkpoint  # DeepSpeed has folders of its own
            _refuse_code(file, lambda file=file, engine=engine: _read(file, engine))  # type: ignore[misc]
        elif file.name.endswith(".metadata"):
            _refuse_code(file, lambda file=file: _read_index(file))  # type: ignore[misc]


def _files(folder: Path) -> list[Path]:
    """All files, also behind links of folders, which engines follow."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        found += [path for name in names if (path := Path(place, name)).is_file()]
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(Path(place, name)) not in seen]
    return sorted(found)


def _check_latest(file: Path) -> None:
    """The folder that DeepSpeed reads has its name in this file; it must be one of those that are looked through."""
    if file.is_file() and (Path(name := file.read_text(errors="replace").strip()).name != name or name in ("", "..")):
        raise ModelError(f"{file}: names {name!r}, which is no folder beside it; go on from another checkpoint")


def _refuse_code(file: Path, read: Callable[[], object]) -> None:
    try:
        read()
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|class (\S+)|name (\S+)", str(error))
        what = next(filter(None, found.groups()), "code") if found else "code"
        raise ModelError(
            f"{file}: holds {what.rstrip('.,:;')}, which no checkpoint of a run holds: reading it could run code. Go "
            "on only from checkpoints that you wrote yourself"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, TypeError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{file}: cannot be read as a part of a checkpoint: {reason}; go on from another one"
        ) from error


def _read(content: Path | IO[bytes], engine: bool = False) -> None:
    in_place = isinstance(content, Path) and zipfile.is_zipfile(content)  # tensors are then not read
    with safe_globals(_known(engine)):
        torch.load(content, map_location="cpu", weights_only=True, mmap=in_place or None)


def _known(engine: bool) -> list[Any]:
    """numpy's classes, and those of DeepSpeed where it wrote the file and is installed."""
    found = []
    for module, names in _ENGINES:
        if module.startswith("deepspeed") and not engine:
            continue  # importing it takes seconds
        try:
            home = import_module(module)
        except ImportError:
            continue
        found += [getattr(home, name) for name in names if hasattr(home, name)]
    return [*found, (_member, "builtins.getattr")]


def _member(kind: Any, name: str) -> Any:
    """In the place of `getattr`, by which some versions of Python pickle the members of an enumeration."""
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return kind[name]


class _IndexReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if not _INDEX.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _read_index(file: Path) -> None:
    """The index of a distributed checkpoint, and what it says are no tensors: numbers that torch pickled one by one."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    with file.open("rb") as stream:
        index = _IndexReader(stream).load()
    for place, stored in index.storage_data.items():
        if not isinstance(index.state_dict_metadata.get(place.fqn), BytesStorageMetadata):
            continue
        with (file.parent / stored.relative_path).open("rb") as shard:
            shard.seek(stored.offset)
            content = shard.read(stored.length)
        _refuse_code(file.parent / stored.relative_path, lambda content=content: _read(io.BytesIO(content)))  # type: ignore[misc]
