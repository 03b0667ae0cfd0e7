"""Evaluation prompts in training pairs: n-grams against a plain search, files of every shape."""

import json
import random

import pytest

from simpo.audit.overlap import COMMON, OverlapSearch, read_prompts, words_of
from simpo.audit.texts import Texts
from simpo.errors import ConfigError, DataError

WORDS = [f"w{number}" for number in range(12)]


def plainly(prompts, texts, words):
    """Numbers of prompts that share so many words in a row with a text."""

    def grams(text):
        split = words_of(text)
        return {tuple(split[at : at + words]) for at in range(len(split) - words + 1)}

    everywhere = set().union(*(grams(part) for row in texts for part in (row.prompt, row.chosen, row.rejected)))
    return [at for at, prompt in enumerate(prompts) if grams(prompt) & everywhere]


def test_against_a_plain_search(monkeypatch):
    monkeypatch.setattr("simpo.audit.overlap.COMMON", 10**9)
    monkeypatch.setattr("simpo.audit.overlap.SHORTEST", 4)
    monkeypatch.setattr("simpo.audit.overlap.LONGEST", 4)
    rng = random.Random(1)

    def text(most):
        return " ".join(rng.choices(WORDS, k=rng.randint(4, most)))

    prompts = [text(8) for _ in range(200)]
    rows = [Texts(text(30), "", text(30), text(30)) for _ in range(100)]
    search = OverlapSearch("x", prompts)
    for start in range(0, 100, 30):
        search.add(rows[start : start + 30])
    result = search.result()
    assert result.found == plainly(prompts, rows, 4) and 20 < len(result.found) < 180
    for at, pair, where, words in result.examples:
        assert words in " ".join(words_of(prompts[at])) and words in getattr(rows[pair], where)


@pytest.mark.parametrize(("length", "words"), [(5, 8), (10, 10), (40, 13)])
def test_length_of_the_ngrams(length, words):
    assert OverlapSearch("x", [" ".join(WORDS * 4)[: 3 * length]] * 3).words == words


def test_short_prompts_count_as_a_whole():
    search = OverlapSearch("x", ["Who was Ada?", "Define entropy."])
    search.add(
        [Texts("user: who was Ada", "who was Ada", "A.", "B."), Texts("user: Define it.", "Define it.", "A.", "B.")]
    )
    result = search.result()
    assert (result.found, result.pairs, result.examples) == ([0], [0], [(0, 0, "prompt", "who was ada")])


def test_nothing_crosses_from_one_text_into_the_next():
    search = OverlapSearch("x", ["a b c d e f g h"])
    search.add([Texts("a b c d", "", "e f g h", ""), Texts("x", "", "a b c d e f g", "h")])
    assert search.result().found == []


def test_common_phrases_do_not_count():
    phrase = "you are a helpful assistant who answers in one word only"
    rows = [Texts(f"{phrase} {number}", "", "A.", "B.") for number in range(COMMON + 1)]
    for count, found in ((COMMON, [0]), (COMMON + 1, [])):
        search = OverlapSearch("x", [phrase])
        search.add(rows[:count] * 3)  # pairs of one prompt are one document
        assert search.result().found == found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "One?\n\nTwo?\n"),
        ("a.jsonl", '{"instruction": "One?", "output": "x"}\n{"instruction": "Two?", "output": "x"}\n'),
        ("a.json", json.dumps([{"question": "One?"}, {"question": "Two?"}])),
        ("a.jsonl", '{"turns": ["One?"]}\n{"turns": ["Two?"]}\n'),
        ("a.jsonl", '{"turns": [{"content": "One?"}]}\n{"turns": [{"content": "Two?"}]}\n'),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "x"}]}\n'
            '{"messages": [{"role": "user", "content": "Two?"}]}\n',
        ),
        ("a.csv", "id,prompt\n1,One?\n2,Two?\n"),
    ],
)
def test_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_prompts("x", str(tmp_path / name)) == ["One?", "Two?"]


def test_turns_of_one_prompt_stay_together(tmp_path):
    (tmp_path / "mt.jsonl").write_text('{"turns": ["One?", "And two?"]}\n')
    assert read_prompts("mt", str(tmp_path / "mt.jsonl")) == ["One?\nAnd two?"]


def test_a_text_that_is_none(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One?\n\xff\xfe\n")
    with pytest.raises(DataError, match="is no UTF-8 text"):
        read_prompts("x", str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (None, ConfigError, "no such file"),
        ('{"input": "x"}\n', DataError, "no column prompt"),
        ('{"prompt": " "}\n', DataError, "no prompts"),
        ('{"prompt": 1}\n', DataError, "column prompt holds int"),
    ],
)
def test_errors(tmp_path, text, error, words):
    path = tmp_path / "set.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=f"--eval-prompts x=.*{words}"):
        read_prompts("x", str(path))
