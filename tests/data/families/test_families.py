"""What becomes of a conversation, family by family, against texts written out by hand."""

import json

import pytest
from datasets import Dataset

from simpo.data.encode import Encoder
from simpo.data.schema import normalise
from simpo.data.tokenize import TokenizeOptions, tokenize_pairs
from simpo.data.truncate import TEXT_AFTER_END, TokenPair
from simpo.errors import DataError

from . import byte_level, sentence_pieces
from .models import ANSWERS, CALL, PROMPTS, QUESTION, TOOL, Family, library_ids, token_text, turn

FAMILIES = {family.name: family for family in [*byte_level.FAMILIES, *sentence_pieces.FAMILIES]}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
every_prompt = pytest.mark.parametrize("situation", PROMPTS)
every_answer = pytest.mark.parametrize("answer", ANSWERS)


def encode(family: Family, row: dict, mode: str = "standard", **options) -> TokenPair | str:
    return Encoder(family.tokenizer, TokenizeOptions(mode, **options))([normalise(row)])[0]


def assert_pair(family: Family, pair: TokenPair | str, prompt: str, *responses: str) -> None:
    """The prompt's ids are the library's of the expected text, and the responses read as expected."""
    assert isinstance(pair, TokenPair), pair
    assert pair.prompt == library_ids(family.tokenizer, prompt)
    assert [token_text(family.tokenizer, ids) for ids in (pair.chosen, pair.rejected)] == list(responses)


@every_family
@every_prompt
def test_standard_prompts(family: Family, situation: str) -> None:
    pair = encode(family, family.row(situation))
    if family.prompts[situation].startswith("template "):
        assert isinstance(pair, str) and pair.startswith(family.prompts[situation])
        return
    responses = (family.response.replace("{}", answer) for answer in ("Up.", "Down."))
    assert_pair(family, pair, family.standard_prompt(situation), *responses)
    assert isinstance(pair, TokenPair) and pair.cuts == []


@every_family
@every_answer
def test_standard_answers(family: Family, answer: str) -> None:
    pair = encode(family, family.row("single", answer))
    responses = family.standard_response(answer), family.response.replace("{}", "Down.")
    assert_pair(family, pair, family.standard_prompt("single"), *responses)
    assert isinstance(pair, TokenPair) and pair.cuts == ([TEXT_AFTER_END] if answer == "end inside" else [])


@every_family
@every_prompt
def test_paper_prompts(family: Family, situation: str) -> None:
    pair = encode(family, family.row(situation), "paper")
    refused = next((text for text in (family.prompts[situation], family.paper) if text.startswith("template ")), None)
    if refused is not None:
        assert isinstance(pair, str) and pair.startswith(refused)
        return
    responses = (family.paper.replace("{}", answer) for answer in ("Up.", "Down."))
    assert_pair(family, pair, family.paper_prompt(situation), *responses)


@every_family
@every_answer
def test_paper_answers(family: Family, answer: str) -> None:
    pair = encode(family, family.row("single", answer), "paper")
    if family.paper.startswith("template "):
        assert isinstance(pair, str) and pair.startswith(family.paper)
        return
    text = family.paper_answers[answer].replace("{end}", family.end)
    assert_pair(family, pair, family.paper_prompt("single"), *(family.paper.replace("{}", t) for t in (text, "Down.")))


@every_family
def test_one_bos_or_none(family: Family) -> None:
    bos = family.tokenizer.bos_token
    expected = 0 if bos is None else family.standard_prompt("single").count(bos)
    pair = encode(family, family.row("multi"))
    assert isinstance(pair, TokenPair)
    assert pair.prompt.count(family.tokenizer.bos_token_id) == expected <= 1


@every_family
def test_empty_system_turn_where_the_template_takes_one(family: Family) -> None:
    # Llama 3's writes whatever role it is given; as in the published code, a template that names no system gets none
    taken = family.name != "Llama 3" and not family.prompts["empty system"].startswith("template ")
    pair = encode(family, family.row("single"), add_empty_system=True)
    assert isinstance(pair, TokenPair)
    expected = family.standard_prompt("empty system" if taken else "single")
    assert pair.prompt == library_ids(family.tokenizer, expected)


# Qwen3: thinking

THOUGHT = "<think>\nIs it up?\n</think>\n\n"


def test_thinking_answers() -> None:
    family = FAMILIES["Qwen3"]
    row = {
        "prompt": [turn("user", "Hi"), turn("assistant", THOUGHT + "Hello."), QUESTION],
        "chosen": [turn("assistant", THOUGHT + "Up.")],
        "rejected": [turn("assistant", "Down.")],
    }
    # earlier thoughts go, the answer's own stays, and an answer without one has an empty block
    expected = THOUGHT + "Up.<|im_end|>", "<think>\n\n</think>\n\nDown.<|im_end|>"
    assert_pair(family, encode(family, row), family.standard_prompt("multi"), *expected)


def test_thinking_answers_with_thinking_off_say_what_to_do() -> None:
    family = FAMILIES["Qwen3"]
    rows = [
        {**family.row("single"), "chosen": [turn("assistant", THOUGHT + "Up.")], "chat_template_kwargs": keywords}
        for keywords in ({"enable_thinking": False}, {"enable_thinking": True}, None)
    ]
    data, report = tokenize_pairs(Dataset.from_list(rows), family.tokenizer, TokenizeOptions())
    assert data["row"][:] == [1, 2] and report.dropped == {"template rewrites the prompt": 1}
    assert "leave enable_thinking: false out of chat_template_kwargs" in "\n".join(report.lines())


def test_answers_that_differ_in_their_thoughts_only() -> None:
    family = FAMILIES["Qwen3"]
    answers = [[turn("assistant", "Up.", reasoning_content=thought)] for thought in ("Is it up?", "Is it down?")]
    row = {"prompt": [QUESTION], "chosen": answers[0], "rejected": answers[1]}
    prompts = {name: family.standard_prompt("single") for name in ("Qwen3",)}
    template = byte_level.QWEN_3.replace("{%- set thought = '' %}", "{%- set thought = m.reasoning_content or '' %}")
    tokenizer = byte_level.byte_level(template, *byte_level.QWEN_TOKENS, eos="<|im_end|>")
    other = Family("Qwen3", tokenizer, prompts, "<|im_end|>", "", "")
    expected = [f"<think>\n{thought}\n</think>\n\nUp.<|im_end|>" for thought in ("Is it up?", "Is it down?")]
    assert_pair(other, encode(other, row), family.standard_prompt("single"), *expected)


# tools and other template arguments


def test_an_answer_may_be_a_call() -> None:
    family = FAMILIES["Qwen2.5"]
    row = {**family.row("single"), "chosen": [{"role": "assistant", "tool_calls": [CALL]}]}
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
    assert_pair(family, encode(family, row), family.standard_prompt("single"), call, "Down.<|im_end|>")


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]], ids=["list", "text", "texts"])
@pytest.mark.parametrize("mode", ["standard", "paper"])
def test_tools_as_list_or_text(tools, mode: str) -> None:
    family = FAMILIES["Qwen3"]
    pair = encode(family, {**family.row("tool"), "tools": tools}, mode)
    expected = family.standard_prompt("tool") if mode == "standard" else family.paper_prompt("tool")
    assert isinstance(pair, TokenPair) and pair.prompt == library_ids(family.tokenizer, expected)


def test_a_second_template_for_tools_is_refused() -> None:
    # at inference transformers takes the template `tool_use` for tools, where a tokenizer has several
    family = FAMILIES["Qwen2.5"]
    tokenizer = byte_level.byte_level(byte_level.QWEN_2_5, *byte_level.QWEN_TOKENS[:4], eos="<|im_end|>")
    tokenizer.chat_template = {"default": byte_level.QWEN_2_5, "tool_use": "{{ messages }}"}
    encoder = Encoder(tokenizer, TokenizeOptions())
    plain = encoder([normalise(family.row("single"))])[0]
    assert isinstance(plain, TokenPair) and plain.prompt == library_ids(tokenizer, family.standard_prompt("single"))
    with pytest.raises(DataError, match=r"second chat template, tool_use; .* set chat_template to that one"):
        encoder([normalise(family.row("single")), normalise(family.row("tool"))])


def test_nulls_that_arrow_fills_in_change_nothing() -> None:
    family = FAMILIES["Qwen3"]
    other = {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {"n": {}}}}}
    call = {"id": "b", "type": "function", "function": {"name": "g", "arguments": {"n": 3}}}
    rows = [
        {**family.row("tool"), "chat_template_kwargs": {"enable_thinking": True}},
        {
            **family.row("tool"),
            "prompt": [turn("user", "?"), {"role": "assistant", "tool_calls": [call]}, turn("tool", "4")],
            "tools": [other],
            "chat_template_kwargs": {"note": "x"},
        },
        {**family.row("single"), "tools": [], "chat_template_kwargs": {}},
    ]
    data, report = tokenize_pairs(Dataset.from_list(rows), family.tokenizer, TokenizeOptions(max_length=4096))
    assert report.kept == 3
    for at, situation in ((0, "tool"), (2, "single")):
        assert data[at]["prompt_ids"] == library_ids(family.tokenizer, family.standard_prompt(situation))
    assert '{"name": "g", "arguments": {"n": 3}}' in family.tokenizer.decode(data[1]["prompt_ids"])


def test_rows_with_different_arguments_keep_their_order() -> None:
    on, off = FAMILIES["Qwen3"], FAMILIES["Qwen3, thinking off"]
    families = [on, off, off, on, off]
    rows = [family.row(situation) for family, situation in zip(families, PROMPTS, strict=True)]
    pairs = Encoder(on.tokenizer, TokenizeOptions(max_length=4096))([normalise(row) for row in rows])
    for pair, family, situation in zip(pairs, families, PROMPTS, strict=True):
        assert pair.prompt == library_ids(on.tokenizer, family.standard_prompt(situation))


def test_date_of_the_system_turn() -> None:
    family = FAMILIES["Llama 3.2"]
    pair = encode(family, {**family.row("single"), "chat_template_kwargs": {"date_string": "1 Jan 2025"}})
    expected = family.standard_prompt("single").replace("26 Jul 2024", "1 Jan 2025")
    assert isinstance(pair, TokenPair) and pair.prompt == library_ids(family.tokenizer, expected)


# no template


every_tokenizer = pytest.mark.parametrize("name", ["Llama 3", "Mistral 0.1", "Phi-4", "Gemma 2", "Mistral 0.3"])
every_text = pytest.mark.parametrize(
    "chosen",
    [" Up.", "Up.", "\nUp.", "\n\n Up.  ", "北です。", "👍🏽 up"],
    ids=["space", "none", "line", "lines", "北", "emoji"],
)


@every_tokenizer
@every_text
def test_plain_texts(name: str, chosen: str) -> None:
    tokenizer = FAMILIES[name].tokenizer
    row = {"prompt": "Which way is north?\n", "chosen": chosen, "rejected": "Down."}
    pair = encode(FAMILIES[name], row)
    assert isinstance(pair, TokenPair)
    assert pair.prompt == tokenizer("Which way is north?\n")["input_ids"]
    assert token_text(tokenizer, pair.chosen) == chosen + tokenizer.eos_token
    assert token_text(tokenizer, pair.rejected) == "Down." + tokenizer.eos_token


# behind ":" the small tokenizers merge nothing: `paper` drops pairs whose prompts merge with one answer only


@every_tokenizer
@every_text
def test_plain_texts_in_paper(name: str, chosen: str) -> None:
    tokenizer = FAMILIES[name].tokenizer
    pair = encode(FAMILIES[name], {"prompt": "Which way is north:", "chosen": chosen, "rejected": " Down."}, "paper")
    assert isinstance(pair, TokenPair)
    assert pair.prompt == [tokenizer.bos_token_id, *library_ids(tokenizer, "Which way is north:")]
    assert token_text(tokenizer, pair.chosen) == chosen + tokenizer.eos_token
    assert token_text(tokenizer, pair.rejected) == " Down." + tokenizer.eos_token


@every_tokenizer
@pytest.mark.parametrize("mode, kept", [("standard", "Up."), ("paper", "Up.{eos}\nMore.")])
def test_plain_texts_end_at_their_first_eos(name: str, mode: str, kept: str) -> None:
    tokenizer = FAMILIES[name].tokenizer
    text = "Up.{eos}\nMore.".replace("{eos}", tokenizer.eos_token)
    pair = encode(FAMILIES[name], {"prompt": "Which way is north:", "chosen": text, "rejected": " Down."}, mode)
    assert isinstance(pair, TokenPair) and pair.cuts == ([TEXT_AFTER_END] if mode == "standard" else [])
    # some tokenizers of the SentencePiece kind put a space behind a special token
    read = token_text(tokenizer, pair.chosen).replace("> \n", ">\n")
    assert read == kept.replace("{eos}", tokenizer.eos_token) + tokenizer.eos_token


@every_tokenizer
def test_a_text_that_is_only_an_eos_is_no_response(name: str) -> None:
    row = {"prompt": "Which way is north:", "chosen": FAMILIES[name].tokenizer.eos_token, "rejected": "Down."}
    assert encode(FAMILIES[name], row) == "empty response"
