"""What `open_source` and `split_source` read: kinds of files, and splits by purpose."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from simpo.data.sources import open_source, split_source
from simpo.errors import ConfigError, DataError

ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}
LINE = json.dumps(ROW) + "\n"


def file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + LINE.encode()),
        ("windows.jsonl", LINE.replace("\n", "\r\n")),
        ("no_last_line_end.jsonl", LINE.strip()),
        ("blank_lines.jsonl", f"\n{LINE}\n\n"),
        ("CAPITALS.JSONL", LINE),
        ("two.dots.v1.jsonl", LINE),
        ("with space.jsonl", LINE),
        ("[brackets]*.jsonl", LINE),
        ("really_gzip.jsonl", gzip.compress(LINE.encode(), mtime=0)),
        ("indented_array.json", json.dumps([ROW], indent=2)),
        ("bom.csv", "\ufeffprompt,chosen,rejected\nq,a,b\n"),
        ("windows.csv", "prompt,chosen,rejected\r\nq,a,b\r\n"),
        ("quoted.csv", '"prompt","chosen","rejected"\n"q","a","b"\n'),
        ("p.csv.gz", gzip.compress(b"prompt,chosen,rejected\nq,a,b\n", mtime=0)),
    ],
)
def test_files_that_are_fine(tmp_path, name, content):
    assert open_source(file(tmp_path, name, content)).to_list() == [ROW]


def test_csv_is_text(tmp_path):
    path = file(tmp_path, "p.csv", 'prompt,chosen,rejected\n1,007,7.0\nTrue,,"a ""b"",\nc"\n2020-01-01,None,NA\n')
    rows = [("1", "007", "7.0"), ("True", "", 'a "b",\nc'), ("2020-01-01", "None", "NA")]
    assert [tuple(row.values()) for row in open_source(path)] == rows


def test_types_that_change_far_down_a_file(tmp_path):
    """`datasets` takes the types of the first 10 MB; valid rows of other types are read all the same."""
    filler = [{**ROW, "prompt": None, "chosen": "x" * 100_000} for _ in range(120)]
    tail = [{**ROW, "tools": [{"name": "f"}]}, {**ROW, "chosen": [{"role": "user", "content": "q"}]}]
    path = file(tmp_path, "p.jsonl", "".join(json.dumps(row) + "\n" for row in [*filler, *tail]))
    data = open_source(path)
    assert len(data) == 122
    assert data[120]["tools"] == [{"name": "f"}] and data[120]["prompt"] == "q" and data[0]["prompt"] is None
    assert data[121]["chosen"] == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize("far", [False, True], ids=["all", "from the second 10 MB on"])
@pytest.mark.parametrize("array", [False, True], ids=["lines", "array"])
def test_values_in_mappings_are_what_the_file_says(tmp_path, far, array):
    """Arrow's parser would make dates of texts that look like dates, and 3.0 of 3 beside 2.5."""

    def row(number, date):
        call = {"type": "function", "function": {"name": "f", "arguments": {"n": number, "date": date}}}
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        return {
            "prompt": turns,
            "chat_template_kwargs": {"date_string": date, "n": number},
            "chosen": "x" * far * 10**6,
        }

    rows = [row(3, "26 Jul 2024")] * 12 * far + [row(number, "2024-07-26") for number in (3, 2.5)] * 6
    content = json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows)
    data = open_source(file(tmp_path, "p.json", content))
    assert json.dumps(data["chat_template_kwargs"][:]) == json.dumps([row["chat_template_kwargs"] for row in rows])
    assert json.dumps(data["prompt"][:]) == json.dumps([row["prompt"] for row in rows])


def test_a_row_of_five_megabytes(tmp_path):
    rows = [ROW, {**ROW, "chosen": "long " * 1_000_000}, ROW]
    data = open_source(file(tmp_path, "p.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert data.to_list() == rows


def test_a_changed_file_is_read_again(tmp_path):
    path = file(tmp_path, "p.csv", "prompt,chosen,rejected\nq,a,b\n")
    assert len(open_source(path)) == 1
    file(tmp_path, "p.csv", "prompt,chosen,rejected\nq,a,b\nq,a,c\n")
    assert len(open_source(path)) == 2


def test_a_file_has_the_purpose_that_is_wanted():
    data = Dataset.from_list([ROW])
    assert [part.purpose for part in split_source(data, "f", None, ("train", "eval"))] == ["train"]
    assert [part.purpose for part in split_source(data, "f", None, ("eval",))] == ["eval"]


def test_splits_are_named_in_messages():
    data = DatasetDict({name: Dataset.from_list([ROW]) for name in ("train_prefs", "test_prefs")})
    parts = split_source(data, "hub/name", ["train_prefs", "test_prefs[:1]"], ("train", "eval"))
    assert [(part.purpose, part.where) for part in parts] == [
        ("train", "hub/name [train_prefs]"),
        ("eval", "hub/name [test_prefs[:1]]"),
    ]
    with pytest.raises(DataError, match="no split 'train_pref'; it has train_prefs, test_prefs"):
        split_source(data, "hub/name", ["train_pref"], ("train", "eval"))


@pytest.mark.parametrize("kind", ["file", "saved", "splits"])
def test_configurations_of_what_has_none(tmp_path, kind):
    if kind == "file":
        source = file(tmp_path, "p.jsonl", LINE)
    else:
        source = str(tmp_path / "saved")
        data = Dataset.from_list([ROW])
        (data if kind == "saved" else DatasetDict({"train": data})).save_to_disk(source)
    with pytest.raises(ConfigError, match=r"has no configuration 'x'.*write null"):
        open_source(source, "x")
    open_source(source, "default")
