"""Counts, weights, columns and configurations of sources; every row of the sources is accounted for."""

import json

import numpy as np
import pytest
from datasets import Dataset

from simpo.data.config import DataConfig
from simpo.data.load import load_datasets, load_mix
from simpo.data.mix import draw, some, weighted
from simpo.data.tokenize import TokenizeOptions, tokenize_pairs
from simpo.errors import ConfigError, DataError

from .conftest import assistant, conversation, user

NAMES = {"prompt": "question", "chosen": "good", "rejected": "bad"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def text_rows(count, name="t"):
    return [{"prompt": f"{name} {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def named(rows, names=NAMES):
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


# how much


@pytest.mark.parametrize("amount, count", [(1, 40), (1.0, 40), (2, 2), (7.0, 7), (40, 40), (0.5, 20), (0.999, 39)])
def test_amounts(tmp_path, amount, count):
    train, _ = load_datasets(DataConfig({write(tmp_path / "p.jsonl", text_rows(40)): amount}))
    assert len(set(train["prompt"])) == len(train) == count


def test_a_count_above_the_rows_there_are(tmp_path):
    path = write(tmp_path / "p.jsonl", text_rows(40))
    with pytest.raises(DataError, match=r"p\.jsonl: 41 rows are asked for and 40 are there; write 1\.0"):
        load_datasets(DataConfig({path: 41}))


def test_a_fraction_is_of_the_number_as_it_is_written():
    rows = draw(0.29, 100, 0, "a")  # 0.29 * 100 is 28.999999999999996
    assert rows is not None and len(rows) == 29


def test_draws_are_seeded_and_in_order():
    first, again, other = (draw(10, 100, seed, "x") for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() == sorted(set(first.tolist())) != other.tolist()
    assert draw(1.0, 100, 0, "x") is None
    assert some(np.arange(5), 9, 0).tolist() == [0, 1, 2, 3, 4]


def test_weights_repeat_rows():
    rows = np.array([0, 2, 3, 4, 5, 6, 7, 8, 9])  # row 1 was left out
    found = weighted(rows, [4, 6], [2, 1.5], seed=0).tolist()
    assert found[:6] == [0, 0, 2, 2, 3, 3]
    counts = {row: found.count(row) for row in range(4, 10)}
    assert sorted(counts.values()) == [1, 1, 1, 2, 2, 2] and found == sorted(found)


def test_weights_come_after_duplicates_and_held_out_prompts(tmp_path):
    a = write(tmp_path / "a.jsonl", text_rows(10) + text_rows(2))
    b = write(tmp_path / "b.jsonl", text_rows(10, "b"))
    settings = DataConfig({a: 1.0, b: 1.0}, dataset_weights={a: 3}, deduplicate="exact", test_size=4)
    train, evaluation, report = load_mix(settings)
    assert report.total == 22 == report.kept + report.held_out + sum(report.dropped.values())
    assert (report.kept, report.held_out, report.seen) == (16, 4, len(train)) and len(evaluation) == 4
    prompts = train["prompt"][:]
    assert {prompts.count(f"t {i}") for i in range(10)} <= {0, 3} and not set(prompts) & set(evaluation["prompt"])
    assert {prompts.count(f"b {i}") for i in range(10)} <= {0, 1}
    assert "each seen 3 times" in "\n".join(report.lines())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"dataset_weights": {"a": 0.5}}, "1 or more"),
        ({"dataset_weights": {"b": 2}}, "'b' is no source"),
        ({"dataset_mixer": ["a"]}, r"dataset_mixer: \['a'\] must be a mapping"),
        ({"dataset_mixer": "a"}, "dataset_mixer: 'a' must be a mapping"),
        ({"dataset_mixer": {3: 1.0}}, "must be a mapping from texts"),
        ({"dataset_mixer": {" ": 1.0}}, "' ' names no source"),
        ({"dataset_weights": [2]}, "dataset_weights: .* must be a mapping"),
        ({"dataset_columns": ["q"]}, "dataset_columns: .* must be a mapping"),
        ({"dataset_configs": "x"}, "dataset_configs: 'x' must be a list"),
        ({"dataset_splits": "train"}, "dataset_splits: 'train' must be a list of names"),
        ({"dataset_splits": [None]}, "must be a list of names"),
        ({"max_train_samples": 2.5}, "max_train_samples: 2.5 must be a whole number"),
        ({"max_eval_samples": True}, "max_eval_samples: True must be a whole number"),
        ({"dataset_mixer": {"a": 2.5}}, "at most 1, or a whole number"),
        ({"dataset_configs": {"b": "x"}}, "'b' is no source"),
        ({"dataset_columns": {"b": {"prompt": "q"}}}, "'b' is no source"),
        ({"dataset_columns": {"question": "prompt"}}, "'question' is no column that is read"),
        ({"dataset_columns": {"a": {"prompt": "q"}, "chosen": "good"}}, "mixes columns"),
        ({"dataset_columns": {"prompt": "q", "chosen": "q"}}, "one column as two"),
        ({"deduplicate": "fuzzy"}, "off, exact or near"),
    ],
)
def test_settings_that_contradict(values, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**{"dataset_mixer": {"a": 1.0}, **values})


def test_the_account_is_empty_where_nothing_was_left_out(tmp_path):
    path = write(tmp_path / "p.jsonl", text_rows(4))
    report = load_mix(DataConfig({path: 1.0})).report
    assert (report.total, report.kept, report.seen, report.lines()) == (4, 4, 4, [])


def test_every_training_row_has_an_origin(tmp_path):
    a, b = write(tmp_path / "a.jsonl", text_rows(9, "a")), write(tmp_path / "b.jsonl", text_rows(9, "b"))
    settings = DataConfig({a: 5, b: 1.0}, test_size=3, dataset_weights={b: 1.5}, max_train_samples=9)
    train, _, report = load_mix(settings)
    for row, prompt in enumerate(train["prompt"]):
        name, number = prompt.split()
        assert report.origin(row) == f"{ {'a': a, 'b': b}[name] } row {number}"


def test_the_account_names_places(tmp_path):
    a, b = write(tmp_path / "a.jsonl", text_rows(9)), write(tmp_path / "b.jsonl", text_rows(9))
    report = load_mix(DataConfig({a: 5, b: 1.0}, deduplicate="exact", max_train_samples=3)).report
    assert report.dropped == {"duplicate of an earlier row": 5} and report.kept == 9 and report.seen == 3
    text = "\n".join(report.lines())
    assert f"{a}: 5 of 9 rows" in text and "dropped 5: duplicate of an earlier row" in text
    assert "deduplicate: exact leaves them out, off keeps them" in text
    row, first = report.examples["duplicate of an earlier row"][0]
    assert report.place(row).startswith(b) and report.place(first).startswith(a)
    assert report.place(row).split()[-1] == report.place(first).split()[-1]  # the same row of both files
    assert f"{report.place(row)} = {report.place(first)}" in text and "max_train_samples takes 3 of 9" in text


# columns


def test_columns_of_all_sources(tmp_path):
    path = write(tmp_path / "p.jsonl", named(text_rows(3)))
    train, _ = load_datasets(DataConfig({path: 1.0}, dataset_columns=NAMES))
    assert train.to_list() == text_rows(3)


def test_columns_of_one_source(tmp_path):
    other = write(tmp_path / "a.jsonl", named(text_rows(3)))
    plain = write(tmp_path / "b.jsonl", text_rows(2, "b"))
    train, _ = load_datasets(DataConfig({other: 1.0, plain: 1.0}, dataset_columns={other: NAMES}))
    assert train.to_list() == text_rows(3) + text_rows(2, "b")
    with pytest.raises(DataError, match=r"b\.jsonl: dataset_columns reads prompt from 'question'.*prompt, chosen"):
        load_datasets(DataConfig({other: 1.0, plain: 1.0}, dataset_columns=NAMES))


def test_a_mapped_column_replaces_one_of_our_name(tmp_path):
    rows = [{**row, "chosen_v2": "better"} for row in text_rows(2)]
    path = write(tmp_path / "p.jsonl", rows)
    train, _ = load_datasets(DataConfig({path: 1.0}, dataset_columns={"chosen": "chosen_v2"}))
    assert train["chosen"][:] == ["better", "better"]
    swapped, _ = load_datasets(DataConfig({path: 1.0}, dataset_columns={"chosen": "rejected", "rejected": "chosen"}))
    assert swapped["chosen"][:] == ["no 0", "no 1"] and swapped["rejected"][:] == ["yes 0", "yes 1"]


def test_tools_and_template_arguments_survive_mixing(tmp_path):
    plain = write(tmp_path / "a.jsonl", [conversation([user("q")], "yes", "no")])
    rows = [{**conversation([user("q")], "yes", "no"), "tools": [TOOL], "chat_template_kwargs": {"think": True}}]
    with_tools = write(tmp_path / "b.jsonl", rows)
    other = {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "required": ["x"]}}}
    with_others = write(tmp_path / "c.jsonl", [{**conversation([user("q")], "a", "b"), "tools": [other]}])
    texts = write(tmp_path / "d.jsonl", text_rows(1))
    train, _ = load_datasets(DataConfig(dict.fromkeys([plain, with_tools, with_others, texts], 1.0)))
    assert len(train) == 4
    assert [bool(row["tools"]) for row in train] == [False, True, True, False]
    assert train[1]["tools"][0]["function"]["name"] == "f" and train[2]["tools"][0]["function"]["name"] == "g"
    assert train[1]["chat_template_kwargs"] == {"think": True} and not train[0]["chat_template_kwargs"]


def test_messages_whose_keys_stand_in_another_order(tmp_path, tiny_tokenizer):
    a = write(tmp_path / "a.jsonl", [conversation([user("q")], "yes", "no")])
    turned = [[{"content": "q", "role": "user"}, {"content": text, "role": "assistant"}] for text in ("a", "b")]
    b = write(tmp_path / "b.jsonl", [{"chosen": turned[0], "rejected": turned[1]}])
    train, _ = load_datasets(DataConfig({a: 1.0, b: 1.0}))
    assert tokenize_pairs(train, tiny_tokenizer, TokenizeOptions())[1].kept == 2


def test_token_ids_of_two_widths_mix(tmp_path):
    from datasets import Features, List, Value

    for width in ("int32", "int64"):
        features = Features(dict.fromkeys(("prompt_ids", "chosen_ids", "rejected_ids"), List(Value(width))))
        rows = {"prompt_ids": [[1, 2]], "chosen_ids": [[3]], "rejected_ids": [[4]]}
        Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / width)
    train, _ = load_datasets(DataConfig({str(tmp_path / width): 1.0 for width in ("int32", "int64")}))
    assert train["chosen_ids"][:] == [[3], [3]]


# configurations


def layout(tmp_path):
    """A directory in the layout of a hub repository, with two configurations."""
    folder = tmp_path / "hub"
    folder.mkdir()
    write(folder / "one.jsonl", text_rows(2, "one"))
    write(folder / "two.jsonl", text_rows(3, "two"))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one.jsonl\n- config_name: two\n  data_files: two.jsonl\n---\n"
    )
    return str(folder)


@pytest.mark.parametrize("form", ["list", "mapping"])
def test_configurations(tmp_path, form):
    folder = layout(tmp_path)
    configs = ["two"] if form == "list" else {folder: "two"}
    train, _ = load_datasets(DataConfig({folder: 1.0}, dataset_configs=configs))
    assert train["prompt"][0] == "two 0" and len(train) == 3


def test_evaluation_sources_have_configurations_too(tmp_path):
    folder, path = layout(tmp_path), write(tmp_path / "p.jsonl", text_rows(2))
    settings = DataConfig({path: 1.0}, ["train"], dataset_configs={folder: "one"}, eval_dataset_mixer={folder: 1.0})
    with pytest.raises(DataError, match="names no evaluation split"):  # its only split is train
        load_datasets(settings)


def test_reference_blocks_stay_valid(tmp_path):
    folder = layout(tmp_path)
    settings = DataConfig(dataset_mixer={folder: 1.0}, dataset_splits=["train"], dataset_configs=["one"])
    assert len(load_datasets(settings)[0]) == 2


def test_multi_turn_rows_are_compared_whole(tmp_path):
    first = [user("a"), assistant("b"), user("c")]
    rows = [conversation(first, "yes", "no"), conversation(first[2:], "yes", "no"), conversation(first, "yes", "no")]
    report = load_mix(DataConfig({write(tmp_path / "p.jsonl", rows): 1.0}, deduplicate="exact")).report
    assert report.examples == {"duplicate of an earlier row": [(2, 0)]}
