"""Templates see nothing but what they are given, and no name leads out of its folder."""

import contextlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from simpo.data.chat import render, resolve_chat_template
from simpo.data.sources import open_source
from simpo.errors import ConfigError, SimPOError
from simpo.evals.judges.arena_hard import judge_arena_hard
from simpo.evals.layouts import file_name
from simpo.model import load_tokenizer
from simpo.onpolicy.annotators.judge import TEMPLATE, read_template
from simpo.onpolicy.generate import run_generate
from simpo.store import read_records
from tests.engines.serving import Server
from tests.evals.judges import scripted
from tests.evals.test_arena_hard import settings_of
from tests.onpolicy.conftest import make_generate

__all__ = ["make_generate"]

# Ways from a text or a function of jinja to Python's modules.
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ cycler.__init__.__globals__.os.system('touch %s') }}",
    "{{ lipsum.__globals__['os'].system('touch %s') }}",
    "{{ self.__init__.__globals__.__builtins__.open('%s', 'w') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "{% set x = joiner.__init__.__globals__['__builtins__']['open']('%s', 'w') %}{{ x }}",
)
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def _escape(text: str, marker: Any) -> str:
    return text.replace("%s", str(marker.path))


@pytest.mark.parametrize("text", ESCAPES)
def test_a_chat_template_does_not_reach_python(text: str, marker, tiny_dir: str, spoilt) -> None:
    hostile = CHAT + _escape(text, marker)
    tokenizer = load_tokenizer(tiny_dir)
    assert resolve_chat_template(CHAT, tokenizer) == CHAT
    folder = spoilt()
    (folder / "chat_template.jinja").write_text(hostile)
    own = load_tokenizer(str(folder))  # the model's own template
    assert own.chat_template == hostile
    for one in (tokenizer, own):
        with contextlib.suppress(SimPOError):  # some escapes end in nothing rather than in an error
            resolve_chat_template(hostile, one)
            assert render(one, hostile, [[{"role": "user", "content": "Why?"}]]) == ["user: Why?\n"]
    assert not marker.touched


@pytest.mark.parametrize("text", ESCAPES)
def test_a_judges_template_does_not_reach_python(text: str, marker, tmp_path: Path) -> None:
    path = tmp_path / "judge.jinja"
    path.write_text(TEMPLATE.read_text() + _escape(text, marker))
    with pytest.raises(ConfigError, match=r"prompt_template: .*judge\.jinja: "):
        read_template(str(path))
    assert not marker.touched


def test_a_judges_template_changes_nothing_that_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "judge.jinja"
    path.write_text(TEMPLATE.read_text() + "{{ extra.append(1) if extra is defined }}")
    template = read_template(str(path))
    with pytest.raises(Exception, match=r"not safely callable|unsafe"):
        template.render(conversation="c", response_a="a", response_b="b", extra=[])


def test_texts_are_no_templates() -> None:
    text = read_template(None).render(conversation="{{ 1 + 1 }}", response_a="{% raw %}", response_b="{{ b }}")
    assert "{{ 1 + 1 }}" in text and "{% raw %}" in text and "{{ b }}" in text


# --- names --------------------------------------------------------------------------------------------------------

NAMES = ("../../evil", "..", ".", "/etc/passwd", "a/../../b", "..\\..\\evil", "evil\x00.txt", "", "x" * 500, "é/ü")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    path = folder / file_name(name) / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert path.resolve().parent.parent == folder.resolve() and len(file_name(name)) < 200


def test_names_stay_apart(tmp_path: Path) -> None:
    assert file_name("org/model-7b.v2") == "org_model-7b.v2"
    assert len({file_name("x" * 500), file_name("x" * 501), file_name("x" * 120)}) == 3


def _all_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["../../../evil", "..", "/tmp/evil-of-a-judge"])
def test_the_name_in_a_file_of_answers_stays_in_the_folder(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    with Server(scripted(lambda messages: "Because. [[A>>B]]")) as one:
        prices = {"price_in": 0.0, "price_out": 0.0}
        judge_arena_hard(settings_of(folder, one.url, 1, model=name, judge="../../../../judge", server=prices))
    inside = _all_files(folder / "out")
    given = {folder / file for file in ("question.jsonl", "mine.jsonl", "theirs.jsonl")}
    assert inside and _all_files(tmp_path) == inside | given
    assert not list(Path("/tmp").glob("evil-of-a-judge*"))


def test_ids_of_rows_are_no_paths(make_generate: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "prompt_id": "../../../evil", "id": "/tmp/evil-of-a-row"}] + [
        {"prompt": f"Who {number}?", "prompt_id": "../" * number} for number in range(2)
    ]
    run_generate(make_generate(rows, max_new_tokens=2))
    assert len(list(read_records(tmp_path / "out"))) == 3
    assert _all_files(tmp_path) == {*_all_files(tmp_path / "out"), tmp_path / "prompts.jsonl"}
    assert not Path("/tmp/evil-of-a-row").exists()


def test_an_archive_of_data_stays_in_the_cache(tmp_path: Path, monkeypatch) -> None:
    cache = tmp_path / "deep" / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", cache / "extracted")
    folder = tmp_path / "pairs"
    folder.mkdir()
    row = b'{"prompt": "Why?", "chosen": "So.", "rejected": "No."}\n'
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("train.jsonl", "../../evil.jsonl", "/tmp/evil-of-an-archive.jsonl"):
            archive.writestr(name, row)
    (folder / "train.zip").write_bytes(content.getvalue())
    with contextlib.suppress(SimPOError):
        open_source(str(folder))
    assert {path.relative_to(tmp_path).parts[0] for path in _all_files(tmp_path)} <= {"deep", "pairs"}
    assert all(cache in path.parents or folder in path.parents for path in _all_files(tmp_path))
    assert not Path("/tmp/evil-of-an-archive.jsonl").exists()


def test_splits_are_read_only_by_names_of_splits(tmp_path: Path) -> None:
    """A saved data set names its splits; one that names a folder elsewhere is no data set of this folder."""
    rows = Dataset.from_list([{"prompt": "Why?", "chosen": "So.", "rejected": "No."}])
    rows.save_to_disk(str(tmp_path / "elsewhere"))
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    before = _all_files(tmp_path)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "../elsewhere"]}')
    data = open_source(str(tmp_path / "saved"))
    assert set(data) >= {"train"} and _all_files(tmp_path) == before  # read, and nothing written
