"""Supervised rows: which formats are read, which tokens are learnt, and what becomes of rows that cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset

from simpo.data.chat import resolve_chat_template
from simpo.data.config import DataConfig
from simpo.data.dialogue_ids import CUT, IGNORED, DialogueEncoder, DialogueOptions, tokenize_dialogues
from simpo.data.dialogues import Dialogue, Passage, dialogue_keys, read_row, take_dialogue_columns
from simpo.data.duplicates import row_keys
from simpo.data.encode import Encoder
from simpo.data.schema import PROMPT_REWRITTEN, normalise
from simpo.data.tokenize import TokenizeOptions, tokenize_pairs
from simpo.errors import DataError

from .families import byte_level, sentence_pieces
from .families.models import ANSWERS

FAMILIES = [*byte_level.FAMILIES, *sentence_pieces.FAMILIES]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Why is the sky blue?"}
ANSWER = {"role": "assistant", "content": "Air scatters blue light."}
AGAIN = {"role": "user", "content": "And the sea?"}
LAST = {"role": "assistant", "content": "It mirrors the sky."}
TALK = [ASK, ANSWER, AGAIN, LAST]


@pytest.fixture
def tokenizer(make_tokenizer) -> Any:
    """The golden tokenizer, which puts a BOS before every text, as those of Mistral and Llama do."""
    return make_tokenizer(adds_bos=True)


def encode(tokenizer: Any, row: dict[str, Any], **options: Any) -> dict[str, list[int]]:
    (result,) = tokenize_dialogues(Dataset.from_list([row]), tokenizer, DialogueOptions(**options))[0].to_list()
    return result


def learnt(row: dict[str, list[int]]) -> list[list[int]]:
    """The runs of tokens that have labels; a label is the token itself."""
    runs: list[list[int]] = [[]]
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [run for run in runs if run]


# what ends an answer, and whether a blank stands before it
TEMPLATES = {
    "llama-3": ("", "<|eot_id|>"),
    "zephyr": ("", "<|end_of_text|>"),
    "mistral": (" ", " <|end_of_text|>"),
    "chatml": ("", "<|im_end|>"),
    "gemma-2": ("", "<end_of_turn>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_exactly_the_answers_with_their_end_are_learnt(tokenizer, name) -> None:
    tokenizer.chat_template = resolve_chat_template(name, tokenizer)
    before, end = TEMPLATES[name]
    row = encode(tokenizer, {"messages": TALK})
    texts = [tokenizer.decode(run) for run in learnt(row)]
    assert texts == [before + turn["content"] + end for turn in (ANSWER, LAST)]
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1 and row["input_ids"][0] == tokenizer.bos_token_id
    assert row["labels"][-1] == row["input_ids"][-1]  # nothing after the last end of turn


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_empty_system", [False, True])
def test_the_ids_are_those_of_a_preference_run(tokenizer, name, add_empty_system) -> None:
    tokenizer.chat_template = resolve_chat_template(name, tokenizer)
    row = encode(tokenizer, {"messages": [ASK, LAST]}, add_empty_system=add_empty_system)
    pair = {"prompt": [ASK], "chosen": [LAST], "rejected": [ANSWER]}
    options = TokenizeOptions(add_empty_system=add_empty_system)
    (tokens,) = tokenize_pairs(Dataset.from_list([pair]), tokenizer, options)[0].to_list()
    assert row["input_ids"] == tokens["prompt_ids"] + tokens["chosen_ids"]
    assert learnt(row) == [tokens["chosen_ids"]]


@every_family
@pytest.mark.parametrize("situation", ["single", "multi", "system"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_families_learn_what_a_preference_run_scores(family, situation, answer) -> None:
    pair_row = family.row(situation, answer)
    pair = Encoder(family.tokenizer, TokenizeOptions())([normalise(pair_row)])[0]
    row = read_row(pair_row | {"messages": [*pair_row["prompt"], *pair_row["chosen"]]})
    result = DialogueEncoder(family.tokenizer, DialogueOptions())(row)
    if isinstance(pair, str) or isinstance(result, str):  # templates that refuse the turns, or move the system text
        assert result in (pair, PROMPT_REWRITTEN), (pair, result)
        return
    assert result.ids[-len(pair.chosen) :] == pair.chosen == result.labels[-len(pair.chosen) :]
    assert result.labels[: len(pair.prompt)].count(IGNORED) > 0
    if situation != "multi":
        assert result.ids == pair.prompt + pair.chosen
        assert result.labels == [IGNORED] * len(pair.prompt) + pair.chosen


def test_against_the_marks_of_trl() -> None:
    from trl.chat_template_utils import llama3_training_chat_template

    tokenizer = next(family.tokenizer for family in FAMILIES if family.name.startswith("Llama 3"))
    talk = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "北です。"}, AGAIN, LAST]
    row = encode(tokenizer, {"messages": talk})
    marked = tokenizer.apply_chat_template(
        talk, chat_template=llama3_training_chat_template, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    assert tokenizer.decode(row["input_ids"]) == tokenizer.decode(marked["input_ids"])
    theirs = [token for token, mark in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(theirs).split() == tokenizer.decode(sum(learnt(row), [])).split()


def test_every_token(tokenizer) -> None:
    row = encode(tokenizer, {"messages": TALK}, assistant_only_loss=False)
    assert row["labels"] == row["input_ids"]


def test_prompt_and_completion(tokenizer) -> None:
    row = encode(tokenizer, {"prompt": TALK[:3], "completion": [LAST]})
    assert tokenizer.decode(row["input_ids"]) == tokenizer.decode(encode(tokenizer, {"messages": TALK})["input_ids"])
    assert [tokenizer.decode(run) for run in learnt(row)] == [LAST["content"] + "<|eot_id|>"]
    row = encode(tokenizer, {"prompt": "Question: why? Answer:", "completion": " Because."})
    assert [tokenizer.decode(run) for run in learnt(row)] == [" Because.<|end_of_text|>"]
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1


def test_text(tokenizer) -> None:
    row = encode(tokenizer, {"text": "Once upon a time."})
    assert row["labels"] == row["input_ids"] and row["input_ids"][-1] == tokenizer.eos_token_id


def test_what_is_too_long_loses_its_end(tokenizer) -> None:
    whole = encode(tokenizer, {"messages": TALK})
    rows = Dataset.from_list([{"messages": TALK}, {"messages": [SYSTEM, {"role": "user", "content": "x " * 99}, LAST]}])
    data, report = tokenize_dialogues(rows, tokenizer, DialogueOptions(max_length=30))
    assert data[0]["input_ids"] == whole["input_ids"][:30] and data[0]["labels"] == whole["labels"][:30]
    assert any(line.startswith("  kept 1: cut to max_length (rows ") for line in report.lines())
    assert report.notes == {CUT: 1} and report.dropped == {"no answer within max_length": 1}
    assert (report.kept, report.tokens, report.longest) == (1, 30, 30)


def test_causes(tokenizer) -> None:
    rows = [
        {"messages": TALK},
        {"messages": [ASK]},
        {"messages": [ANSWER, ASK]},
        {"messages": [ASK, {"role": "assistant", "content": " "}]},
        {"messages": [ASK, {"role": "bot", "content": "Hi"}]},
        {"messages": None},
    ]
    data, report = tokenize_dialogues(Dataset.from_list(rows), tokenizer, DialogueOptions())
    assert len(data) == report.kept == 1 and report.total == 6
    assert report.dropped == {
        "no assistant turn": 1, "roles out of order": 1, "empty answer": 1, "unknown role": 1, "an empty field": 1
    }  # fmt: skip
    assert report.examples["no assistant turn"] == [1]
    assert "dropped 1: no assistant turn (rows 1): remove these rows" in "\n".join(report.lines())


def test_no_row_is_left(tokenizer) -> None:
    with pytest.raises(DataError) as caught:
        tokenize_dialogues(Dataset.from_list([{"messages": [ASK]}] * 7), tokenizer, DialogueOptions())
    assert str(caught.value) == (
        "train: none of the 7 rows can be trained on: 7: no assistant turn (rows 0, 1, 2, 3, 4, ...): remove these "
        "rows: nothing in them is learnt"
    )


def test_a_template_without_an_end(tokenizer) -> None:
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}"
    with pytest.raises(DataError, match="never learn to stop"):
        encode(tokenizer, {"messages": TALK})


def test_a_template_that_rewrites_answers(tokenizer) -> None:
    """Thoughts of earlier turns left out, as Qwen3 does: such turns are read and not learnt, and counted."""
    tokenizer.chat_template = (
        "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n"
        "{% if turn['role'] == 'assistant' and loop.last %}<think>{% endif %}"
        "{{ turn['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    data, report = tokenize_dialogues(Dataset.from_list([{"messages": TALK}]), tokenizer, DialogueOptions())
    assert [tokenizer.decode(run) for run in learnt(data[0])] == [
        "Air scatters blue light.<|im_end|>", "<think>It mirrors the sky.<|im_end|>"
    ]  # fmt: skip
    assert report.notes == {}


def test_read_row() -> None:
    assert read_row({"messages": TALK, "prompt": "Q"}) == Dialogue(TALK)
    assert read_row({"prompt": [ASK], "completion": [ANSWER]}) == Dialogue([ASK, ANSWER], 1)
    assert read_row({"prompt": "Q", "completion": "A"}) == Passage("Q", "A")
    assert read_row({"text": "T"}) == Passage("", "T")
    assert read_row({"prompt": "Q", "completion": [ANSWER]}) == "malformed messages"
    assert read_row({"messages": TALK, "tools": "{"}) == "malformed tools or chat_template_kwargs"


def test_columns() -> None:
    whole = {"prompt": "Q", "prompt_id": "1", "messages": TALK}
    assert take_dialogue_columns(Dataset.from_list([whole]), "x").column_names == ["messages"]
    renamed = take_dialogue_columns(Dataset.from_list([{"talk": TALK}]), "x", {"messages": "talk"})
    assert renamed.column_names == ["messages"]
    for row, words in (({"chosen": TALK}, "x: no column messages"), ({"messages": "text"}, "x: column messages has")):
        with pytest.raises(DataError, match=words):
            take_dialogue_columns(Dataset.from_list([row]), "x")


def test_keys() -> None:
    rows = [{"messages": TALK}, {"messages": [ASK, LAST]}, {"messages": TALK}, {"messages": [ASK]}]
    prompt, whole = dialogue_keys(Dataset.from_list(rows))
    assert prompt[0] == prompt[1] == prompt[2] != 0 and prompt[3] == whole[3] == 0
    assert whole[0] == whole[2] != whole[1]


def test_keys_are_cached_by_the_code_that_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    data = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
    first = dialogue_keys(data)
    assert row_keys(data).pair != first.pair  # the same rows, read otherwise
    monkeypatch.setattr("simpo.data.dialogues._keys", lambda row: (1, 2))
    assert dialogue_keys(data).pair == first.pair  # kept
    monkeypatch.setattr("simpo.data.duplicates.compared_name", lambda data, what, *sources: "-".join(sources))
    assert dialogue_keys(data).pair.tolist() == [2]


def test_pair_settings_still_refuse_other_columns() -> None:
    with pytest.raises(ValueError, match="is no column that is read"):
        DataConfig(dataset_mixer={"a.jsonl": 1.0}, dataset_columns={"messages": "talk"})
