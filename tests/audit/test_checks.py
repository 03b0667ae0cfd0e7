"""Every check with a set in which it finds something, and with one in which it does not; its limits; its entry in
the documentation."""

import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from simpo.audit.checks import SHORT
from simpo.audit.findings import CHECKS, LIMITS, Finding, counted, show_share
from simpo.audit.overlap import OverlapSearch
from tests.data.conftest import BOS, CHATML, CHATML_DEFAULT_SYSTEM, PLAIN

from .conftest import good_rows, row

EOT = 4  # <|eot_id|> of the tiny tokenizer


def ids(prompt, chosen, rejected):
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def id_rows(count, **changed):
    """Faultless data of token ids, with one column changed."""
    return [{**ids([0, 300, 301 + n], [302, 303, EOT], [304, 305, EOT]), **changed} for n in range(count)]


def test_good_rows_have_only_notes(findings_of):
    found = findings_of(good_rows(40), evaluation=[row("And what is left?", "Nothing.", "Who knows?")])
    assert {check: finding.level for check, finding in found.items()} == {"length_bias": "note"}


@pytest.mark.parametrize(("bad", "level"), [(1, "note"), (5, "warning"), (150, "error")])
def test_dropped(findings_of, bad, level):
    rows = good_rows(120) + [row(f"Say {n}.", "", "Something.") for n in range(bad)]
    finding = findings_of(rows)["dropped"]
    assert (finding.level, finding.count, finding.of) == (level, bad, 120 + bad)
    assert "empty response" in finding.text and "generate" in finding.todo and finding.rows[0] == 120


def test_what_truncation_drops_is_no_fault(findings_of):
    rows = good_rows(20) + [row(f"Say {n}.", "word " * 90, "other words") for n in range(60)]
    bounds = {"max_length": 80, "max_prompt_length": 40, "truncation": "drop"}
    finding = findings_of(rows, **bounds)["dropped"]
    assert (finding.level, finding.count, finding.of) == ("note", 60, 80)
    assert "longer than max_length" in finding.text and "truncation: cut" in finding.todo
    worst = findings_of([*rows, row("Say it.", "", "It.")], **bounds)["dropped"]  # 1 of 81 beside them
    assert worst.level == "warning" and "empty response" in worst.text


@pytest.mark.parametrize(("long", "level"), [(2, "note"), (20, "warning")])
def test_truncated(findings_of, long, level):
    rows = good_rows(40) + [row(f"Say {n}.", "word " * 90, "other words") for n in range(long)]
    found = findings_of(rows, max_length=80, max_prompt_length=40)
    assert found["truncated"].level == level and "chosen shortened" in found["truncated"].text
    assert "truncated" not in findings_of(rows, max_length=800, max_prompt_length=40)


def test_vocabulary(findings_of, tiny_tokenizer):
    rows = id_rows(20)
    assert "vocabulary" not in findings_of(rows)
    rows[7]["chosen_ids"] = [302, len(tiny_tokenizer), EOT]
    finding = findings_of(rows)["vocabulary"]
    assert (finding.level, finding.rows) == ("error", (7,))


def test_unknown_tokens(findings_of, metaspace_tokenizer):
    rows = [{"prompt": f"which way {n}", "chosen": "up", "rejected": "down"} for n in range(3)]
    rows = [{"prompt": "which way is north", "chosen": "up " + "the " * n, "rejected": "down"} for n in range(20)]
    assert "unknown_tokens" not in findings_of(rows, metaspace_tokenizer)
    rows[3]["chosen"] = "上"
    finding = findings_of(rows, metaspace_tokenizer)["unknown_tokens"]
    assert (finding.level, finding.rows) == ("warning", (3,))


def test_bos_double(findings_of, make_tokenizer):
    assert "bos_double" not in findings_of(good_rows(5), make_tokenizer(adds_bos=True))
    finding = findings_of(id_rows(20) + id_rows(1, prompt_ids=[0, 0, 300]))["bos_double"]
    assert (finding.level, finding.rows) == ("error", (20,)) and "once" in finding.todo


@pytest.mark.parametrize(("without", "level"), [(1, "warning"), (30, "error")])
def test_bos_missing(findings_of, without, level):
    finding = findings_of(id_rows(20) + id_rows(without, prompt_ids=[300, 301]))["bos_missing"]
    assert (finding.level, finding.count) == (level, without)


def test_a_tokenizer_without_bos_misses_none(findings_of, make_tokenizer):
    assert "bos_missing" not in findings_of(good_rows(5), make_tokenizer(CHATML, bos=False))
    assert "bos_missing" not in findings_of(good_rows(5), make_tokenizer(CHATML))  # nobody writes it


def test_bos_that_truncation_took(findings_of):
    rows = [*good_rows(19), row("word " * 90, "Yes.", "No.")]
    settings = {"max_length": 80, "max_prompt_length": 40}
    assert findings_of(rows, tokenization="paper", **settings)["bos_missing"].level == "warning"
    assert "bos_missing" not in findings_of(rows, **settings)


def test_bos_inside(findings_of):
    finding = findings_of([*good_rows(9), row(f"Say {BOS}!", "No.", "Yes.")])["bos_inside"]
    assert (finding.level, finding.rows) == ("warning", (9,))
    rare = findings_of([*id_rows(2000), *id_rows(1, prompt_ids=[0, 300, 0])])["bos_inside"]
    assert rare.level == "note"


@pytest.mark.parametrize(("cut", "level"), [(1, "note"), (4, "warning"), (60, "error")])
def test_end_missing(findings_of, cut, level):
    finding = findings_of(id_rows(40) + id_rows(cut, rejected_ids=[304, 305]))["end_missing"]
    assert (finding.level, finding.count) == (level, cut) and f"rejected {cut}" in finding.text


def test_cut_short(findings_of):
    rows = [*good_rows(18), *(row(f"Word {n} " + "word " * 90, "Yes. " * 20, "No. " * 20) for n in range(2))]
    for room, found in ((SHORT - 1, True), (SHORT, False)):
        given = findings_of(rows, max_length=64 + room, max_prompt_length=64)
        assert ("cut_short" in given) == found and given["end_missing"].count == 2
    finding = findings_of(rows, max_length=70, max_prompt_length=64)["cut_short"]
    assert (finding.level, finding.rows) == ("warning", (18, 19)) and "max_prompt_length" in finding.todo
    assert "cut_short" not in findings_of(good_rows(20))  # short ones that end


def test_scored_header(findings_of, make_tokenizer):
    rows = good_rows(10)
    assert "scored_header" not in findings_of(rows)
    note = findings_of(rows, tokenization="paper")["scored_header"]
    assert note.level == "note" and "assistant" in note.text and "tokenization: standard" in note.todo
    default_system = make_tokenizer(CHATML_DEFAULT_SYSTEM)
    assert "scored_header" not in findings_of(rows, default_system)
    error = findings_of(rows, default_system, tokenization="paper")["scored_header"]
    assert error.level == "error" and "You are helpful" in error.text and "chatml" in error.todo


@pytest.mark.parametrize("mode", ["standard", "paper"])
def test_special_inside(findings_of, mode):
    assert "special_inside" not in findings_of(good_rows(10), tokenization=mode)
    rows = [*good_rows(10), row("And then?", "Well.<|start_header_id|>user", "No.")]
    finding = findings_of(rows, tokenization=mode)["special_inside"]
    assert (finding.level, finding.rows) == ("warning", (10,))


def test_headers_in_data_of_token_ids(findings_of, tiny_tokenizer):
    header = tiny_tokenizer("<|start_header_id|>assistant<|end_header_id|>\n\n", add_special_tokens=False)["input_ids"]
    assert "special_inside" not in findings_of(id_rows(10))
    assert "scored_header" not in findings_of(id_rows(10))
    rows = id_rows(10, chosen_ids=[*header, 302, EOT])
    found = findings_of(rows)
    assert found["special_inside"].count == 10 and "after the assistant's header" in found["special_inside"].todo
    assert (found["scored_header"].level, found["scored_header"].count) == ("error", 10)
    assert "scored_header" not in findings_of(rows, tokenization="paper")
    system = id_rows(10, chosen_ids=[*header, 302, EOT, *header, 302, EOT])  # a turn before the assistant's
    assert findings_of(system, tokenization="paper")["scored_header"].level == "error"
    assert findings_of([*id_rows(40), *rows[:1]])["scored_header"].level == "warning"


@pytest.mark.parametrize("marker", ["[INST]", "\n\nHuman:", "### Response:", "{<|im_start|>}"])
def test_turn_markers(findings_of, marker):
    rows = good_rows(30)
    rows[4]["rejected"][0]["content"] += f" {marker} and on"
    finding = findings_of(rows)["turn_markers"]
    assert (finding.level, finding.rows) == ("warning", (4,)) and marker.strip(" {}\n") in finding.text


def test_the_marker_of_the_template_in_use(findings_of, make_tokenizer):
    rows = [*good_rows(10), row("And then?", "Well. assistant: yes", "No.")]
    assert "turn_markers" not in findings_of(rows)
    assert findings_of(rows, make_tokenizer(PLAIN))["turn_markers"].rows == (10,)


def test_duplicate_prompts(findings_of):
    assert "duplicate_prompts" not in findings_of(good_rows(10))
    rows = [*good_rows(10), row("what is  3 PLUS 3?", "Six.", "Seven.")]
    finding = findings_of(rows)["duplicate_prompts"]
    assert finding.level == "note" and "10 distinct prompts in 11 pairs" in finding.text and finding.rows[0] == 3


def test_duplicate_pairs(findings_of):
    rows = [*good_rows(30), row("Say it.", "It.", "This.")]
    assert "duplicate_pairs" not in findings_of(rows)
    assert findings_of([*rows, rows[0]])["duplicate_pairs"].rows == (31,)
    assert findings_of([*rows * 4, *good_rows(30)])["duplicate_pairs"].level == "warning"
    assert findings_of([*good_rows(200), rows[0]])["duplicate_pairs"].level == "note"
    assert "deduplicate: exact" in findings_of([*rows, rows[0]])["duplicate_pairs"].todo


def test_contradictions(findings_of):
    rows = [*good_rows(10), row("Say it.", "It.", "This."), row("Say it.", "This.", "That.")]
    assert "contradictions" not in findings_of(rows)
    finding = findings_of([*rows, row("Say it.", "This.", "It.")])["contradictions"]
    assert (finding.level, finding.rows) == ("warning", (10, 12))


def test_answers_alike(findings_of):
    rows = [*good_rows(10), row("Say it.", "It is  so.", "it is so.")]
    found = findings_of(rows)
    assert found["answers_alike"].rows == (10,) and "contradictions" not in found
    assert "answers_alike" not in findings_of(good_rows(10))


@pytest.mark.parametrize(
    ("lengths", "level"),
    [
        ([(30, 3)] * 40, "warning"),
        ([(3, 30)] * 40, "warning"),
        ([(30, 3), (3, 30)] * 20, "note"),
        ([(30, 3)] * 3, "note"),
    ],
)
def test_length_bias(findings_of, lengths, level):
    rows = [row(f"Count {n}.", "one " * chosen, "two " * rejected) for n, (chosen, rejected) in enumerate(lengths)]
    finding = findings_of(rows)["length_bias"]
    assert finding.level == level and bool(finding.todo) == (level == "warning")
    assert ("chosen answer is longer" in finding.text) == (lengths[0][0] > lengths[0][1])


def test_no_bias_among_equals(findings_of):
    assert "length_bias" not in findings_of(id_rows(5))


def test_leakage(findings_of):
    rows = good_rows(10)
    assert "leakage" not in findings_of(rows, evaluation=[row("Another one?", "Yes.", "No.")])
    finding = findings_of(rows, evaluation=[row("Another one?", "Yes.", "No."), row("WHAT is 3 plus 3?", "6.", "7.")])[
        "leakage"
    ]
    assert (finding.level, finding.dataset, finding.rows, finding.of) == ("warning", "eval", (1,), 2)


def test_eval_overlap(findings_of):
    asked = "Natalia sold clips to 48 of her friends in April, and then she sold half as many"
    rows = [*good_rows(10), row(f"Solve: {asked.upper()}", "72.", "No idea.")]
    clean, hit = OverlapSearch("clean", ["A question that nobody has asked in any of the rows so far, ever"]), None
    finding = findings_of(rows, searches=[clean])["eval_overlap"]
    assert finding.level == "note" and "none of 1 prompts" in finding.text
    hit = OverlapSearch("gsm8k", [asked])
    finding = findings_of(rows, searches=[hit])["eval_overlap"]
    assert (finding.level, finding.count, finding.rows) == ("warning", 1, (10,))
    assert finding.detail == (
        "prompt 0 in the prompt of row 10: natalia sold clips to 48 of her friends in april and then she",
    )


def test_template_differs(findings_of, make_tokenizer, tiny_tokenizer):
    rows, own = good_rows(5), tiny_tokenizer.chat_template
    assert "template_differs" not in findings_of(rows)
    finding = findings_of(rows, make_tokenizer(CHATML), own=own)["template_differs"]
    assert finding.level == "warning"
    assert any(line.startswith("-<|begin_of_text|>") for line in finding.detail)
    assert any(line.startswith("+<|im_start|>system") for line in finding.detail)
    assert findings_of(rows, make_tokenizer(CHATML), own=None)["template_differs"].level == "note"
    alike = findings_of(rows, make_tokenizer(own.replace("{% set", "{%- set")), own=own)["template_differs"]
    assert alike.level == "note" and "renders the same" in alike.text


def test_a_template_that_differs_in_what_it_adds_or_refuses(findings_of, make_tokenizer):
    rows, system = good_rows(5), make_tokenizer(CHATML_DEFAULT_SYSTEM)
    finding = findings_of(rows, system, own=CHATML)["template_differs"]
    assert finding.level == "warning" and "+<|im_start|>system" in finding.detail[2:]
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    finding = findings_of(rows, make_tokenizer(refusing), own=CHATML)["template_differs"]
    assert finding.level == "warning" and "+(refuses a system turn)" in finding.detail
    again = make_tokenizer(refusing.replace("no system", "never"))
    assert findings_of(rows, again, own=refusing)["template_differs"].level == "note"


def test_template_markers(findings_of, make_tokenizer, tiny_tokenizer):
    own = tiny_tokenizer.chat_template
    assert "template_markers" not in findings_of(good_rows(5), make_tokenizer(CHATML), own=own)
    foreign = CHATML.replace("im_start", "turn_start")
    finding = findings_of(good_rows(5), make_tokenizer(foreign), own=own)["template_markers"]
    assert finding.level == "warning" and "<|turn_start|>" in finding.text and "<|im_end|>" not in finding.text


def test_rows_of_a_sample_are_those_of_the_source(make_audit):
    rows = good_rows(40)
    for at in range(0, 40, 4):
        rows[at] = row("Say it.", "", "It.")
    audit = make_audit(rows, limit=20)
    assert audit.report.total == 20 and audit.report.examples["empty response"] == [0, 4, 8, 12, 16]
    assert audit.tokens.row.tolist() == list(range(2, 40, 4))


def test_levels_by_share():
    for name, limit in LIMITS.items():
        assert limit.why, name
        shares = [share for share in (limit.warning, limit.error) if share is not None]
        assert shares == sorted(shares) and shares
    assert LIMITS["end_missing"].level(0.049) == "note" and LIMITS["end_missing"].level(0.05) == "warning"
    assert LIMITS["end_missing"].level(0.5) == "error"
    assert [show_share(share) for share in (0.5, 0.0501, 0.00012)] == ["50 %", "5 %", "0.012 %"]


def test_counted():
    mask, rows = np.array([False, True, True]), np.array([10, 20, 30])
    assert counted("leakage", "eval", ~mask & mask, rows, "{pairs}", "") == []
    (finding,) = counted("leakage", "eval", mask, rows, "{pairs} are bad", "mend them")
    assert finding == Finding("warning", "leakage", "eval", "2 of 3 pairs (67 %) are bad", "mend them", 2, 3, (20, 30))


def test_the_documentation_lists_every_check_with_its_limits():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    lines = re.findall(r"^\| `(\w+)` (\|.+)\|$", text.split("simpo inspect`")[1], re.MULTILINE)
    table = {name: [cell.strip() for cell in re.split(r"(?<!\\)\|", cells)[1:]] for name, cells in lines}
    assert set(table) == CHECKS and len(lines) == len(CHECKS)
    for name, (warning, error, found, todo) in table.items():
        assert warning and error and found and todo, name
        if name in LIMITS:
            for shown, share in zip((warning, error), LIMITS[name][:2], strict=True):
                expected = "-" if share is None else "any" if share == 0 else show_share(share)
                assert shown.removesuffix(" of rows") == expected, name


def test_every_check_has_a_test():
    assert {f"test_{check}" for check in CHECKS} <= set(globals())


def test_a_check_without_documentation_cannot_be_made():
    with pytest.raises(ValueError, match="invented is missing from CHECKS"):
        Finding("note", "invented", "train", "what")


def test_a_set_of_token_ids_has_all_facts(make_audit):
    audit = make_audit(Dataset.from_list(id_rows(3)))
    assert audit.report is None and audit.tokens.row.tolist() == [0, 1, 2]
    assert audit.statistics.prompt.mean == 3 and len(set(audit.texts.prompt.tolist())) == 3
