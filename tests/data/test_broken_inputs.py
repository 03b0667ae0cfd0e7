"""Broken files by the way that a run takes: each is refused in one line that says where and what to do, or read with
every row either kept or dropped for a cause. No library's error comes through, and nothing gets smaller silently.

Other sources than files: test_broken_sources.py.
"""

import gzip
import json

import pytest

from simpo.data import schema, truncate
from simpo.data.chat import resolve_chat_template
from simpo.data.config import DataConfig
from simpo.data.load import load_mix
from simpo.data.tokenize import TokenizeOptions, tokenize_pairs
from simpo.errors import ConfigError, DataError

from .conftest import assistant, conversation, system, user

TEXT = {"prompt": "q", "chosen": "a", "rejected": "b"}
CHAT = conversation([user("q")], "yes", "no")
LINE = json.dumps(TEXT) + "\n"


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def chat(**changes):
    return {**CHAT, **changes}


def turns(*pairs):
    """A conversation on both sides that ends with yes and no."""
    first = [{"role": role, "content": content} for role, content in pairs]
    return conversation(first, "yes", "no")


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def run(settings, tokenizer, **options):
    """Load and tokenise; every row of the sources is accounted for."""
    train, _, loaded = load_mix(settings)
    _, report = tokenize_pairs(train, tokenizer, TokenizeOptions(**options))
    assert loaded.total == loaded.kept + loaded.held_out + sum(loaded.dropped.values())
    assert report.total == loaded.seen == report.kept + sum(report.dropped.values())
    return report


def refused(kind, parts, settings, tokenizer, **options):
    with pytest.raises(kind) as error:
        run(settings() if callable(settings) else settings, tokenizer, **options)
    message = str(error.value)
    assert type(error.value) is kind and "Traceback" not in message
    for part in parts:
        assert part in message, message
    return message


# files that are refused: name, content, and what the one line of the error must say besides the file's name

REFUSED_FILES = {
    "bad json in a line": ("p.jsonl", lines(TEXT, TEXT) + '{"prompt": [}\n', [":3: bad JSON at column 13"]),
    "trailing comma in a line": ("p.jsonl", LINE + LINE.strip() + ",\n", [":2: bad JSON at column", "one whole JSON"]),
    "cut off in the last line": ("p.jsonl", (LINE * 9)[:-20], [":9: bad JSON"]),
    "a line that is a number": ("p.jsonl", LINE + "3\n", [":2: holds a int", "one whole JSON object"]),
    "a line that is a list": ("p.jsonl", LINE + "[1]\n", [":2: holds a list"]),
    "one key twice": (
        "p.jsonl",
        LINE + '{"prompt": "q", "chosen": "a", "chosen": "c", "rejected": "b"}\n',
        [":2:", "'chosen' stands twice"],
    ),
    "half a surrogate pair": (
        "p.jsonl",
        LINE + '{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}\n',
        [":2:", "surrogate"],
    ),
    "invalid UTF-8": (
        "p.jsonl",
        LINE.encode() + b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n',
        [":2: is no UTF-8"],
    ),
    "UTF-16": ("p.jsonl", (LINE * 2).encode("utf-16"), [":1: is no UTF-8", "save the file as UTF-8"]),
    "Latin-1": ("p.jsonl", LINE.replace("q", "caf\u00e9").encode("latin-1"), [":1: is no UTF-8"]),
    "a huge number": ("p.jsonl", lines(TEXT, {**TEXT, "chosen": 10**30}), [":2: the number 1000", "write it as text"]),
    "empty file": ("p.jsonl", "", ["the file is empty"]),
    "only blank lines": ("p.jsonl", "\n\n  \n", ["holds no rows"]),
    "empty objects": ("p.jsonl", "{}\n{}\n", ["holds no rows, or only empty ones"]),
    "truncated gzip": (
        "p.jsonl.gz",
        gzip.compress((LINE * 500).encode(), mtime=0)[:-12],
        ["ends early, after line", "download it again"],
    ),
    "text that is called gzip": ("p.jsonl.gz", LINE, ["cannot be decompressed", "suffix"]),
    "a zip that is called gzip": ("p.jsonl.gz", b"PK\x03\x04" + b"\0" * 60, ["cannot be decompressed"]),
    "array cut off": ("p.json", "[" + LINE.strip() + ",\n" + LINE, [":3: bad JSON", "','"]),
    "array of numbers": ("p.json", "[1, 2]", ["entry 0 is a int"]),
    "array of rows and texts": ("p.json", json.dumps([TEXT, "x"]), ["entry 1 is a str"]),
    "an indented object with mappings": (
        "p.json",
        json.dumps({**TEXT, "tools": [{"type": "function", "function": {"name": "f"}}]}, indent=2),
        [":1: bad JSON", "each line must be one whole JSON object"],
    ),
    "empty array": ("p.json", "[]", ["holds no rows"]),
    "one object of columns": (
        "p.json",
        json.dumps({key: [value] * 3 for key, value in TEXT.items()}),
        ["has type List"],
    ),
    "wrong columns": (
        "p.jsonl",
        lines({"question": "q", "good": "a", "bad": "b"}),
        ["no column chosen", "question, good, bad", "rename"],
    ),
    "one column missing": ("p.jsonl", lines({"prompt": "q", "chosen": "a"}), ["no column rejected"]),
    "texts without a prompt": ("p.jsonl", lines({"chosen": "a", "rejected": "b"}), ["no text column prompt"]),
    "columns in capitals": (
        "p.jsonl",
        lines({key.title(): value for key, value in TEXT.items()}),
        ["no column chosen", "Chosen"],
    ),
    "all answers null": ("p.jsonl", lines({**TEXT, "chosen": None}), ["column chosen has type"]),
    "numbers for answers": (
        "p.jsonl",
        lines({**TEXT, "chosen": 1, "rejected": 2}),
        ["column chosen has type", "int64"],
    ),
    "lists in lists": (
        "p.jsonl",
        lines({"chosen": [CHAT["chosen"]], "rejected": [CHAT["rejected"]]}),
        ["column chosen has type"],
    ),
    "a message without its list": (
        "p.jsonl",
        lines({"prompt": "q", "chosen": assistant("a"), "rejected": assistant("b")}),
        ["column chosen has type", "a list of messages"],
    ),
    "messages against text": (
        "p.jsonl",
        lines({**CHAT, "rejected": "no"}),
        ["column chosen holds messages", "use one form"],
    ),
    "booleans for answers": (
        "p.jsonl",
        lines({**TEXT, "chosen": True, "rejected": False}),
        ["column chosen has type", "bool"],
    ),
    "CSV with a missing quote": (
        "p.csv",
        'prompt,chosen,rejected\nq,"a,b\nq,c,d\n',
        [":2: bad CSV", "a quote is missing"],
    ),
    "CSV whose missing quote joins rows": ("p.csv", 'prompt,chosen,rejected\nq,"a,b\nq,"c",d\n', [":2: bad CSV"]),
    "CSV with a field too many": (
        "p.csv",
        "prompt,chosen,rejected\nq,a,b\nq,a,b,c\n",
        [":3: 4 fields where the header has 3"],
    ),
    "CSV with a field too many in all rows": ("p.csv", "prompt,chosen,rejected\nq,a,b,c\nq,a,b,c\n", [":2: 4 fields"]),
    "CSV with a field too few": ("p.csv", "prompt,chosen,rejected\nq,a\n", [":2: 2 fields where the header has 3"]),
    "CSV with a column twice": (
        "p.csv",
        "prompt,chosen,chosen,rejected\nq,a,b,c\n",
        [":1: the column chosen stands twice"],
    ),
    "CSV without a header": ("p.csv", "q,a,b\nq2,a,b\n", ["no column chosen", "q, a, b"]),
    "CSV of a header only": ("p.csv", "prompt,chosen,rejected\n", ["holds no rows"]),
    "CSV with semicolons": ("p.csv", "prompt;chosen;rejected\nq;a;b\n", ["no column chosen", "prompt;chosen;rejected"]),
    "CSV in UTF-16": (
        "p.csv",
        "prompt,chosen,rejected\nq,a,b\n".encode("utf-16"),
        ["is no UTF-8", "save the file as UTF-8"],
    ),
    "CSV in Latin-1": ("p.csv", "prompt,chosen,rejected\nq,a,b\nq,caf\u00e9,b\n".encode("latin-1"), ["is no UTF-8"]),
    "text that is called parquet": ("p.parquet", LINE, ["cannot be read as parquet"]),
    "JSON lines that are called CSV": ("p.csv", LINE, ["p.csv"]),
    "unknown suffix": ("p.tsv", LINE, ["unknown kind of file", ".jsonl"]),
    "no suffix": ("pairs", LINE, ["unknown kind of file"]),
}


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_files_that_are_refused(tmp_path, tiny_tokenizer, capfd, name):
    file, content, parts = REFUSED_FILES[name]
    path = put(tmp_path / file, content)
    message = refused(DataError, [path, *parts], DataConfig({path: 1.0}), tiny_tokenizer)
    assert "\n" not in message and "Failed to" not in capfd.readouterr().err


# files that are read: name, content, rows kept, rows dropped by cause

READ_FILES = {
    "byte order mark": ("p.jsonl", "\ufeff" + LINE, 1, {}),
    "Windows line ends": ("p.jsonl", (LINE * 3).replace("\n", "\r\n"), 3, {}),
    "gzip that is called jsonl": ("p.jsonl", gzip.compress((LINE * 3).encode(), mtime=0), 3, {}),
    "an indented object": ("p.json", json.dumps(TEXT, indent=2), 1, {}),
    "NaN in place of texts": (
        "p.jsonl",
        lines(TEXT, {**TEXT, "prompt": float("nan")}, {**TEXT, "chosen": float("nan")}),
        1,
        {schema.NO_PROMPT: 1, schema.MISSING_FIELD: 1},
    ),
    "nulls": (
        "p.jsonl",
        lines(TEXT, {**TEXT, "chosen": None}, {**TEXT, "rejected": None}, {**TEXT, "prompt": None}),
        1,
        {schema.MISSING_FIELD: 2, schema.NO_PROMPT: 1},
    ),
    "missing keys": (
        "p.jsonl",
        lines(TEXT, {"prompt": "q", "chosen": "a"}, {"chosen": "a", "rejected": "b"}),
        1,
        {schema.MISSING_FIELD: 1, schema.NO_PROMPT: 1},
    ),
    "answers of white space": (
        "p.jsonl",
        lines(TEXT, {**TEXT, "chosen": " \n\t"}, {**TEXT, "rejected": ""}),
        1,
        {schema.EMPTY_RESPONSE: 2},
    ),
    "prompts of white space": ("p.jsonl", lines(TEXT, {**TEXT, "prompt": "  "}), 1, {schema.NO_PROMPT: 1}),
    "equal answers": (
        "p.jsonl",
        lines(TEXT, {**TEXT, "chosen": "b"}, CHAT, chat(rejected=CHAT["chosen"])),
        2,
        {schema.EQUAL: 2},
    ),
    "texts and messages in one file": ("p.jsonl", lines(TEXT, CHAT, {**CHAT, "prompt": "q"}), 3, {}),
    "text on one side, messages on the other, in one row": (
        "p.jsonl",
        lines(CHAT, TEXT, chat(rejected="no")),
        2,
        {schema.MALFORMED: 1},
    ),
    "numbers among texts": (
        "p.jsonl",
        lines(TEXT, {**TEXT, "chosen": 3}, {**TEXT, "rejected": 1.5}),
        1,
        {schema.MALFORMED: 2},
    ),
    "roles out of order": (
        "p.jsonl",
        lines(
            CHAT,
            turns(("user", "a"), ("user", "b")),
            turns(("assistant", "a"), ("user", "b")),
            turns(("user", "a"), ("system", "s")),
        ),
        1,
        {schema.ROLE_ORDER: 3},
    ),
    "unknown roles": ("p.jsonl", lines(CHAT, turns(("human", "q")), turns(("gpt", "q"))), 1, {schema.UNKNOWN_ROLE: 2}),
    "roles in capitals": ("p.jsonl", lines(CHAT, turns(("User", "q"))), 1, {schema.UNKNOWN_ROLE: 1}),
    "booleans and numbers for roles": (
        "p.jsonl",
        lines(CHAT, turns((True, "q")), turns((7, "q"))),
        1,
        {schema.MALFORMED: 2},
    ),
    "ShareGPT's keys": (
        "p.jsonl",
        lines(CHAT, {"chosen": [{"from": "human", "value": "q"}], "rejected": [{"from": "human", "value": "r"}]}),
        1,
        {schema.MALFORMED: 1},
    ),
    "messages as texts": ("p.jsonl", lines(CHAT, chat(chosen=["q", "yes"])), 1, {schema.MALFORMED: 1}),
    "messages in lists of lists": ("p.jsonl", lines(CHAT, chat(chosen=[CHAT["chosen"]])), 1, {schema.MALFORMED: 1}),
    "content of null": ("p.jsonl", lines(CHAT, turns(("user", None))), 1, {schema.MALFORMED: 1}),
    "content of numbers": ("p.jsonl", lines(CHAT, turns(("user", 5))), 1, {schema.MALFORMED: 1}),
    "images": (
        "p.jsonl",
        lines(CHAT, turns(("user", [{"type": "image", "url": "x.png"}, {"type": "text", "text": "q"}]))),
        1,
        {schema.MALFORMED: 1},
    ),
    "empty lists": (
        "p.jsonl",
        lines(CHAT, {"chosen": [], "rejected": []}, {**CHAT, "prompt": []}),
        2,
        {schema.EMPTY_RESPONSE: 1},
    ),
    "only a system turn": ("p.jsonl", lines(CHAT, turns(("system", "s"))), 1, {schema.NO_PROMPT: 1}),
    "no shared prompt": (
        "p.jsonl",
        lines(CHAT, {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}),
        1,
        {schema.NO_PROMPT: 1},
    ),
    "conversations that differ early": (
        "p.jsonl",
        lines(
            CHAT,
            {
                "chosen": [*CHAT["chosen"], user("x"), assistant("y")],
                "rejected": [*CHAT["rejected"], user("x"), assistant("y")],
            },
        ),
        1,
        {schema.EARLY_SPLIT: 1},
    ),
    "no answer after the question": (
        "p.jsonl",
        lines(CHAT, {"chosen": [user("q"), user("a")], "rejected": [user("q"), user("b")]}),
        1,
        {schema.ROLE_ORDER: 1},
    ),
    "an empty system turn": ("p.jsonl", lines(CHAT, conversation([system(""), user("q")], "a", "b")), 2, {}),
    "control characters": ("p.jsonl", lines({**TEXT, "chosen": "a\u0000b\u2028c"}), 1, {}),
    "CSV with empty fields": (
        "p.csv",
        "prompt,chosen,rejected\nq,a,b\nq,,b\n,a,b\n",
        1,
        {schema.EMPTY_RESPONSE: 1, schema.NO_PROMPT: 1},
    ),
    "CSV with line ends in quotes": ("p.csv", 'prompt,chosen,rejected\r\n"q\n1","a, ""b""",b\r\n', 1, {}),
    "CSV of numbers": ("p.csv", "prompt,chosen,rejected\n1,007,7\n", 1, {}),
}


@pytest.mark.parametrize("name", READ_FILES)
def test_files_that_are_read(tmp_path, tiny_tokenizer, name):
    file, content, kept, dropped = READ_FILES[name]
    report = run(DataConfig({put(tmp_path / file, content): 1.0}), tiny_tokenizer)
    assert (report.kept, report.dropped) == (kept, dropped)


def test_a_row_of_five_megabytes(tmp_path, tiny_tokenizer):
    path = put(tmp_path / "p.jsonl", lines(TEXT, {**TEXT, "prompt": "long " * 1_000_000}, TEXT))
    report = run(DataConfig({path: 1.0}), tiny_tokenizer, max_length=64, max_prompt_length=32)
    assert (report.kept, report.dropped, report.truncated) == (3, {}, {truncate.PROMPT_CUT: 1})
    assert report.prompt_max == 62


def test_a_prompt_longer_than_max_length(tmp_path, tiny_tokenizer):
    rows = [CHAT, conversation([user("far " * 300)], "yes " * 300, "no " * 300)]
    path = put(tmp_path / "p.jsonl", lines(*rows))
    report = run(DataConfig({path: 1.0}), tiny_tokenizer, max_length=64, max_prompt_length=32)
    assert (report.kept, report.dropped) == (2, {}) and report.prompt_max == 32
    assert report.truncated == {truncate.PROMPT_CUT: 1, truncate.CHOSEN_CUT: 1, truncate.REJECTED_CUT: 1}


def test_no_row_can_be_trained_on(tmp_path, tiny_tokenizer):
    path = put(tmp_path / "p.jsonl", lines({**TEXT, "chosen": ""}, {**TEXT, "rejected": "a"}))
    parts = ["none of the 2 rows", "dropped 1: empty response (rows 0)", "dropped 1: chosen equals rejected (rows 1)"]
    refused(DataError, parts, DataConfig({path: 1.0}), tiny_tokenizer)


# what chat templates use


@pytest.mark.parametrize("column", ["tools", "chat_template_kwargs"])
def test_template_columns_that_are_none(tmp_path, tiny_tokenizer, column):
    fine = {"tools": [{"type": "function", "function": {"name": "f"}}], "chat_template_kwargs": {"think": True}}
    rows = [CHAT, {**CHAT, column: fine[column]}, {**CHAT, column: "{broken"}, {**CHAT, column: 3}]
    report = run(DataConfig({put(tmp_path / "p.jsonl", lines(*rows)): 1.0}), tiny_tokenizer)
    assert report.kept == 2 and sum(report.dropped.values()) == 2


def test_a_template_with_a_syntax_error(tmp_path, tiny_tokenizer):
    path = put(tmp_path / "t.jinja", "{% for m in messages %}\n{{ m.content }}\n{% endif %}")
    with pytest.raises(ConfigError, match=r"t\.jinja: the chat template does not compile at line 3"):
        resolve_chat_template(path, tiny_tokenizer)


def test_a_template_that_is_no_text(tmp_path, tiny_tokenizer):
    path = put(tmp_path / "t.jinja", b"\xff\xfe{{ messages }}")
    with pytest.raises(ConfigError, match=r"t\.jinja: cannot be read"):
        resolve_chat_template(path, tiny_tokenizer)


def test_there_are_enough_cases():
    assert len(REFUSED_FILES) + len(READ_FILES) >= 40
