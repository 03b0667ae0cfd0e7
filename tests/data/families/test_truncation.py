"""What is left of a pair that does not fit: whole turns go first, and what is left is again a prompt of its family."""

import pytest

from simpo.data.encode import Encoder
from simpo.data.schema import normalise
from simpo.data.tokenize import TokenizeOptions
from simpo.data.truncate import CHOSEN_CUT, PROMPT_CUT, REJECTED_CUT, SYSTEM_CUT, TURNS_CUT, TokenPair

from .models import CALL, PROMPTS, QUESTION, Family, library_ids, turn
from .test_families import FAMILIES, encode, every_family

OLDER = PROMPTS["multi"][:2]


def sizes(pair: TokenPair) -> tuple[int, int, int]:
    return len(pair.prompt), len(pair.chosen), len(pair.rejected)


def room_for(family: Family, row: dict, prompt: str) -> int:
    """The max_length into which the row fits with this prompt, and not with one token more."""
    pair = encode(family, row)
    assert isinstance(pair, TokenPair) and pair.cuts == []
    return len(library_ids(family.tokenizer, prompt)) + max(len(pair.chosen), len(pair.rejected))


@every_family
@pytest.mark.parametrize("situation", ["single", "system"])
def test_the_oldest_turns_go_first(family: Family, situation: str) -> None:
    if family.prompts[situation].startswith("template "):
        pytest.skip("no system turn")
    *system, question = PROMPTS[situation]
    row = {**family.row(situation), "prompt": [*system, *OLDER, *OLDER, question]}
    expected = family.standard_prompt(situation)
    pair = encode(family, row, max_length=room_for(family, row, expected), max_prompt_length=1)
    assert isinstance(pair, TokenPair) and pair.prompt == library_ids(family.tokenizer, expected)
    assert pair.cuts == [TURNS_CUT]


@every_family
def test_no_more_turns_go_than_must(family: Family) -> None:
    row = {**family.row("multi"), "prompt": [*OLDER, *PROMPTS["multi"]]}
    expected = family.standard_prompt("multi")
    room = room_for(family, row, expected)
    pair = encode(family, row, max_length=room, max_prompt_length=1)
    assert isinstance(pair, TokenPair) and pair.prompt == library_ids(family.tokenizer, expected)
    shorter = encode(family, row, max_length=room - 1, max_prompt_length=1)
    assert isinstance(shorter, TokenPair)
    assert shorter.prompt == library_ids(family.tokenizer, family.standard_prompt("single"))
    assert shorter.chosen == pair.chosen and shorter.rejected == pair.rejected


@every_family
def test_nothing_is_cut_that_fits(family: Family) -> None:
    whole = encode(family, family.row("multi"))
    room = room_for(family, family.row("multi"), family.standard_prompt("multi"))
    for truncation in ("cut", "drop"):
        pair = encode(family, family.row("multi"), max_length=room, max_prompt_length=1, truncation=truncation)
        assert isinstance(pair, TokenPair) and isinstance(whole, TokenPair)
        assert pair.prompt == whole.prompt and pair.cuts == []


def test_a_turn_is_a_question_with_its_tool_turns() -> None:
    family = FAMILIES["Qwen3"]
    call = [turn("user", "Weather?"), {"role": "assistant", "tool_calls": [CALL]}, turn("tool", "7 C")]
    row = {**family.row("single"), "prompt": [*call, turn("assistant", "Cold."), QUESTION]}
    expected = family.standard_prompt("single")
    pair = encode(family, row, max_length=room_for(family, row, expected) + 20, max_prompt_length=1)
    assert isinstance(pair, TokenPair) and pair.prompt == library_ids(family.tokenizer, expected)


@pytest.mark.parametrize("name", ["Llama 3", "Llama 3.1", "Qwen2.5", "Qwen3", "Gemma 3", "Mistral 0.3", "Phi-3"])
def test_a_system_turn_that_leaves_no_room_goes_whole(name: str) -> None:
    family = FAMILIES[name]
    row = {**family.row("system"), "prompt": [turn("system", "Be kind to them. " * 60), QUESTION]}
    expected = family.standard_prompt("single")
    pair = encode(family, row, max_length=room_for(family, row, expected), max_prompt_length=1)
    assert isinstance(pair, TokenPair) and pair.prompt == library_ids(family.tokenizer, expected)
    assert pair.cuts == [SYSTEM_CUT]


@every_family
def test_one_turn_that_is_too_long_keeps_head_and_end(family: Family) -> None:
    has_system = not family.prompts["system"].startswith("template ")
    system = [turn("system", "Be kind.")] if has_system else []
    row = {
        **family.row("single"),
        "prompt": [*system, *OLDER, turn("user", "Again and " * 200 + "which way is north?")],
    }
    whole = encode(family, {**row, "prompt": [*system, row["prompt"][-1]]}, max_length=9999)
    pair = encode(family, row, max_length=300, max_prompt_length=150)
    assert isinstance(pair, TokenPair) and isinstance(whole, TokenPair)
    assert len(pair.prompt) == 300 - max(len(pair.chosen), len(pair.rejected))
    assert pair.cuts == [TURNS_CUT, PROMPT_CUT]
    same = next(at for at, (a, b) in enumerate(zip(pair.prompt, whole.prompt, strict=False)) if a != b)
    assert pair.prompt[same:] == whole.prompt[len(whole.prompt) - len(pair.prompt) + same :]
    head = family.tokenizer.decode(pair.prompt[:same])
    assert ("Be kind." in head) == has_system
    if family.tokenizer.bos_token_id in whole.prompt:
        assert pair.prompt[0] == family.tokenizer.bos_token_id


def test_each_response_has_a_budget_of_its_own() -> None:
    family = FAMILIES["Llama 3"]
    row = {
        "prompt": [QUESTION],
        "chosen": [turn("assistant", "Up and " * 40)],
        "rejected": [turn("assistant", "Down and " * 80)],
    }
    whole = encode(family, row)
    assert isinstance(whole, TokenPair)
    prompt, chosen, _ = sizes(whole)
    pair = encode(family, row, max_length=prompt + chosen + 5, max_prompt_length=prompt)
    assert isinstance(pair, TokenPair)
    assert sizes(pair) == (prompt, chosen, chosen + 5) and pair.cuts == [REJECTED_CUT]
    pair = encode(family, row, max_length=prompt + 9, max_prompt_length=prompt)
    assert isinstance(pair, TokenPair)
    assert sizes(pair) == (prompt, 9, 9) and pair.cuts == [CHOSEN_CUT, REJECTED_CUT]


@pytest.mark.parametrize("mode", ["standard", "paper"])
@pytest.mark.parametrize("name", ["Llama 3", "Qwen2.5", "Zephyr"])
def test_drop_cuts_nothing(name: str, mode: str) -> None:
    family = FAMILIES[name]
    whole = encode(family, family.row("multi"), mode)
    assert isinstance(whole, TokenPair)
    fits, too_long = (
        Encoder(family.tokenizer, TokenizeOptions(mode, length, length - 1, truncation="drop"))(
            [normalise(family.row(situation)) for situation in ("multi", "single")]
        )
        for length in (whole.length, whole.length - 1)
    )
    assert [isinstance(pair, TokenPair) and pair.cuts for pair in fits] == [[], []]
    assert fits[0].prompt == whole.prompt
    assert too_long[0] == "longer than max_length" and isinstance(too_long[1], TokenPair)


def test_drop_still_names_other_causes() -> None:
    family = FAMILIES["Llama 3"]
    row = {**family.row("multi"), "rejected": [turn("assistant", "Up. ")]}  # the template trims
    assert encode(family, row, max_length=9, max_prompt_length=8, truncation="drop") == "chosen equals rejected"
