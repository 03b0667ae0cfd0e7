"""What holds for every conversation, limit and family: random ones, looked for by hypothesis."""

from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from simpo.data.encode import Encoder
from simpo.data.schema import EMPTY_RESPONSE, EQUAL, EQUAL_AFTER_CUT, PROMPT_DIFFERS, TOO_LONG, Pair, normalise
from simpo.data.tokenize import TokenizeOptions
from simpo.data.truncate import PROMPT_CUT, SYSTEM_CUT, TURNS_CUT, TokenPair

from .models import Family, library_ids, token_text, turn
from .test_families import FAMILIES

WORDS = [
    "Which",
    " way",
    " is north?",
    "up",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "é",
    "北です",
    "👍🏽",
    ".",
    "7",
    "'s",
    "¿",
    "[",
    "<",
]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map("".join).filter(str.strip)
SLOW_OK = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
# its template writes the system turn only where no answer follows, so prompt and answer are no rendered conversation
MOVES_SYSTEM = ("Mistral 0.3",)

TOKENIZER_WRITES_BOS = ("Zephyr", "Mistral 0.2, published", "Mistral 0.3, published")


@st.composite
def rows(draw: Any) -> tuple[Family, dict[str, Any]]:
    """A family, and a conversation of up to four questions that it takes."""
    family = draw(st.sampled_from(list(FAMILIES.values())))
    turns = [turn("user", draw(TEXTS))]
    for _ in range(draw(st.integers(0, 3))):
        turns += [turn("assistant", draw(TEXTS)), turn("user", draw(TEXTS))]
    takes_system = not family.prompts["system"].startswith("template ") and family.name not in MOVES_SYSTEM
    if takes_system and draw(st.booleans()):
        turns.insert(0, turn("system", draw(TEXTS)))
    chosen, rejected = ([turn("assistant", draw(TEXTS))] for _ in range(2))
    arguments = {"chat_template_kwargs": dict(family.arguments)}
    return family, {"prompt": turns, "chosen": chosen, "rejected": rejected, **arguments}


def encode(family: Family, row: dict[str, Any], **options: Any) -> TokenPair | str:
    pair = normalise(row)
    assume(isinstance(pair, Pair))
    return Encoder(family.tokenizer, TokenizeOptions(**options))([pair])[0]


def whole_pair(family: Family, row: dict[str, Any]) -> TokenPair:
    """The pair without a limit; answers that the template makes equal are no pair."""
    pair = encode(family, row, max_length=100_000, max_prompt_length=50_000)
    assume(pair not in (EQUAL, EMPTY_RESPONSE))
    assert isinstance(pair, TokenPair), pair
    return pair


def render(family: Family, messages: list[Any], **more: Any) -> str:
    text = family.tokenizer.apply_chat_template(
        messages, tokenize=False, date_string="26 Jul 2024", **family.arguments, **more
    )
    assert isinstance(text, str)
    return text


@given(rows())
@SLOW_OK
def test_uncut_pairs_are_the_rendered_conversation(drawn: tuple[Family, dict[str, Any]]) -> None:
    family, row = drawn
    tokenizer = family.tokenizer
    pair = whole_pair(family, row)
    assert pair.cuts == []
    # the prompt is what the model is given when it generates, for both sides
    first = tokenizer.bos_token if family.name in TOKENIZER_WRITES_BOS else ""
    assert pair.prompt == library_ids(tokenizer, first + render(family, row["prompt"], add_generation_prompt=True))
    for side, ids in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        text = first + render(family, [*row["prompt"], *row[side]])
        text = text[: text.rindex(family.end) + len(family.end)]
        assert token_text(tokenizer, pair.prompt + ids) == token_text(tokenizer, library_ids(tokenizer, text))
        assert ids[-1] == tokenizer.convert_tokens_to_ids(family.end) and ids.count(ids[-1]) == 1 < len(ids)
    assert (pair.prompt + pair.chosen).count(tokenizer.bos_token_id) <= 1


@given(rows(), st.integers(4, 90), st.data())
@SLOW_OK
def test_limits_hold_and_nothing_fits_that_was_cut(
    drawn: tuple[Family, dict[str, Any]], max_length: int, data: st.DataObject
) -> None:
    family, row = drawn
    max_prompt_length = data.draw(st.integers(1, max_length - 1))
    whole = whole_pair(family, row)
    pair = encode(family, row, max_length=max_length, max_prompt_length=max_prompt_length)
    if whole.length <= max_length:
        assert isinstance(pair, TokenPair) and pair.cuts == []
        assert (pair.prompt, pair.chosen, pair.rejected) == (whole.prompt, whole.chosen, whole.rejected)
        return
    if isinstance(pair, str):
        assert pair == EQUAL_AFTER_CUT
        return
    assert pair.length <= max_length and pair.cuts
    assert len(pair.prompt) >= 1 <= min(len(pair.chosen), len(pair.rejected)) and pair.chosen != pair.rejected
    # a response keeps its beginning, and all the room that there is
    for mine, full in ((pair.chosen, whole.chosen), (pair.rejected, whole.rejected)):
        assert mine == full[: max_length - len(pair.prompt)]
    bos = family.tokenizer.bos_token_id
    assert pair.prompt.count(bos) == whole.prompt.count(bos) <= 1
    if whole.prompt.count(bos):
        assert pair.prompt[0] == bos
    assert_prompt_is_cut_by_turns(family, row, whole, pair)
    assert (
        encode(family, row, max_length=max_length, max_prompt_length=max_prompt_length, truncation="drop") == TOO_LONG
    )


@given(rows(), st.integers(4, 90), st.data())
@SLOW_OK
def test_paper_is_prompt_and_answer_rendered_apart(
    drawn: tuple[Family, dict[str, Any]], max_length: int, data: st.DataObject
) -> None:
    family, row = drawn
    tokenizer = family.tokenizer
    assume(not family.paper.startswith("template "))
    whole = encode(family, row, tokenization="paper", max_length=100_000, max_prompt_length=50_000)
    assume(whole not in (EQUAL, PROMPT_DIFFERS))
    assert isinstance(whole, TokenPair) and whole.cuts == []
    bos = tokenizer.bos_token or ""
    prompt = bos + render(family, row["prompt"]).removeprefix(bos)
    for side, ids in (("chosen", whole.chosen), ("rejected", whole.rejected)):
        text = prompt + render(family, row[side]).removeprefix(bos)
        text = text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token
        assert token_text(tokenizer, whole.prompt + ids) == token_text(tokenizer, library_ids(tokenizer, text))
        assert whole.prompt.count(tokenizer.bos_token_id) == (1 if bos else 0)
    limits = {"max_length": max_length, "max_prompt_length": data.draw(st.integers(1, max_length - 1))}
    pair = encode(family, row, tokenization="paper", **limits)
    if isinstance(pair, str):
        assert pair == EQUAL_AFTER_CUT
        return
    room = max_length - limits["max_prompt_length"]
    if whole.length <= max_length:
        assert (pair.prompt, pair.chosen, pair.rejected) == (whole.prompt, whole.chosen, whole.rejected)
        return
    assert pair.length <= max_length and pair.prompt == whole.prompt[-limits["max_prompt_length"] :]
    for mine, full in ((pair.chosen, whole.chosen), (pair.rejected, whole.rejected)):
        assert mine in (full, full[:room])


def assert_prompt_is_cut_by_turns(family: Family, row: dict[str, Any], whole: TokenPair, pair: TokenPair) -> None:
    """Without a cut of tokens the prompt is the generation prompt of fewer turns, the last ones."""
    if pair.prompt == whole.prompt:
        assert not {TURNS_CUT, SYSTEM_CUT, PROMPT_CUT} & set(pair.cuts)
        return
    if PROMPT_CUT in pair.cuts:
        return
    system = [message for message in row["prompt"] if message["role"] == "system" and SYSTEM_CUT not in pair.cuts]
    starts = [at for at, message in enumerate(row["prompt"]) if message["role"] == "user"]
    fewer = [whole_pair(family, {**row, "prompt": [*system, *row["prompt"][at:]]}).prompt for at in starts]
    assert pair.prompt in fewer
