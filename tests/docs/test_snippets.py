"""The Python of the documentation runs, its YAML names settings, its JSON is a row."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from simpo.onpolicy.annotate import AnnotateSettings
from simpo.onpolicy.annotators.kinds import read_annotators
from simpo.onpolicy.recipe import read_recipe
from simpo.onpolicy.settings import GenerateSettings
from simpo.run.sft.settings import sft_field_types
from simpo.settings.fieldtypes import field_types, types_of
from simpo.sweep.space import read_space
from tests.docs.pages import PAGES, ROOT, Block, blocks


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.name)
def test_python_compiles_and_its_imports_work(block: Block) -> None:
    tree = ast.parse(block.text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), block.name, "exec"), {})


def test_python_of_the_readme_runs(golden: dict[str, Any], tiny_dir: str, tmp_path: Path) -> None:
    (block,) = [block for block in blocks("python") if block.page == "README.md"]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in golden["rows"]))
    code = block.text
    for shown, here in (
        ("meta-llama/Meta-Llama-3-8B-Instruct", tiny_dir),
        ("outputs/my-simpo", str(tmp_path / "out")),
        ("data/pairs.jsonl", str(data)),
    ):
        assert shown in code
        code = code.replace(shown, here)
    namespace: dict[str, Any] = {}
    exec(compile(code, block.name, "exec"), namespace)
    assert namespace["trainer"].state.global_step == 1
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_yaml_names_settings(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = yaml.safe_load(block.text)
    if "space" in settings:  # what a sweep searches
        (tmp_path / "space.yaml").write_text(block.text)
        settings = read_space(tmp_path / "space.yaml").space
    if "generate" in settings:  # sections of a pipeline
        monkeypatch.chdir(ROOT)
        (tmp_path / "recipe.yaml").write_text(block.text)
        read_recipe([tmp_path / "recipe.yaml"], rounds="train" in settings)
        return
    if "annotators" in settings:
        assert set(settings) <= set(types_of(AnnotateSettings)) and read_annotators(settings["annotators"])
        return
    known = {"docs/sft.md": sft_field_types, "docs/on-policy.md": lambda: types_of(GenerateSettings)}
    assert settings and set(settings) <= set(known.get(block.page, field_types)())


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.name)
def test_json_is_a_row(block: Block) -> None:
    from simpo.data.dialogues import Dialogue, read_row
    from simpo.data.schema import Pair, normalise

    if block.page == "docs/sft.md":
        assert isinstance(read_row(json.loads(block.text)), Dialogue)
        return
    row = json.loads(block.text)
    if "completion" in row:  # as simpo.data.unpaired reads it
        row["chosen" if row["label"] else "rejected"] = row.pop("completion")
    assert isinstance(normalise(row, unpaired=True), Pair)


def test_every_fence_is_closed_and_named() -> None:
    for page in PAGES:
        fences = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
        assert all(fences[::2]) and not any(fences[1::2]) and len(fences) % 2 == 0, page
