"""What makes tokenising fast changes no id, and it is fast: measured beside the tokenizer library in one run."""

import random
from functools import partial

import pytest
from datasets import Dataset
from transformers import AddedToken

from simpo.data.chat import barrier_token
from simpo.data.encode import Encoder
from simpo.data.ids import TextEncoder
from simpo.data.tokenize import TokenizeOptions, tokenize_pairs

from .conftest import BOS, CHATML, CHATML_DEFAULT_SYSTEM, EOS, GEMMA, MISTRAL, PLAIN, assistant, system, user

TEMPLATES = {
    "llama3": None,
    "chatml": CHATML,
    "default system": CHATML_DEFAULT_SYSTEM,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "plain": PLAIN,
}
# pieces that merge, end turns, stand beside added tokens, or look like parts of them
PIECES = ["Up", " down", "ab", ".", "é", " ", "\n", "\n\n", "\t", "<|", "|>", "<|im_", "assistant", "user\n"]
PIECES += [BOS, EOS, "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|end_header_id|>", "<end_of_turn>", "<s>", "</s>"]


def odd_rows(count, seed=0):
    """Conversations of the pieces above."""
    rng = random.Random(seed)

    def text():
        return "".join(rng.choices(PIECES, k=rng.randint(1, 8)))

    for _ in range(count):
        turns = [user(text())]
        if rng.random() < 0.3:
            turns += [assistant(text()), user(text())]
        if rng.random() < 0.3:
            turns.insert(0, system(text()))
        yield {"prompt": turns, "chosen": [assistant(text())], "rejected": [assistant(text())]}


def results(tokenizer, rows, mode):
    data, report = tokenize_pairs(Dataset.from_list(rows), tokenizer, TokenizeOptions(mode, 48, 32))
    return data.to_list(), report


def assert_same_by_the_long_way(tokenizer, rows, mode, monkeypatch):
    """Every text whole and through the tokenizer's own call, or from the barrier on and through the Rust library."""
    fast = results(tokenizer, rows, mode)
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "is_plain", False)
        patch.setattr(Encoder, "barrier", "")
        slow = results(tokenizer, rows, mode)
    assert fast == slow
    assert fast[1].kept > len(rows) / 4


@pytest.mark.parametrize("mode", ["standard", "paper"])
@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "mistral"])
def test_the_short_way_gives_the_same_ids(make_tokenizer, template, mode, monkeypatch):
    rows = [row for row in odd_rows(300) if template != "gemma" or row["prompt"][0]["role"] == "user"]
    assert_same_by_the_long_way(make_tokenizer(TEMPLATES[template]), rows, mode, monkeypatch)


def test_the_short_way_gives_the_same_ids_behind_inst(make_tokenizer, monkeypatch):
    rows = [row for row in odd_rows(300) if row["prompt"][0]["role"] == "user"]
    tokenizer = make_tokenizer(MISTRAL)
    tokenizer.add_tokens(["[INST]", "[/INST]"], special_tokens=True)
    assert barrier_token(tokenizer, MISTRAL, add_generation_prompt=True) == "[/INST]"
    assert_same_by_the_long_way(tokenizer, rows, "standard", monkeypatch)


@pytest.mark.parametrize("mode", ["standard", "paper"])
def test_the_short_way_gives_the_same_ids_where_words_get_spaces(metaspace_tokenizer, mode, monkeypatch):
    template = (
        "{% for m in messages %}{{ '<s>' + m.role + ':\n' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<s>assistant:\n' }}{% endif %}"
    )
    monkeypatch.setattr(metaspace_tokenizer, "chat_template", template)
    expected = "<s>" if mode == "standard" else "</s>"
    assert barrier_token(metaspace_tokenizer, template, add_generation_prompt=mode == "standard") == expected
    assert_same_by_the_long_way(metaspace_tokenizer, list(odd_rows(300)), mode, monkeypatch)


@pytest.mark.parametrize(
    "template, generating, answering",
    [
        ("llama3", "<|end_header_id|>", "<|eot_id|>"),
        ("chatml", "<|im_start|>", "<|im_end|>"),
        ("gemma", "<start_of_turn>", "<end_of_turn>"),
        ("plain", "", ""),
    ],
)
def test_barrier_is_the_last_special_token(make_tokenizer, template, generating, answering):
    tokenizer = make_tokenizer(TEMPLATES[template])
    barrier = partial(barrier_token, tokenizer, tokenizer.chat_template)
    assert barrier(add_generation_prompt=True) == generating
    assert barrier(add_generation_prompt=False) == answering


@pytest.mark.parametrize(
    "other",
    [
        AddedToken("<|im_start|>assistant", normalized=False),  # covers it
        AddedToken("\n<|im", normalized=False),  # takes its beginning
        AddedToken("<|im_start|>", single_word=True, normalized=False),  # looks at its neighbours
        AddedToken("<|im_start|>", normalized=True),  # is looked for in the pieces
    ],
    ids=["longer", "overlapping", "single word", "normalized"],
)
def test_no_barrier_where_another_token_may_stand(make_tokenizer, other, monkeypatch):
    tokenizer = make_tokenizer(CHATML)
    tokenizer.add_tokens([other])
    assert barrier_token(tokenizer, CHATML, add_generation_prompt=True) != "<|im_start|>"
    assert_same_by_the_long_way(tokenizer, list(odd_rows(100)), "standard", monkeypatch)


def test_ids_do_not_depend_on_the_last_call(make_tokenizer):
    tokenizer = make_tokenizer()
    rows = list(odd_rows(20))
    expected = results(tokenizer, rows, "standard")
    tokenizer(["one", "and two"], padding="max_length", truncation=True, max_length=7)
    assert results(tokenizer, rows, "standard") == expected


@pytest.mark.slow
def test_at_least_six_tenths_of_the_library_s_speed(tmp_path, monkeypatch):
    from benchmarks import tokenization

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    words = tokenization.corpus()
    tokenizer = tokenization.make_tokenizer(words[:100_000])
    Dataset.from_list(list(tokenization.make_rows(words, tokenizer, 1500))).save_to_disk(tmp_path / "rows")
    table = tokenization.summarize(tokenization.measure(str(tmp_path / "rows"), tokenizer, repeats=3))
    assert all(row["ratio"] > 0.6 for row in table), table
