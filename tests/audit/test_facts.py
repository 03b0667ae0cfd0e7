"""Arrays over pairs against a plain loop over tokens; the frame around answers; pieces of text."""

import random

import numpy as np
import pytest
from datasets import Dataset

from simpo.audit import facts as facts_module
from simpo.audit.facts import token_facts
from simpo.audit.frame import Frame, find_frame
from simpo.audit.texts import same_text
from simpo.audit.tokens import pieces
from simpo.data.tokenize import TokenizeOptions
from tests.data.conftest import CHATML, CHATML_DEFAULT_SYSTEM, GEMMA, MISTRAL

VOCABULARY, BOS, EOS, UNKNOWN = 12, 0, 1, 2


def frame_of(header=0, tail=1):
    special = np.zeros(VOCABULARY, dtype=bool)
    special[[BOS, EOS, 3]] = True
    return Frame(BOS, True, frozenset({EOS}), header, tail, "", "", special, UNKNOWN, opening_ids=(3, 4))


def by_loop(pair, frame):
    """The same facts of one pair, token by token."""
    prompt, chosen, rejected = (pair[f"{side}_ids"] for side in ("prompt", "chosen", "rejected"))
    everything = prompt + chosen + rejected
    leading = 0 if prompt[0] != BOS else 2 if prompt[1:2] == [BOS] else 1

    def inside(response):
        end = len(response) - frame.tail if response[-1] == EOS else len(response)
        return sum(frame.special[token] for token in response[frame.header : end] if token < VOCABULARY)

    def openings(response):
        return sum(response[at : at + 2] == [3, 4] for at in range(frame.header, len(response)))

    return {
        "row": pair["row"], "prompt": len(prompt), "chosen": len(chosen), "rejected": len(rejected),
        "leading_bos": leading, "later_bos": everything.count(BOS) - leading,
        "chosen_ended": chosen[-1] == EOS, "rejected_ended": rejected[-1] == EOS,
        "chosen_special": inside(chosen), "rejected_special": inside(rejected),
        "openings": openings(chosen) + openings(rejected),
        "unknown": everything.count(UNKNOWN), "outside": sum(token >= VOCABULARY for token in everything),
    }  # fmt: skip


@pytest.mark.parametrize(("header", "tail"), [(0, 1), (2, 2), (3, 0)])
def test_against_a_loop(header, tail, monkeypatch):
    monkeypatch.setattr(facts_module, "_BATCH", 64)  # several batches, the last one not full
    rng = random.Random(0)
    pairs = [
        {
            f"{side}_ids": rng.choices([*range(VOCABULARY + 1), 3, 4], k=rng.randint(1, 9))
            for side in ("prompt", "chosen", "rejected")
        }
        | {"row": 3 * number}
        for number in range(400)
    ]
    data = Dataset.from_list(pairs).filter(lambda pair: pair["row"] % 2 == 0)  # behind an indices mapping too
    frame = frame_of(header, tail)
    found = token_facts(data, frame)
    assert found.openings.any()
    for at, pair in enumerate(data.to_list()):
        assert {name: column[at] for name, column in found._asdict().items()} == by_loop(pair, frame)


def test_bos_that_ends_turns_is_not_counted_inside():
    frame = Frame(EOS, True, frozenset({EOS}), 0, 1, "", "", frame_of().special, None)
    data = Dataset.from_list([{"prompt_ids": [EOS, 5, EOS, 6], "chosen_ids": [7, EOS], "rejected_ids": [8, EOS]}])
    found = token_facts(data, frame)
    assert (found.leading_bos.tolist(), found.later_bos.tolist(), found.unknown.tolist()) == ([1], [0], [0])


@pytest.mark.parametrize(
    ("template", "mode", "header", "end"),
    [
        (None, "standard", "", "<|eot_id|>"),
        (None, "paper", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|end_of_text|>"),
        (CHATML, "standard", "", "<|im_end|>"),
        (CHATML, "paper", "<|im_start|>assistant\n", "<|end_of_text|>"),
        (CHATML_DEFAULT_SYSTEM, "standard", "", "<|im_end|>"),
        (GEMMA, "standard", "", "<end_of_turn>"),
        (MISTRAL, "standard", "", "<|end_of_text|>"),
    ],
)
def test_frame(make_tokenizer, template, mode, header, end):
    tokenizer = make_tokenizer(template)
    frame = find_frame(tokenizer, TokenizeOptions(mode), messages=True)
    assert frame.header_text.strip() == header.strip() and tokenizer.convert_tokens_to_ids(end) in frame.ends
    assert frame.starts_with_bos == (mode == "paper" or template in (None, GEMMA, MISTRAL))


def test_frame_of_texts(make_tokenizer):
    frame = find_frame(make_tokenizer(adds_bos=True), TokenizeOptions(), messages=False)
    assert (frame.header, frame.tail, frame.starts_with_bos, frame.opening) == (0, 1, True, "")


@pytest.mark.parametrize("text", ["Plain words, twice.\n\n  indented", "naïve café 上海 🙂🙂", "<|eot_id|>x<|eot_id|>"])
def test_pieces_add_up(tiny_tokenizer, text):
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    special = find_frame(tiny_tokenizer, TokenizeOptions(), messages=True).special
    found = pieces(tiny_tokenizer, ids, special)
    assert "".join(piece.text for piece in found) == text
    assert [token for piece in found for token in piece.ids] == ids
    assert [piece.text for piece in found if piece.special] == ["<|eot_id|>"] * text.count("<|eot_id|>")


def test_pieces_keep_the_spaces_of_sentencepiece(metaspace_tokenizer):
    ids = metaspace_tokenizer("which way is north", add_special_tokens=False)["input_ids"]
    found = pieces(metaspace_tokenizer, ids, np.zeros(200, dtype=bool))
    assert "".join(piece.text for piece in found) == " which way is north"


def test_a_character_that_is_cut(tiny_tokenizer):
    ids = tiny_tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    (piece,) = pieces(tiny_tokenizer, ids[:-1], np.zeros(5000, dtype=bool))
    assert piece.text == "\ufffd" and piece.ids == tuple(ids[:-1])


def test_same_text():
    assert same_text(" Ａ  b\n") == same_text("a B") != same_text("ab")
