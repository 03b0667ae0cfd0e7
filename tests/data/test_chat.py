"""Chat templates: where they come from, whether they work, what they write around an answer."""

import pytest

from simpo.data import chat
from simpo.data.chat import check_template, head_text, inspect_template, render_rows, resolve_chat_template
from simpo.errors import ConfigError, DataError

from .conftest import CHATML, CHATML_DEFAULT_SYSTEM, GEMMA, MISTRAL, PLAIN, assistant, system, user


def test_none_keeps_the_tokenizers_own(make_tokenizer):
    assert resolve_chat_template(None, make_tokenizer()) is None


def test_text_path_and_shipped_name(make_tokenizer, tmp_path, monkeypatch):
    tokenizer = make_tokenizer()
    (tmp_path / "mine.jinja").write_text(CHATML)
    monkeypatch.setattr(chat, "TEMPLATE_DIR", tmp_path)
    assert resolve_chat_template(CHATML, tokenizer) == CHATML
    assert resolve_chat_template(str(tmp_path / "mine.jinja"), tokenizer) == CHATML
    assert resolve_chat_template("mine", tokenizer) == CHATML


@pytest.mark.parametrize("value", ["nonesuch", "no/such.jinja", "chatml.jinja"])
def test_unknown_name_lists_what_there_is(make_tokenizer, tmp_path, monkeypatch, value):
    (tmp_path / "mine.jinja").write_text(CHATML)
    monkeypatch.setattr(chat, "TEMPLATE_DIR", tmp_path)
    with pytest.raises(ConfigError, match="mine"):
        resolve_chat_template(value, make_tokenizer())


def test_every_shipped_template_works(make_tokenizer):
    for name in chat.shipped_templates():
        assert resolve_chat_template(name, make_tokenizer())


@pytest.mark.parametrize(
    "template, message",
    [
        ("{% for m in messages %}\n{{ m.content }}\n{% endif %}", "does not compile at line 3"),
        ("{% for m in messages %}\n\n{{ m.content.nothing.more }}{% endfor %}", "fails at line 3"),
        ("\n{{ raise_exception('not today') }}", "not today"),
        ("{{ 'hello' }}", "does not appear"),
        ("{{ messages[0].content }}", "the assistant message does not appear"),
    ],
)
def test_template_that_fails(make_tokenizer, template, message):
    with pytest.raises(ConfigError, match=message):
        resolve_chat_template(template, make_tokenizer())
    with pytest.raises(DataError, match=message):
        check_template(make_tokenizer(), template, "tokenizer")


def test_broken_file_is_named(make_tokenizer, tmp_path):
    (tmp_path / "bad.jinja").write_text("{% for %}")
    with pytest.raises(ConfigError, match=r"bad\.jinja.*line 1"):
        resolve_chat_template(str(tmp_path / "bad.jinja"), make_tokenizer())


def test_rows_that_a_template_refuses_keep_their_neighbours(make_tokenizer):
    rows = [[user("a")], [system("s"), user("b")], [user("c")]]
    (first, none), (_, cause), (last, _) = render_rows(make_tokenizer(), GEMMA, rows)
    assert "a" in first and none is None and "c" in last
    assert cause == "template fails: System role not supported"


@pytest.mark.parametrize(
    "template, end, trailing, header",
    [
        (None, "<|eot_id|>", 0, "<|start_header_id|>user<|end_header_id|>\n\n"),
        (CHATML, "<|im_end|>", 1, "<|im_start|>user\n"),
        (GEMMA, "<end_of_turn>", 1, "<start_of_turn>user\n"),
        (MISTRAL, "<|end_of_text|>", 0, "[INST] "),
        (PLAIN, None, 0, "user: "),
    ],
    ids=["llama3", "chatml", "gemma", "mistral", "plain"],
)
def test_what_a_template_writes_around_an_answer(make_tokenizer, template, end, trailing, header):
    tokenizer = make_tokenizer(template)
    found = inspect_template(tokenizer, tokenizer.chat_template)
    assert found.end_of_turn == (None if end is None else tokenizer.convert_tokens_to_ids(end))
    assert found.trailing_ids == trailing
    assert found.user_header == header


@pytest.mark.parametrize(
    "template, first, expected",
    [
        (
            None,
            [system("Be kind.")],
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>",
        ),
        (None, [], "<|begin_of_text|>"),
        (CHATML, [system("Be kind.")], "<|im_start|>system\nBe kind.<|im_end|>\n"),
        (CHATML_DEFAULT_SYSTEM, [], "<|im_start|>system\nYou are helpful.<|im_end|>\n"),
        (GEMMA, [], "<|begin_of_text|>"),
        (GEMMA, [system("refused")], ""),
        (MISTRAL, [], "<|begin_of_text|>"),
    ],
)
def test_head_is_bos_and_system_turn(make_tokenizer, template, first, expected):
    tokenizer = make_tokenizer(template)
    assert head_text(tokenizer, inspect_template(tokenizer, tokenizer.chat_template), first) == expected


def test_conversation_renders_as_the_tokenizer_does(make_tokenizer):
    tokenizer = make_tokenizer()
    messages = [user("x"), assistant("y")]
    (text, cause), *_ = render_rows(tokenizer, tokenizer.chat_template, [messages])
    assert cause is None and text == tokenizer.apply_chat_template(messages, tokenize=False)


# an <|im_start|> template that skips every other role
TWO_ROLES = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template, loses, empty_system",
    [
        (None, {"tool_calls"}, False),  # Llama-3's writes any role, and no calls
        (CHATML, {"tool_calls"}, True),
        (GEMMA, {"tool_calls"}, False),  # a system turn that it refuses is not lost
        (MISTRAL, set(), False),
        (TWO_ROLES, {"system", "developer", "tool", "tool_calls"}, True),
    ],
    ids=["llama3", "chatml", "gemma", "mistral", "two roles"],
)
def test_turns_that_a_template_leaves_out(make_tokenizer, template, loses, empty_system):
    tokenizer = make_tokenizer(template)
    found = inspect_template(tokenizer, tokenizer.chat_template)
    assert found.loses == loses and found.takes_empty_system == empty_system


def test_rows_are_rendered_with_their_own_arguments_in_groups(make_tokenizer, monkeypatch):
    tokenizer = make_tokenizer()
    template = "{{ mood or 'calm' }}{% if tools %}{{ tools | length }}{% endif %} {{ messages[0].content }}"
    calls = []
    inner = tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda rows, **more: calls.append(len(rows)) or inner(rows, **more)
    )
    rows = [[user(text)] for text in "abcd"]
    arguments = [{}, {"mood": "merry"}, {}, {"tools": [{"name": "f"}], "mood": "merry"}]
    assert [text for text, _ in render_rows(tokenizer, template, rows, arguments)] == [
        "calm a", "merry b", "calm c", "merry1 d",
    ]  # fmt: skip
    assert calls == [2, 1, 1]
    calls.clear()
    assert [text for text, _ in render_rows(tokenizer, template, rows, [{}] * 4)] == [f"calm {text}" for text in "abcd"]
    assert calls == [4]


def test_the_date_of_a_template_stands_still(make_tokenizer):
    template = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string + ': ' + messages[-1].content }}"
    )
    rows = [[user("a")], [user("b")]]
    rendered = render_rows(make_tokenizer(), template, rows, [{}, {"date_string": "1 Jan 2025"}])
    assert [text for text, _ in rendered] == ["26 Jul 2024: a", "1 Jan 2025: b"]
