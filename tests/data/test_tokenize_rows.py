"""What becomes of every row: the report, what is refused as a whole, the cache, several processes."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from simpo.data import schema, tokenize, truncate
from simpo.data.account import cache_name
from simpo.data.tokenize import TokenizeOptions, is_tokenized, tokenize_pairs
from simpo.errors import ConfigError, DataError

from .conftest import CHATML, GEMMA, PLAIN, conversation, system, user
from .test_tokenize import QUESTION, SHARED_DATA, STANDARD, lengths, run


def test_bad_rows_are_counted_and_the_rest_kept(make_tokenizer):
    good = conversation(QUESTION, "Up.", "Down.")
    rows = [
        good,
        conversation(QUESTION, "", "Down."),
        conversation(QUESTION, "Up.", "Up."),
        conversation([user("a"), user("b")], "Up.", "Down."),
        conversation([system("s"), *QUESTION], "Up.", "Down."),
        {"chosen": None, "rejected": good["rejected"]},
        good,
    ]
    tokenizer = make_tokenizer(GEMMA)
    pairs, report = run(tokenizer, *rows)
    assert [pair["row"] for pair in pairs] == [0, 6]
    assert set(pairs[0]) == {"prompt_ids", "chosen_ids", "rejected_ids", "row"}
    assert (report.total, report.kept) == (7, 2)
    assert report.dropped == {
        schema.EMPTY_RESPONSE: 1,
        schema.EQUAL: 1,
        schema.ROLE_ORDER: 1,
        "template fails: System role not supported": 1,
        schema.MISSING_FIELD: 1,
    }
    assert report.examples[schema.ROLE_ORDER] == [3]
    account = "\n".join(report.lines())
    assert "2 of 7 pairs" in account
    for cause in report.dropped:
        assert cause in account and schema.DROP_CAUSES[cause.split(":")[0]] in account


def test_report_counts_tokens(make_tokenizer):
    rows = [conversation(QUESTION, "Up.", "Down we go."), conversation([user("x " * 20)], "Up up.", "Down.")]
    pairs, report = run(make_tokenizer(), *rows, conversation(QUESTION, "", "dropped"))
    for side in ("prompt", "chosen", "rejected"):
        sizes = [len(pair[f"{side}_ids"]) for pair in pairs]
        assert getattr(report, f"{side}_mean") == pytest.approx(sum(sizes) / 2)
        assert getattr(report, f"{side}_max") == max(sizes)
    assert report.total_tokens == sum(sum(lengths(pair)) for pair in pairs)


def test_examples_stop_at_five(make_tokenizer):
    rows = [conversation(QUESTION, "", "x")] * 8 + [conversation(QUESTION, "Up.", "Down.")]
    _, report = run(make_tokenizer(), *rows)
    assert report.dropped == {schema.EMPTY_RESPONSE: 8}
    assert report.examples[schema.EMPTY_RESPONSE] == [0, 1, 2, 3, 4]


def test_template_that_rewrites_the_prompt(make_tokenizer):
    # a template that shows earlier answers in another form than the generation prompt promises
    template = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    with pytest.raises(DataError, match="template rewrites the prompt"):
        run(make_tokenizer(template), conversation(QUESTION, "Up.", "Down."))


@pytest.mark.parametrize(
    "change, row, message",
    [
        ({"chat_template": None}, conversation(QUESTION, "a", "b"), "no chat template"),
        ({"chat_template": "{% for %}"}, conversation(QUESTION, "a", "b"), "does not compile at line 1"),
        ({"chat_template": PLAIN, "eos_token": None}, conversation(QUESTION, "a", "b"), "no EOS"),
        ({"eos_token": None}, {"prompt": "q", "chosen": "a", "rejected": "b"}, "no EOS"),
    ],
)
def test_tokenizer_that_cannot_serve(make_tokenizer, change, row, message):
    tokenizer = make_tokenizer()
    for key, value in change.items():
        setattr(tokenizer, key, value)
    with pytest.raises(DataError, match=message):
        run(tokenizer, row)


def test_no_rows_and_streams(make_tokenizer):
    empty = Dataset.from_dict({"prompt": ["a"], "chosen": ["a"], "rejected": ["b"]}).select([])
    with pytest.raises(DataError, match="no rows"):
        tokenize_pairs(empty, make_tokenizer(), STANDARD)
    stream = Dataset.from_list([conversation(QUESTION, "a", "b")]).to_iterable_dataset()
    with pytest.raises(DataError, match="streaming"):
        tokenize_pairs(stream, make_tokenizer(), STANDARD)


@pytest.mark.parametrize(
    "values",
    [
        {"tokenization": "best"},
        {"truncation": "keep"},
        {"max_prompt_length": 1024},
        {"max_prompt_length": 0},
        {"max_length": 10},
    ],
)
def test_options_out_of_bounds(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TokenizeOptions(**values)


def test_is_tokenized(make_tokenizer):
    raw = Dataset.from_list([conversation(QUESTION, "a", "b")])
    data, _ = tokenize_pairs(raw, make_tokenizer(), STANDARD)
    assert is_tokenized(data) and not is_tokenized(raw) and not is_tokenized([1]) and not is_tokenized(None)


def test_second_call_reads_the_cache(make_tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "\n".join(json.dumps(conversation(QUESTION, f"Up {i}.", "" if i == 2 else "No.")) for i in range(5))
    )
    raw = datasets.load_dataset("json", data_files=str(path), split="train")
    tokenizer = make_tokenizer()
    first, report = tokenize_pairs(raw, tokenizer, STANDARD)

    def forbidden(*_, **__):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokenize, "_tokenize_batch", forbidden)
    name = cache_name(raw, tokenizer, STANDARD, tokenize._SOURCES)
    tokenizer(["use", "changes its padding state"], padding=True, truncation=True, max_length=7)
    assert cache_name(raw, tokenizer, STANDARD, tokenize._SOURCES) == name
    again, again_report = tokenize_pairs(raw, tokenizer, TokenizeOptions(), num_proc=2)
    assert again.to_list() == first.to_list() and again_report == report
    assert tokenize_pairs(raw, make_tokenizer(), STANDARD)[1] == report
    # whatever the ids depend on makes a new entry
    for other, options in (
        (make_tokenizer(CHATML), STANDARD),
        (make_tokenizer(adds_bos=True), STANDARD),
        (make_tokenizer(CHATML, bos=False), STANDARD),
        (tokenizer, TokenizeOptions(max_length=1023)),
        (tokenizer, TokenizeOptions("paper")),
        (tokenizer, TokenizeOptions(add_empty_system=True)),
        (tokenizer, TokenizeOptions(truncation="drop")),
    ):
        with pytest.raises(AssertionError, match="tokenised again"):
            tokenize_pairs(raw, other, options)


def test_several_processes_give_the_same(make_tokenizer):
    rows = [conversation(QUESTION, f"Up {i}.", "" if i % 3 == 0 else "Down.") for i in range(20)]
    one, report = run(make_tokenizer(), *rows)
    two, two_report = run(make_tokenizer(), *rows, num_proc=2)
    assert one == two and report == two_report and [pair["row"] for pair in two][:3] == [1, 2, 4]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real pairs of ../shared/data are not here")
@pytest.mark.parametrize("tokenization, rows", [("standard", 2000), ("paper", 400)])
def test_real_conversations(tiny_tokenizer, tokenization, rows):
    raw = datasets.load_dataset("json", data_files=str(SHARED_DATA / "hh_harmless_train.jsonl.gz"), split="train")
    raw = raw.select(range(rows))
    data, report = tokenize_pairs(raw, tiny_tokenizer, TokenizeOptions(tokenization, 512, 256))
    assert report.total == rows and report.kept == rows
    table = data.to_dict()
    for prompt, chosen, rejected in zip(
        *(table[f"{side}_ids"] for side in ("prompt", "chosen", "rejected")), strict=True
    ):
        assert len(prompt) + max(len(chosen), len(rejected)) <= 512
        assert prompt and chosen and rejected and chosen != rejected
        if tokenization == "standard":
            assert prompt[0] == 0 and prompt.count(0) == 1
            assert 4 not in chosen[:-1] and 4 not in rejected[:-1] and 1 not in chosen + rejected


def test_every_cause_is_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for cause in [*schema.DROP_CAUSES, *truncate.TRUNCATION_CAUSES]:
        assert cause in page, cause
