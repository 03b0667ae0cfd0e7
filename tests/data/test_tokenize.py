"""Token ids: the published ones exactly, and the standard mode's promises, template by template."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from simpo.data import schema, tokenize, truncate
from simpo.data.tokenize import TokenizeOptions, is_tokenized, tokenize_pairs
from simpo.errors import ConfigError, DataError

from .conftest import (
    BOS,
    CHATML,
    CHATML_DEFAULT_SYSTEM,
    EOS,
    GEMMA,
    MISTRAL,
    PLAIN,
    assistant,
    conversation,
    system,
    user,
)

STANDARD = TokenizeOptions()
PAPER = TokenizeOptions("paper", 1024, 800)
QUESTION = [user("Which way is north?")]
SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def run(tokenizer, *rows, options=STANDARD, **more):
    data, report = tokenize_pairs(Dataset.from_list(list(rows)), tokenizer, options, **more)
    return data.to_list(), report


def texts(tokenizer, pair):
    return tuple(tokenizer.decode(pair[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids"))


# paper


def test_paper_reproduces_the_published_ids(golden, tiny_tokenizer):
    data, report = tokenize_pairs(Dataset.from_list(golden["rows"]), tiny_tokenizer, PAPER)
    expected = golden["runs"]["beta2"]["tokens"]
    assert report.kept == len(data) == len(expected)
    for pair, tokens in zip(data, expected, strict=True):
        for side in ("chosen", "rejected"):
            assert pair["prompt_ids"] + pair[f"{side}_ids"] == tokens[f"{side}_input_ids"]
            assert [-100] * len(pair["prompt_ids"]) + pair[f"{side}_ids"] == tokens[f"{side}_labels"]


def test_paper_scores_the_header_and_ends_twice(make_tokenizer):
    tokenizer = make_tokenizer()
    [pair], _ = run(tokenizer, conversation(QUESTION, "Up.", "Down."), options=PAPER)
    prompt, chosen, _ = texts(tokenizer, pair)
    assert prompt == f"{BOS}<|start_header_id|>user<|end_header_id|>\n\nWhich way is north?<|eot_id|>"
    assert chosen == f"<|start_header_id|>assistant<|end_header_id|>\n\nUp.<|eot_id|>{EOS}"


def test_paper_without_bos_does_not_crash(make_tokenizer):
    tokenizer = make_tokenizer(CHATML, bos=False)
    [pair], _ = run(tokenizer, conversation(QUESTION, "Up.", "Down."), options=PAPER)
    assert texts(tokenizer, pair)[0] == "<|im_start|>user\nWhich way is north?<|im_end|>\n"
    assert None not in pair["prompt_ids"] + pair["chosen_ids"]


def test_paper_puts_bos_where_the_template_does_not(make_tokenizer):
    tokenizer = make_tokenizer(CHATML)
    [pair], _ = run(tokenizer, conversation(QUESTION, "Up.", "Down."), options=PAPER)
    assert pair["prompt_ids"].count(0) == 1 and pair["prompt_ids"][0] == 0
    assert 0 not in pair["chosen_ids"]


def test_paper_drops_a_pair_whose_prompt_differs_between_sides(make_tokenizer):
    tokenizer = make_tokenizer()
    merging = {"prompt": "x\n", "chosen": "\n\nfoo", "rejected": "foo"}
    pairs, report = run(tokenizer, merging, {"prompt": "x\n", "chosen": "a", "rejected": "b"}, options=PAPER)
    assert report.dropped == {schema.PROMPT_DIFFERS: 1} and [pair["row"] for pair in pairs] == [1]


def test_paper_takes_the_merged_token_into_both_responses(make_tokenizer):
    tokenizer = make_tokenizer()
    row = {"prompt": "x\n", "chosen": "\n\nfoo", "rejected": "\n\nbar"}
    [pair], _ = run(tokenizer, row, options=PAPER)
    assert texts(tokenizer, pair) == (f"{BOS}x", f"\n\n\nfoo{EOS}", f"\n\n\nbar{EOS}")


def test_paper_truncates_as_published(make_tokenizer):
    tokenizer = make_tokenizer()
    long = {"prompt": " a" * 30, "chosen": " b" * 9, "rejected": " c" * 40}
    whole = {"prompt": [0, *tokenizer.encode(" a" * 30, add_special_tokens=False)]}
    [pair], report = run(tokenizer, long, options=TokenizeOptions("paper", 32, 20))
    assert pair["prompt_ids"] == whole["prompt"][-20:]  # BOS is lost there, as published
    assert (len(pair["chosen_ids"]), len(pair["rejected_ids"])) == (10, 12)
    assert pair["chosen_ids"][-1] == tokenizer.eos_token_id != pair["rejected_ids"][-1]
    assert report.truncated == {truncate.PROMPT_CUT: 1, truncate.REJECTED_CUT: 1}
    # a short prompt does not widen the responses' budget of max_length - max_prompt_length
    [pair], _ = run(tokenizer, {**long, "prompt": " a"}, options=TokenizeOptions("paper", 32, 20))
    assert (len(pair["prompt_ids"]), len(pair["rejected_ids"])) == (2, 12)
    # what fits is left alone, however long the prompt
    [pair], report = run(tokenizer, {**long, "rejected": " c"}, options=TokenizeOptions("paper", 41, 20))
    assert len(pair["prompt_ids"]) == 31 and not report.truncated


def test_paper_needs_a_template_that_renders_an_answer_alone(make_tokenizer):
    with pytest.raises(DataError, match=r"none of the 1 rows.*\n.*roles must alternate"):
        run(make_tokenizer(MISTRAL), conversation(QUESTION, "Up.", "Down."), options=PAPER)


# standard, style by style


@pytest.mark.parametrize(
    "template, prompt, chosen",
    [
        (
            None,
            f"{BOS}<|start_header_id|>user<|end_header_id|>\n\nWhich way is north?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "Up.<|eot_id|>",
        ),
        (CHATML, "<|im_start|>user\nWhich way is north?<|im_end|>\n<|im_start|>assistant\n", "Up.<|im_end|>"),
        (
            CHATML_DEFAULT_SYSTEM,
            "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nWhich way is north?<|im_end|>\n"
            "<|im_start|>assistant\n",
            "Up.<|im_end|>",
        ),
        (
            GEMMA,
            f"{BOS}<start_of_turn>user\nWhich way is north?<end_of_turn>\n<start_of_turn>model\n",
            "Up.<end_of_turn>",
        ),
        (MISTRAL, f"{BOS}[INST] Which way is north? [/INST]", f" Up. {EOS}"),
        (PLAIN, "user: Which way is north?\n\nassistant: ", f"Up.{EOS}"),
    ],
    ids=["llama3", "chatml", "default system", "gemma", "mistral", "plain"],
)
def test_standard_styles(make_tokenizer, template, prompt, chosen):
    tokenizer = make_tokenizer(template)
    [pair], report = run(tokenizer, conversation(QUESTION, "Up.", "Down."))
    assert texts(tokenizer, pair) == (prompt, chosen, chosen.replace("Up", "Down"))
    assert not report.truncated and not report.dropped
    # what the model is given when it generates, id by id
    assert pair["prompt_ids"] == tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("tokenization", ["standard", "paper"])
@pytest.mark.parametrize("adds", [False, True], ids=["tokenizer does not", "tokenizer adds"])
@pytest.mark.parametrize("template", [None, CHATML], ids=["template writes", "template does not"])
def test_exactly_one_bos(make_tokenizer, template, adds, tokenization):
    tokenizer = make_tokenizer(template, adds_bos=adds)
    assert (tokenizer("x")["input_ids"][0] == 0) == adds
    options = TokenizeOptions(tokenization)
    pairs, _ = run(
        tokenizer, conversation(QUESTION, "Up.", "Down."), conversation([user(" ")], "Up.", "Down."), options=options
    )
    expected = int(template is None or adds or tokenization == "paper")
    for pair in pairs:
        assert pair["prompt_ids"].count(0) == expected
        assert (pair["prompt_ids"][0] == 0) == bool(expected)
        assert 0 not in pair["chosen_ids"] + pair["rejected_ids"]


@pytest.mark.parametrize("adds", [False, True])
def test_text_rows(make_tokenizer, adds):
    tokenizer = make_tokenizer(adds_bos=adds)
    row = {"prompt": "Question: north?\n", "chosen": "Up.", "rejected": f"Down.{EOS}"}
    [pair], _ = run(tokenizer, row)
    assert texts(tokenizer, pair) == (f"{BOS if adds else ''}Question: north?\n", f"Up.{EOS}", f"Down.{EOS}")
    [pair], _ = run(tokenizer, {**row, "prompt": f"{BOS}Question: north?\n"})
    assert pair["prompt_ids"].count(0) == 1


def test_text_and_messages_in_one_data_set(make_tokenizer):
    tokenizer = make_tokenizer()
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": None, **conversation(QUESTION, "c", "d")}]
    columns = {key: [row[key] for row in rows] for key in schema.RAW_COLUMNS}
    data = Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, datasets.Json())))
    data, report = tokenize_pairs(data, tokenizer, STANDARD)
    assert report.kept == 2
    assert texts(tokenizer, data[0]) == ("p", f"a{EOS}", f"b{EOS}")
    assert texts(tokenizer, data[1])[1] == "c<|eot_id|>"


def test_multi_turn_scores_the_last_answer_only(golden, tiny_tokenizer):
    data, _ = tokenize_pairs(Dataset.from_list(golden["rows"]), tiny_tokenizer, STANDARD)
    for pair, row in zip(data, golden["rows"], strict=True):
        for side in ("chosen", "rejected"):
            assert tiny_tokenizer.decode(pair[f"{side}_ids"]) == row[side][-1]["content"].strip() + "<|eot_id|>"
            assert tiny_tokenizer.decode(pair["prompt_ids"] + pair[f"{side}_ids"]) == (
                tiny_tokenizer.apply_chat_template(row[side], tokenize=False)
            )


@pytest.mark.parametrize("answer", ["\n\nUp.", "\n Up.", "  Up.", "\tUp.", "\u00e9t\u00e9", "."])
def test_merges_at_the_boundary_leave_one_prompt(make_tokenizer, answer):
    tokenizer = make_tokenizer(CHATML)
    [pair], _ = run(tokenizer, conversation(QUESTION, answer, "Down."))
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert pair["prompt_ids"] == prompt
    assert texts(tokenizer, pair)[1:] == (f"{answer}<|im_end|>", "Down.<|im_end|>")


def test_merging_pair_is_not_vacuous(make_tokenizer):
    tokenizer = make_tokenizer(CHATML)
    encode = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    both = tokenizer("<|im_start|>assistant\n\n\nUp.", add_special_tokens=False)["input_ids"]
    assert both[: len(encode)] != encode


def test_no_space_is_invented_at_the_boundary(metaspace_tokenizer):
    tokenizer = metaspace_tokenizer
    row = {"prompt": [user("which way?")], "chosen": [assistant("\n\nup")], "rejected": [assistant("down")]}
    template = (
        "{% for m in messages %}{{ m.role + ':\n' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    )
    tokenizer.chat_template = template
    [pair], _ = run(tokenizer, row)
    space = "\u2581"
    for side in ("chosen_ids", "rejected_ids"):
        assert not tokenizer.convert_ids_to_tokens(pair[side])[0].startswith(space)
        assert pair[side][-1] == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(pair["prompt_ids"])[0].startswith(space)


@pytest.mark.parametrize("template, end", [(None, "<|eot_id|>"), (CHATML, "<|im_end|>")])
def test_response_ends_at_its_first_end_of_turn(make_tokenizer, template, end):
    tokenizer = make_tokenizer(template)
    [pair], report = run(tokenizer, conversation(QUESTION, f"Up.{end}\n and more", "Down."))
    assert texts(tokenizer, pair)[1:] == (f"Up.{end}", f"Down.{end}")
    assert report.truncated == {truncate.TEXT_AFTER_END: 1}


def test_add_empty_system(make_tokenizer):
    tokenizer = make_tokenizer(CHATML)
    for mode in ("standard", "paper"):
        options = TokenizeOptions(mode, add_empty_system=True)
        pairs, _ = run(
            tokenizer,
            conversation(QUESTION, "Up.", "Down."),
            conversation([system("Be kind."), *QUESTION], "Up.", "Down."),
            options=options,
        )
        first, second = (texts(tokenizer, pair)[0].removeprefix(BOS) for pair in pairs)
        assert first.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhich")
        assert second.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhich")


# truncation, standard


def lengths(pair):
    return tuple(len(pair[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids"))


@pytest.mark.parametrize(
    "prompt, chosen, rejected, expected, cuts",
    [
        (20, 5, 20, (20, 5, 20), set()),  # fits: a long prompt is no reason to cut
        (30, 5, 20, (20, 5, 20), {truncate.PROMPT_CUT}),  # no further than needed
        (30, 5, 35, (10, 5, 30), {truncate.PROMPT_CUT, truncate.REJECTED_CUT}),  # down to max_prompt_length
        (8, 5, 40, (8, 5, 32), {truncate.REJECTED_CUT}),  # a short prompt leaves its room to the responses
        (8, 40, 50, (8, 32, 32), {truncate.CHOSEN_CUT, truncate.REJECTED_CUT}),
        (200, 5, 6, (34, 5, 6), {truncate.PROMPT_CUT}),
    ],
)
def test_truncation_takes_only_what_it_must(make_tokenizer, prompt, chosen, rejected, expected, cuts):
    tokenizer = make_tokenizer(adds_bos=True)
    row = {"prompt": " a" * (prompt - 1), "chosen": " b" * (chosen - 1), "rejected": " c" * (rejected - 1)}
    [pair], report = run(tokenizer, row, options=TokenizeOptions(max_length=40, max_prompt_length=10))
    assert lengths(pair) == expected
    assert set(report.truncated) == cuts
    assert pair["prompt_ids"][0] == 0


@pytest.mark.parametrize(
    "template, first, head",
    [
        (
            None,
            [system("Be kind.")],
            f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>",
        ),
        (CHATML, [system("Be kind.")], "<|im_start|>system\nBe kind.<|im_end|>\n"),
        (CHATML_DEFAULT_SYSTEM, [], "<|im_start|>system\nYou are helpful.<|im_end|>\n"),
        (None, [], BOS),
        (CHATML, [], ""),
    ],
)
def test_prompt_keeps_its_head_and_its_end(make_tokenizer, template, first, head):
    tokenizer = make_tokenizer(template)
    prompt = [*first, user("far " * 100 + "near")]
    whole = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    options = TokenizeOptions(max_length=60, max_prompt_length=50)
    [pair], report = run(tokenizer, conversation(prompt, "Up.", "Down you go. " * 5), options=options)
    kept = tokenizer(head, add_special_tokens=False)["input_ids"]
    tail = 50 - len(kept)
    assert pair["prompt_ids"] == kept + whole[-tail:]
    assert report.truncated == {truncate.PROMPT_CUT: 1, truncate.REJECTED_CUT: 1}


def test_system_turn_gives_way_to_the_question(make_tokenizer):
    tokenizer = make_tokenizer()
    prompt = [system("Be kind. " * 30), user("far " * 100 + "near")]
    options = TokenizeOptions(max_length=60, max_prompt_length=50)
    [pair], report = run(tokenizer, conversation(prompt, "Up.", "Down you go. " * 5), options=options)
    assert report.truncated[truncate.SYSTEM_CUT] == 1
    assert len(pair["prompt_ids"]) == 50 and pair["prompt_ids"].count(0) == 1 and pair["prompt_ids"][0] == 0
    assert "kind" not in texts(tokenizer, pair)[0]


def test_responses_that_are_equal_once_cut_are_dropped(make_tokenizer):
    same = "the same words again and again and again and again and again and again"
    rows = [conversation(QUESTION, same + " yes", same + " no"), conversation(QUESTION, "Up.", "Down.")]
    pairs, report = run(make_tokenizer(), *rows, options=TokenizeOptions(max_length=30, max_prompt_length=22))
    assert report.dropped == {schema.EQUAL_AFTER_CUT: 1} and len(pairs) == 1


def test_answers_that_the_template_makes_equal_or_empty_are_dropped(make_tokenizer):
    rows = [
        conversation(QUESTION, "Up.", "Up. "),  # Llama-3's template trims
        conversation(QUESTION, "<|eot_id|>Up.", "Down."),
        conversation(QUESTION, "Up.", "Down."),
    ]
    _, report = run(make_tokenizer(), *rows)
    assert report.dropped == {schema.EQUAL: 1, schema.EMPTY_RESPONSE: 1}


# rows, report, cache


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
    name = tokenize.cache_name(raw, tokenizer, STANDARD)
    tokenizer(["use", "changes its padding state"], padding=True, truncation=True, max_length=7)
    assert tokenize.cache_name(raw, tokenizer, STANDARD) == name
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
