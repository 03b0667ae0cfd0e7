"""What must not change between a checkpoint and the run that goes on from it: found, named, and nothing is lost."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

from simpo.errors import ModelError
from simpo.run import run_training
from simpo.run.checkpoints.seal import damages
from simpo.run.folder import MANIFEST, checkpoints
from simpo.settings import read_settings


def interrupt(folder: Path) -> None:
    """Let a finished run look as if it had been killed before its export."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"status": "running"}))
    (folder / "model.safetensors").rename(folder.parent / "whole.safetensors")
    shutil.rmtree(checkpoints(folder)[-1])


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_word(config: Path) -> None:
    """Another word in the last row."""
    file = next(iter(yaml.safe_load(config.read_text())["dataset_mixer"]))
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    rows[-1]["chosen"][-1]["content"] += " indeed"
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def one_token(config: Path) -> None:
    model = yaml.safe_load(config.read_text())["model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["indeed"])
    tokenizer.save_pretrained(model)


def a_row_less(config: Path) -> None:
    file = Path(next(iter(yaml.safe_load(config.read_text())["dataset_mixer"])))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


CHANGES: list[tuple[Callable[[Path], None] | None, list[str], str]] = [
    (one_word, [], r"train_pairs_hash: '\w+' there, '\w+' here"),
    (a_row_less, [], r"train_pairs: 24 there, 23 here"),
    (one_token, [], r"tokenizer: '\w+' there, '\w+' here"),
    (None, ["--chat_template=chatml"], r"chat_template: '?\w+'? there, '\w+' here"),
    (None, ["--total_train_batch_size=4"], "total_train_batch_size: 8 there, 4 here"),
    (None, ["--learning_rate=2e-3"], "learning_rate: 0.001 there, 0.002 here"),
]


def test_a_change_that_would_make_it_another_run(make_config, tmp_path: Path, tiny_dir: str, capsys) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_dir, model, copy_function=shutil.copyfile)
    settings: dict[str, Any] = {"model_name_or_path": str(model), "save_strategy": "steps", "save_steps": 1}
    run_training(read_settings(make_config(**settings, eval_dataset_mixer=None)))
    interrupt(out)
    before = everything(out)
    for change, overrides, words in CHANGES:
        config = make_config(**settings, eval_dataset_mixer=None)  # writes the data anew
        if change is not None:
            change(config)
        with pytest.raises(ModelError, match=words) as raised:
            run_training(read_settings(config, overrides))
        assert re.search(
            r"checkpoint-2 belongs to another run:(.|\n)*start afresh in another output_dir", str(raised.value)
        )
        assert everything(out) == before, f"{words}: something was written"
        shutil.copytree(tiny_dir, model, copy_function=shutil.copyfile, dirs_exist_ok=True)
    assert all(damages(path) == [] for path in checkpoints(out))
    (out / "checkpoint-2" / "optimizer.pt").unlink()
    capsys.readouterr()
    run_training(read_settings(make_config(**settings, eval_dataset_mixer=None)))
    printed = capsys.readouterr().out
    assert "checkpoint-2 is damaged (optimizer.pt is missing) and is passed over" in printed
    assert f"Going on from {out / 'checkpoint-1'}" in printed
    ours, theirs = load_file(out / "model.safetensors"), load_file(tmp_path / "whole.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
