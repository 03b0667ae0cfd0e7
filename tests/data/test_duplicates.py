"""Exact and near duplicates: what counts as the same, which row stays, and how well similarity is estimated."""

import json
import random

import numpy as np
import pytest
from datasets import Dataset

from simpo.data import minhash
from simpo.data.config import DataConfig
from simpo.data.duplicates import exact_duplicates, first_with_key, row_keys
from simpo.data.load import NEAR_DUPLICATE, load_mix
from simpo.data.minhash import near_duplicates
from simpo.errors import ConfigError

from .conftest import conversation, system, user

WORDS = [f"word{number}" for number in range(3000)]


def text(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def found_exact(*rows):
    return exact_duplicates(Dataset.from_list(list(rows))).tolist()


# exact


def test_the_first_of_each_stays():
    same, other = text("q", "a", "b"), text("q", "a", "c")
    assert found_exact(same, other, same, same, other) == [-1, -1, 0, 0, 1]


@pytest.mark.parametrize(
    "row, same",
    [
        (text("what  is\n it", "a", "b"), True),
        (text(" what is it ", "a\n", "b"), True),
        (text("What is it", "a", "b"), False),
        (text("what is it", "a", "b b"), False),
        (text("what is it", "b", "a"), False),  # contradicts the first row
    ],
)
def test_white_space_does_not_count(row, same):
    assert found_exact(text("what is it", "a", "b"), row) == [-1, 0 if same else -1]


def test_unicode_forms_do_not_count():
    assert found_exact(text("caf\u00e9", "a", "b"), text("cafe\u0301", "a", "b")) == [-1, 0]


def test_every_format_of_a_pair_is_the_same():
    rows = [
        conversation([user("q")], "a", "b"),
        {**conversation([user("q")], "a", "b"), "prompt": "q"},
        conversation([system("s"), user("q")], "a", "b"),
    ]
    assert found_exact(*rows) == [-1, 0, -1]


def test_tools_belong_to_a_pair():
    rows = [
        {**conversation([user("q")], "a", "b"), "tools": [{"type": "function", "function": {"name": name}}]}
        for name in ("f", "g", "f")
    ]
    assert found_exact(*rows) == [-1, -1, 0]


def test_one_form_or_another_of_tools_is_the_same():
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [{**conversation([user("q")], "a", "b"), "tools": json.dumps(form)} for form in (tools, tools, [])]
    rows[1]["tools"] = json.dumps(tools, indent=1)
    assert found_exact(*rows) == [-1, 0, -1]


def answers(chosen, rejected):
    return {"prompt": [user("q")], "chosen": [{"role": "assistant", **chosen}], "rejected": [rejected]}


CALLS = [[{"type": "function", "function": {"name": name, "arguments": "{}"}}] for name in ("left", "right")]
MORE = [
    *({"content": "a", "reasoning_content": thought} for thought in ("up is north", "down is north")),
    *({"content": "", "tool_calls": call} for call in CALLS),
]


@pytest.mark.parametrize("find", ["exact", "near"])
def test_thoughts_and_calls_are_part_of_an_answer(find):
    rows = [answers(chosen, {"role": "assistant", "content": "b"}) for chosen in (*MORE, MORE[1])]
    found = found_exact if find == "exact" else found_near
    assert found(*rows) == [-1, -1, -1, -1, 1]


def test_tools_and_keywords_belong_to_a_near_duplicate_too():
    row = conversation([user("which way is north")], "up on most maps", "down")
    keywords = [{"chat_template_kwargs": json.dumps({"enable_thinking": on})} for on in (True, False, True)]
    assert found_near(*({**row, **more} for more in keywords)) == [-1, -1, 0]


def test_unusable_rows_are_left_to_the_tokeniser():
    rows = [text("q", None, None), text("q", None, None), text("q", "", "b"), text("q", "a", "b")]
    assert found_exact(*rows) == [-1] * 4
    assert row_keys(Dataset.from_list(rows)).pair.tolist()[:3] == [0, 0, 0]


def test_token_ids():
    ids = {"prompt_ids": [[1], [1], [1]], "chosen_ids": [[3], [4], [3]], "rejected_ids": [[4], [3], [4]]}
    assert exact_duplicates(Dataset.from_dict(ids)).tolist() == [-1, -1, 0]


def test_processes_agree():
    rows = Dataset.from_list([text(f"q {i % 7}", "a", "b") for i in range(50)])
    assert exact_duplicates(rows, num_proc=2).tolist() == exact_duplicates(rows).tolist()


def test_against_a_plain_loop():
    keys = np.random.default_rng(0).integers(-20, 20, 500)
    seen, expected = {}, []
    for row, key in enumerate(keys.tolist()):
        expected.append(seen.get(key, -1) if key else -1)
        seen.setdefault(key, row)
    assert first_with_key(keys).tolist() == expected


# near


def words(rng, count):
    return rng.choices(WORDS, k=count)


def changed(rng, given, changes):
    given = list(given)
    for at in rng.sample(range(len(given)), changes):
        given[at] = rng.choice(WORDS)
    return given


def jaccard(left, right, size=3):
    sets = [{tuple(part[at : at + size]) for at in range(len(part) - size + 1)} for part in (left, right)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def found_near(*rows, **options):
    return near_duplicates(Dataset.from_list(list(rows)), **options).tolist()


def test_small_changes_make_near_duplicates():
    rng = random.Random(0)
    prompt, good, bad = (words(rng, 150) for _ in range(3))
    base = text(" ".join(prompt), " ".join(good), " ".join(bad))
    close = text(" ".join(changed(rng, prompt, 2)), " ".join(changed(rng, good, 2)).title() + "!", " ".join(bad))
    far_prompt = {**base, "prompt": " ".join(changed(rng, prompt, 40))}
    far_answer = {**base, "chosen": " ".join(changed(rng, good, 60)), "rejected": " ".join(changed(rng, bad, 60))}
    swapped = {**base, "chosen": base["rejected"], "rejected": base["chosen"]}
    assert found_near(base, far_prompt, close, far_answer, swapped, base) == [-1, -1, 0, -1, -1, 0]


def test_short_answers_to_one_long_prompt_stay():
    prompt = " ".join(words(random.Random(1), 300))
    assert found_near(text(prompt, "yes", "no"), text(prompt, "maybe", "never"), text(prompt, "Yes.", "no")) == [
        -1,
        -1,
        0,
    ]


def test_texts_without_words_or_spaces():
    assert found_near(text("?", "!!!", "..."), text("?", "???", "..."), text("?", "!!!", "...")) == [-1, -1, 0]
    question = "\u5929\u6c14\u600e\u4e48\u6837\u554a\u6211\u60f3\u77e5\u9053\u4eca\u5929\u7684\u60c5\u51b5"
    rows = [
        text(question, "\u597d", "\u574f"),
        text(question[::-1], "\u597d", "\u574f"),
        text(question + "\u3002", "\u597d", "\u574f"),
    ]
    assert found_near(*rows) == [-1, -1, 0]


def test_unusable_rows_are_no_near_duplicates():
    rows = [text("q", None, None)] * 2 + [text("q r s", "a", "b")] * 2
    assert found_near(*rows) == [-1, -1, -1, 2]


def test_similarity_is_estimated_as_well_as_theory_says():
    rng = random.Random(2)
    errors = []
    for changes in (2, 5, 10, 20) * 10:
        left = words(rng, 200)
        right = changed(rng, left, changes)
        pair = [text("q", " ".join(left), "x"), text("q", " ".join(right), "x")]
        signed = minhash._sign_batch({key: [row[key] for row in pair] for key in pair[0]})["answers"]
        errors.append((signed[0] == signed[1]).mean() - jaccard(left, right))
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.07  # sqrt(0.25 / 96) = 0.05


def test_near_duplicates_are_found_and_others_are_not():
    rng = random.Random(3)
    rows, expected = [], []
    for number in range(300):
        parts = [words(rng, 80) for _ in range(3)]
        rows.append(text(*(" ".join(part) for part in parts)))
        expected.append(-1)
        if number % 3 == 0:
            rows.append(text(*(" ".join(changed(rng, part, 1)) for part in parts)))
            expected.append(len(rows) - 2)
    assert found_near(*rows) == expected
    assert found_near(*rows, num_proc=2) == expected


def test_near_and_token_ids(tmp_path):
    ids = {"prompt_ids": [[1, 2]], "chosen_ids": [[3]], "rejected_ids": [[4]]}
    Dataset.from_dict(ids).save_to_disk(tmp_path / "ids")
    with pytest.raises(ConfigError, match="near compares texts"):
        load_mix(DataConfig({str(tmp_path / "ids"): 1.0}, deduplicate="near"))


def test_near_duplicates_are_counted(tmp_path):
    rng = random.Random(4)
    parts = [words(rng, 60) for _ in range(3)]
    rows = [text(*(" ".join(part) for part in parts)), text("other", "a", "b")]
    rows.append({**rows[0], "prompt": " ".join(changed(rng, parts[0], 1))})
    Dataset.from_list(rows).to_parquet(tmp_path / "p.parquet")
    train, _, report = load_mix(DataConfig({str(tmp_path / "p.parquet"): 1.0}, deduplicate="near"))
    assert report.dropped == {NEAR_DUPLICATE: 1} and report.examples[NEAR_DUPLICATE] == [(2, 0)]
    assert train.to_list() == rows[:2]
