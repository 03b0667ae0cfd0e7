"""Small settings files, read or refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from simpo.errors import ConfigError
from simpo.settings import RunSettings, read_settings

BASE = "model_name_or_path: some/model\nuse_cpu: true\ndataset_mixer: {pairs.jsonl: 1.0}\n"
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
Read = Callable[..., RunSettings]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "run.yaml", base: str = BASE) -> Path:
        path = tmp_path / name
        path.write_text(base + text)
        return path

    return write


@pytest.fixture
def read(write: Callable[..., Path]) -> Read:
    return lambda text="", *overrides: read_settings(write(text), overrides)


@pytest.fixture
def refusal(read: Read) -> Callable[..., str]:
    """The message that a text and overrides are refused with."""

    def refusal(text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            read(text, *overrides)
        return str(caught.value)

    return refusal
