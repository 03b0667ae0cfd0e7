"""Rows of one judged response: prompt, completion, label."""

import pytest
from datasets import Dataset

from simpo.data.config import DataConfig
from simpo.data.load import load_datasets
from simpo.data.schema import EMPTY_RESPONSE, MISSING_FIELD, NO_PROMPT, ROLE_ORDER, normalise
from simpo.data.tokenize import TokenizeOptions, tokenize_pairs
from simpo.errors import DataError

QUESTION = [{"role": "user", "content": "Which way is north?"}]
GOOD, BAD = ([{"role": "assistant", "content": text}] for text in ("Up.", "Down."))
OPTIONS = {"max_length": 60, "max_prompt_length": 40}


def rows(*labels) -> list[dict]:
    return [{"prompt": QUESTION, "completion": GOOD if label else BAD, "label": label} for label in labels]


def test_ids_are_those_of_the_pair(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    whole, _ = tokenize_pairs(
        Dataset.from_list([{"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}]),
        tokenizer,
        TokenizeOptions(**OPTIONS),
    )
    pairs, report = tokenize_pairs(
        Dataset.from_list(rows(True, False)), tokenizer, TokenizeOptions(**OPTIONS, unpaired=True)
    )
    assert (report.total, report.kept, report.dropped) == (2, 2, {})
    assert pairs["prompt_ids"] == [whole[0]["prompt_ids"]] * 2
    assert pairs["chosen_ids"] == [whole[0]["chosen_ids"], []]
    assert pairs["rejected_ids"] == [[], whole[0]["rejected_ids"]]


def test_texts(make_tokenizer) -> None:
    data = Dataset.from_list([{"prompt": "q ", "completion": "yes", "label": True}])
    pairs, _ = tokenize_pairs(data, make_tokenizer(), TokenizeOptions(**OPTIONS, unpaired=True))
    whole, _ = tokenize_pairs(
        Dataset.from_list([{"prompt": "q ", "chosen": "yes", "rejected": "no"}]),
        make_tokenizer(),
        TokenizeOptions(**OPTIONS),
    )
    assert pairs[0]["chosen_ids"] == whole[0]["chosen_ids"] and pairs[0]["rejected_ids"] == []


def test_one_side_is_cut_and_counted(make_tokenizer) -> None:
    long = [{"role": "assistant", "content": "up and down " * 40}]
    data = Dataset.from_list([{"prompt": QUESTION, "completion": long, "label": False}])
    pairs, report = tokenize_pairs(data, make_tokenizer(), TokenizeOptions(**OPTIONS, unpaired=True))
    assert len(pairs[0]["prompt_ids"]) + len(pairs[0]["rejected_ids"]) == 60 and pairs[0]["chosen_ids"] == []
    assert report.truncated == {"rejected shortened": 1}


def test_other_objectives_drop_them(make_tokenizer) -> None:
    with pytest.raises(DataError, match=r"(?s)none of the 2 rows.*objective: kto"):
        tokenize_pairs(Dataset.from_list(rows(True, False)), make_tokenizer(), TokenizeOptions(**OPTIONS))


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"prompt": QUESTION, "chosen": None, "rejected": None}, MISSING_FIELD),
        ({"prompt": None, "chosen": "a", "rejected": None}, NO_PROMPT),
        ({"prompt": "q", "chosen": " ", "rejected": None}, EMPTY_RESPONSE),
        ({"prompt": QUESTION, "chosen": [], "rejected": None}, EMPTY_RESPONSE),
        ({"prompt": QUESTION, "chosen": None, "rejected": [{"role": "assistant", "content": ""}]}, EMPTY_RESPONSE),
        ({"prompt": [*QUESTION, *GOOD], "chosen": GOOD, "rejected": None}, ROLE_ORDER),
    ],
)
def test_rows_that_cannot_be_trained_on(row, cause) -> None:
    assert normalise(row, unpaired=True) == cause


def test_whole_conversations() -> None:
    pair = normalise({"chosen": [*QUESTION, *GOOD], "rejected": None}, unpaired=True)
    assert not isinstance(pair, str)
    assert (pair.prompt, pair.chosen, pair.only) == (QUESTION, GOOD, "chosen")


def test_a_file_of_them(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    Dataset.from_list(rows(True, False, True)).to_json(path)
    train, _ = load_datasets(DataConfig(dataset_mixer={str(path): 1.0}), seed=0)
    assert [row["chosen"] is None for row in train] == [False, True, False]
    assert [row["rejected"] is None for row in train] == [True, False, True]


def test_labels_are_true_or_false(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "completion": "a", "label": "good"}\n')
    with pytest.raises(DataError, match=r"column label has type .*write true for good completions"):
        load_datasets(DataConfig(dataset_mixer={str(path): 1.0}), seed=0)


def test_mixed_with_pairs(tmp_path, make_tokenizer) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    Dataset.from_list(rows(True, False)).to_json(one)
    Dataset.from_list([{"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}]).to_json(two)
    train, _ = load_datasets(DataConfig(dataset_mixer={str(one): 1.0, str(two): 1.0}), seed=0)
    pairs, report = tokenize_pairs(train, make_tokenizer(), TokenizeOptions(**OPTIONS, unpaired=True))
    assert report.kept == 3
    assert [(len(pair["chosen_ids"]) > 0, len(pair["rejected_ids"]) > 0) for pair in pairs] == [
        (True, False), (False, True), (True, True),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_duplicates_have_one_label(tmp_path, kind) -> None:
    path = tmp_path / "rows.jsonl"
    Dataset.from_list([*rows(True, True), {**rows(True)[0], "label": False}]).to_json(path)
    train, _ = load_datasets(DataConfig(dataset_mixer={str(path): 1.0}, deduplicate=kind), seed=0)
    assert [row["chosen"] is None for row in train] == [False, True]


def test_prompts_are_held_out_whole(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    many = [
        dict(row, prompt=[{"role": "user", "content": f"Question {at // 3}?"}])
        for at, row in enumerate(rows(*[True] * 30))
    ]
    Dataset.from_list(many).to_json(path)
    train, held_out = load_datasets(DataConfig(dataset_mixer={str(path): 1.0}, test_size=2), seed=0)
    assert held_out is not None and (len(train), len(held_out)) == (24, 6)
    assert not {str(row["prompt"]) for row in train} & {str(row["prompt"]) for row in held_out}
