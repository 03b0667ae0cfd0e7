"""Row formats, drop causes and column checks."""

import datetime

import pytest
from datasets import Dataset

from simpo.data import schema
from simpo.data.schema import Pair, check_columns, normalise
from simpo.errors import DataError

U, A, B = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "b"},
)
S = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [U], "chosen": [A], "rejected": [B]},
        {"chosen": [U, A], "rejected": [U, B]},
        {"prompt": None, "chosen": [U, A], "rejected": [U, B]},
        {"prompt": "q", "chosen": [U, A], "rejected": [U, B]},
        {"prompt": [U], "chosen": [U, A], "rejected": [U, B], "score": 3, "messages": [U]},
        {"chosen": [{**U, "name": None}, {**A, "tool_calls": None}], "rejected": [U, B]},
    ],
    ids=["explicit", "whole", "null prompt", "ultrafeedback", "prompt and whole", "nulls from arrow"],
)
def test_every_message_format_gives_the_same_pair(row):
    assert normalise(row) == Pair([U], [A], [B])


def test_text_pair():
    assert normalise({"prompt": "q", "chosen": "a", "rejected": "b", "id": 1}) == Pair("q", "a", "b")


@pytest.mark.parametrize("prompt", [[S, U], [U], [], None, "another text", ["no message"]])
def test_whole_conversations_carry_their_own_prompt(prompt):
    assert normalise({"prompt": prompt, "chosen": [S, U, A], "rejected": [S, U, B]}) == Pair([S, U], [A], [B])


def test_prompt_is_the_longest_shared_start():
    pair = normalise({"chosen": [S, U, A, U, A], "rejected": [S, U, A, U, B]})
    assert pair == Pair([S, U, A, U], [A], [B])


def test_notes_beside_messages_do_not_split_a_conversation():
    pair = normalise({"chosen": [{**U, "id": 1}, A], "rejected": [{**U, "id": 2}, B]})
    assert isinstance(pair, Pair) and pair.messages()[0] == [{**U, "id": 1}]


def test_tool_turns():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    result = {"role": "tool", "content": "42"}
    pair = normalise({"chosen": [U, call, result, A], "rejected": [U, call, result, B]})
    assert isinstance(pair, Pair) and len(pair.messages()[0]) == 3 and pair.messages()[1] == [A]


@pytest.mark.parametrize(
    "row, cause",
    [
        ({"chosen": None, "rejected": [U, B]}, schema.MISSING_FIELD),
        ({"prompt": "q", "chosen": "a", "rejected": None}, schema.MISSING_FIELD),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, schema.NO_PROMPT),
        ({"prompt": "  ", "chosen": "a", "rejected": "b"}, schema.NO_PROMPT),
        ({"chosen": [A], "rejected": [B]}, schema.NO_PROMPT),
        ({"prompt": [], "chosen": [A], "rejected": [B]}, schema.NO_PROMPT),
        ({"prompt": [S], "chosen": [A], "rejected": [B]}, schema.NO_PROMPT),
        ({"chosen": [U, A], "rejected": [{**U, "content": "other"}, B]}, schema.NO_PROMPT),
        ({"prompt": [U], "chosen": "a", "rejected": "b"}, schema.MALFORMED),
        ({"prompt": "q", "chosen": [A], "rejected": [B]}, schema.MALFORMED),
        ({"prompt": [S], "chosen": [U, A], "rejected": [U, B]}, schema.MALFORMED),  # S would be lost
        ({"prompt": [S, U], "chosen": [U, A], "rejected": [U, B]}, schema.MALFORMED),
        ({"chosen": "a", "rejected": [U, B]}, schema.MALFORMED),
        ({"chosen": 3, "rejected": [U, B]}, schema.MALFORMED),
        ({"chosen": [U, "a"], "rejected": [U, B]}, schema.MALFORMED),
        ({"chosen": [{"from": "human", "value": "q"}, A], "rejected": [U, B]}, schema.MALFORMED),
        ({"chosen": [U, {"role": "assistant", "content": None}], "rejected": [U, B]}, schema.MALFORMED),
        ({"chosen": [U, {"role": "assistant", "content": [{"type": "image"}]}], "rejected": [U, B]}, schema.MALFORMED),
        ({"prompt": ["q"], "chosen": [A], "rejected": [B]}, schema.MALFORMED),
        ({"chosen": [{**U, "role": "human"}, A], "rejected": [{**U, "role": "human"}, B]}, schema.UNKNOWN_ROLE),
        ({"chosen": [A, U, A], "rejected": [A, U, B]}, schema.ROLE_ORDER),
        ({"chosen": [U, U, A], "rejected": [U, U, B]}, schema.ROLE_ORDER),
        ({"chosen": [U, A, A], "rejected": [U, A, B]}, schema.ROLE_ORDER),
        ({"chosen": [U, S, A], "rejected": [U, S, B]}, schema.ROLE_ORDER),
        ({"chosen": [U, A, U], "rejected": [U, A, {**U, "content": "r"}]}, schema.ROLE_ORDER),
        ({"prompt": [U, A], "chosen": [A], "rejected": [B]}, schema.ROLE_ORDER),
        ({"chosen": [U, A, U, A], "rejected": [U, B, U, A]}, schema.EARLY_SPLIT),
        ({"chosen": [U, A], "rejected": [U, A, U, B]}, schema.EARLY_SPLIT),
        ({"chosen": [], "rejected": [U, B]}, schema.EMPTY_RESPONSE),
        ({"chosen": [U, {**A, "content": " \n"}], "rejected": [U, B]}, schema.EMPTY_RESPONSE),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, schema.EMPTY_RESPONSE),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, schema.EQUAL),
        ({"chosen": [U, A], "rejected": [U, A]}, schema.EQUAL),
        ({"prompt": [U], "chosen": [A], "rejected": [A]}, schema.EQUAL),
    ],
)
def test_untrainable_rows_have_a_cause(row, cause):
    assert normalise(row) == cause
    assert cause in schema.DROP_CAUSES


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"prompt": ["q"], "chosen": ["a"]}, "no column rejected"),
        ({"messages": [[U]], "label": [True]}, "no column chosen and no column rejected"),
        ({"chosen": ["a"], "rejected": ["b"]}, "no text column prompt"),
        ({"prompt": [[U]], "chosen": ["a"], "rejected": ["b"]}, "no text column prompt"),
        ({"prompt": ["q"], "chosen": [1.5], "rejected": ["b"]}, "column chosen has type"),
        ({"prompt": ["q"], "chosen": [["a"]], "rejected": ["b"]}, "column chosen has type"),
        ({"prompt": ["q"], "chosen": [[U, A]], "rejected": ["b"]}, "use one form"),
        ({"prompt": ["q"], "chosen": [None], "rejected": ["b"]}, "column chosen has type"),
    ],
)
def test_columns_that_cannot_be_pairs(columns, message):
    with pytest.raises(DataError, match=message) as error:
        check_columns(Dataset.from_dict(columns).features, "my/source [train]")
    assert "my/source [train]" in str(error.value)


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]},
        {"prompt": ["q"], "chosen": [[U, A]], "rejected": [[U, B]]},
        {"prompt": [7], "chosen": [[U, A]], "rejected": [[U, B]]},
        {"chosen": [[U, A]], "rejected": [[U, B]]},
    ],
)
def test_columns_that_can(columns):
    check_columns(Dataset.from_dict(columns).features, "x")


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": None}}}]}


def test_nulls_that_arrow_fills_in_are_taken_out_at_any_depth():
    row = {
        "prompt": [{**U, "tool_calls": None}, {**CALL, "content": None}, {"role": "tool", "content": "4"}],
        "chosen": [A],
        "rejected": [{**B, "tool_calls": []}],
        "tools": [{"name": "f", "parameters": {"a": {"enum": [None, 1]}, "b": None}}],
        "chat_template_kwargs": {"x": None, "y": False},
    }
    pair = normalise(row)
    assert isinstance(pair, Pair)
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    assert pair.prompt == [U, called, {"role": "tool", "content": "4"}] and pair.rejected == [B]
    assert pair.arguments == {"tools": [{"name": "f", "parameters": {"a": {"enum": [None, 1]}}}], "y": False}


@pytest.mark.parametrize(
    "tools, keywords, expected",
    [
        (None, None, {}),
        ([], {}, {}),
        ("", "{}", {}),
        ("null", None, {}),
        ('[{"name": "f", "default": null}]', None, {"tools": [{"name": "f", "default": None}]}),
        (['{"name": "f"}'], '{"x": null}', {"tools": [{"name": "f"}], "x": None}),
    ],
)
def test_template_arguments(tools, keywords, expected):
    pair = normalise({"chosen": [U, A], "rejected": [U, B], "tools": tools, "chat_template_kwargs": keywords})
    assert pair == Pair([U], [A], [B], expected)


@pytest.mark.parametrize(
    "column, value",
    [
        ("tools", "{"),
        ("tools", "[3]"),
        ("tools", {"type": "function"}),
        ("tools", 3),
        ("tools", ["{"]),
        ("chat_template_kwargs", "on"),
        ("chat_template_kwargs", "[1]"),
        ("chat_template_kwargs", ["x"]),
        ("chat_template_kwargs", {"tools": [{}]}),
        ("chat_template_kwargs", {"date": datetime.date(2024, 7, 26)}),
        ("tools", "[" * 100_000),
    ],
)
def test_malformed_template_arguments(column, value):
    assert normalise({"chosen": [U, A], "rejected": [U, B], column: value}) == schema.MALFORMED_TOOLS


def test_calls_hold_what_json_has():
    call = [{"function": {"name": "f", "arguments": {"day": datetime.date(2024, 7, 26)}}}]
    row = {"prompt": [U], "chosen": [{**A, "tool_calls": call}], "rejected": [B]}
    assert normalise(row) == schema.MALFORMED
    assert isinstance(normalise({**row, "chosen": [{**A, "day": datetime.date(2024, 7, 26)}]}), Pair)  # a note


def test_texts_have_no_template_to_give_arguments_to():
    assert normalise({"prompt": "q", "chosen": "a", "rejected": "b", "tools": "{"}) == Pair("q", "a", "b")


def test_answers_that_are_calls():
    other = {"role": "assistant", "tool_calls": [{"function": {"name": "g"}}]}
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    assert normalise({"prompt": [U], "chosen": [CALL], "rejected": [A]}) == Pair([U], [called], [A])
    assert normalise({"prompt": [U], "chosen": [CALL], "rejected": [other]}) == Pair([U], [called], [other])
    assert normalise({"prompt": [U], "chosen": [CALL], "rejected": [CALL]}) == schema.EQUAL


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_answers_that_differ_in_their_thoughts_only(key):
    thinking = {**A, key: "hm"}
    assert normalise({"chosen": [U, thinking], "rejected": [U, A]}) == Pair([U], [thinking], [A])
