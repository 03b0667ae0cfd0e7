"""A file that says whether hostile code ran, pickles that would write it, and a model's folder to spoil."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.conftest import make_config

__all__ = ["make_config"]  # a fixture here too


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


class Marker:
    """Where hostile code would show.

    Args:
        path: of the file that it touches.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def pickle(self, value: Any = None) -> bytes:
        """A pickle that touches the file."""
        return pickle.dumps([value, Bomb(self.path)])

    def torch_file(self, file: Path, value: Any = None) -> Path:
        """What `torch.save` makes of it."""
        torch.save({"value": value, "bomb": Bomb(self.path)}, file)
        return file

    @property
    def code(self) -> str:
        """Python that touches the file."""
        return f"from pathlib import Path\nPath({str(self.path)!r}).touch()\n"

    @property
    def touched(self) -> bool:
        """Whether hostile code ran."""
        return self.path.exists()


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    """The file that hostile code touches; it is shown to work, or its absence would say nothing."""
    found = Marker(tmp_path / "hostile-code-ran")
    pickle.loads(found.pickle())
    assert found.touched
    torch.load(found.torch_file(tmp_path / "shown.pt"), weights_only=False)
    (tmp_path / "shown.pt").unlink()
    found.path.unlink()
    return found


@pytest.fixture
def spoilt(tiny_dir: str, tmp_path: Path) -> Callable[..., Path]:
    """spoilt(*without) -> a copy of the tiny model without some of its files."""

    def make(*without: str) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_dir, folder, ignore=shutil.ignore_patterns(*without))
        return folder

    return make
