"""What of a finished run goes to the hub."""

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import huggingface_hub
import pytest

from simpo.run.export import push_folder


def test_what_quotes_the_data_stays_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = {"status": "finished", "first_pairs": [{"prompt_text": "a secret"}]}
    contents = {
        "run_manifest.json": json.dumps(manifest), "report.html": "a secret", "monitor/generations.jsonl": "a secret",
        "checkpoint-2/model.safetensors": "a secret", "README.md": "card", "model.safetensors": "weights",
    }  # fmt: skip
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    sent: dict[str, str] = {}

    def folder(folder_path: str, ignore_patterns: list[str], repo_id: str, token: str, **_: Any) -> None:
        assert (repo_id, token) == ("me/model", "hf_x")
        names = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        kept = [name for name in names if not any(fnmatch(name, pattern) for pattern in ignore_patterns)]
        sent.update({name: Path(folder_path, name).read_text() for name in kept})

    def file(path_or_fileobj: bytes, path_in_repo: str, repo_id: str, token: str, **_: Any) -> None:
        assert (repo_id, token) == ("me/model", "hf_x")
        sent[path_in_repo] = path_or_fileobj.decode()

    monkeypatch.setattr(huggingface_hub, "upload_folder", folder)
    monkeypatch.setattr(huggingface_hub, "upload_file", file)
    push_folder(
        cast(Any, SimpleNamespace(hub_model_id="me/model", args=SimpleNamespace(hub_token="hf_x"))), str(tmp_path)
    )
    assert set(sent) == {"README.md", "model.safetensors", "run_manifest.json"}
    assert json.loads(sent["run_manifest.json"]) == {"status": "finished"}
