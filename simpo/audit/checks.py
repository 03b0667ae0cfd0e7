"""Checks of tokenised pairs: pure functions from facts to findings. docs/data.md lists them with what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from simpo.audit.facts import TokenFacts
from simpo.audit.findings import LEVELS, LIMITS, Finding, Level, counted, show_share
from simpo.audit.frame import Frame, TemplateComparison
from simpo.audit.overlap import Overlap
from simpo.audit.statistics import SetStatistics
from simpo.audit.texts import TextFacts
from simpo.data.schema import DROP_CAUSES, TOO_LONG
from simpo.data.tokenize import TokenizeReport
from simpo.data.truncate import TRUNCATION_CAUSES

# Length alone would then be right in two pairs of three, as good as a weak judge; below that, good answers
# to real questions simply tend to be longer.
BIASED_SHARE = 2 / 3
# A response of fewer tokens that was cut is the beginning of an answer, about a sentence.
SHORT = 32
_SHOWN = 160  # characters of a header that are shown
# Standard errors that a share must differ from one half by: small sets are lopsided by chance.
_SIGMAS = 3


@dataclass(frozen=True)
class SetAudit:
    """All that is known about one set.

    Args:
        name: train or eval.
        report: what became of its rows; None for data of token ids.
        frame: what stands around its answers.
        tokens, texts: facts about each pair [N].
        statistics: numbers about the set.
        repeated: [N] whether the pair's row stands in the set before, as `dataset_weights` asks for.
        overlaps: evaluation sets that were looked for.
    """

    name: str
    report: TokenizeReport | None
    frame: Frame
    tokens: TokenFacts
    texts: TextFacts
    statistics: SetStatistics
    repeated: np.ndarray
    overlaps: tuple[Overlap, ...] = ()


def all_findings(sets: Iterable[SetAudit], template: TemplateComparison) -> list[Finding]:
    """Every finding about sets and template, the gravest first."""
    sets = list(sets)
    found = check_template(template)
    for audit in sets:
        for check in SET_CHECKS:
            found += check(audit)
    by_name = {audit.name: audit for audit in sets}
    if {"train", "eval"} <= set(by_name):
        found += check_leakage(by_name["train"], by_name["eval"])
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def check_rows(audit: SetAudit) -> list[Finding]:
    """dropped, truncated: what the tokenisation left out or cut, one finding a cause.

    Rows that `truncation: drop` leaves out were to be left out: they are a note, and do not make others worse.
    """
    report = audit.report
    if report is None:
        return []
    faulty = report.total - report.kept - report.dropped.get(TOO_LONG, 0)
    dropped = LIMITS["dropped"].level(faulty / report.total)
    kinds: list[tuple[str, dict[str, int], dict[str, str], int, str]] = [
        ("dropped", report.dropped, DROP_CAUSES, report.total, "rows are left out"),
        ("truncated", report.truncated, TRUNCATION_CAUSES, report.kept, "pairs"),
    ]
    found = []
    for check, causes, advice, total, what in kinds:
        for cause, count in sorted(causes.items(), key=lambda item: -item[1]):
            share = count / total
            level = dropped if check == "dropped" else LIMITS[check].level(share)
            level = "note" if cause == TOO_LONG else level
            text = f"{count:,} of {total:,} {what} ({show_share(share)}): {cause}"
            rows = tuple(report.examples.get(cause, []))
            todo = advice.get(cause.split(":")[0], "")
            found.append(Finding(level, check, audit.name, text, todo, count, total, rows))
    return found


def check_vocabulary(audit: SetAudit) -> list[Finding]:
    """vocabulary, unknown_tokens: ids that this tokenizer does not have, and its token for what it cannot say."""
    facts = audit.tokens
    return [
        *counted(
            "vocabulary", audit.name, facts.outside > 0, facts.row,
            f"{{pairs}} hold ids that the vocabulary of {len(audit.frame.special):,} tokens does not have",
            "tokenise the data with this model's tokenizer, or name the model that they were tokenised for",
        ),
        *counted(
            "unknown_tokens", audit.name, facts.unknown > 0, facts.row,
            "{pairs} hold text that the vocabulary cannot say: it becomes the unknown token",
            "remove these rows, or choose a model whose tokenizer knows their script",
        ),
    ]  # fmt: skip


def check_bos(audit: SetAudit) -> list[Finding]:
    """bos_double, bos_missing, bos_inside: a prompt has one BOS, at its start, or none where inference has none."""
    facts, name = audit.tokens, audit.name
    missing = (facts.leading_bos == 0) & audit.frame.starts_with_bos
    return [
        *counted(
            "bos_double", name, facts.leading_bos > 1, facts.row, "{pairs} begin with two BOS tokens",
            "write BOS once: the template or the tokenizer adds it, so leave it out of the data's texts or ids",
        ),
        *counted(
            "bos_missing", name, missing, facts.row, "{pairs} begin without BOS, which inference will write",
            "raise max_length if truncation took it (tokenization: paper cuts it off); add it to data of token ids",
        ),
        *counted(
            "bos_inside", name, facts.later_bos > 0, facts.row, "{pairs} hold a BOS token after their start",
            "remove special tokens from the texts of these rows",
        ),
    ]  # fmt: skip


def check_ends(audit: SetAudit) -> list[Finding]:
    """end_missing, cut_short: responses that do not end with an end token, and of these such as say hardly anything."""
    facts = audit.tokens
    short = (~facts.chosen_ended & (facts.chosen < SHORT)) | (~facts.rejected_ended & (facts.rejected < SHORT))
    parts = [
        f"{side} {int(np.count_nonzero(~ended)):,}"
        for side, ended in (("chosen", facts.chosen_ended), ("rejected", facts.rejected_ended))
    ]
    return [
        *counted(
            "end_missing", audit.name, ~(facts.chosen_ended & facts.rejected_ended), facts.row,
            f"{{pairs}} have a response without an end token ({', '.join(parts)})",
            "raise max_length where truncation took it; end every response of data of token ids with an end token",
        ),
        *counted(
            "cut_short", audit.name, short, facts.row,
            f"{{pairs}} have a response of fewer than {SHORT} tokens without an end: only the beginning of an answer",
            "raise max_length, or lower max_prompt_length: what lies between them is left to a response",
        ),
    ]  # fmt: skip


def check_specials(audit: SetAudit) -> list[Finding]:
    """special_inside, turn_markers: what belongs between turns stands inside an answer and is scored."""
    facts, texts = audit.tokens, audit.texts
    marked = np.zeros(len(facts.row), dtype=bool)
    for pairs in texts.markers.values():
        marked[pairs] = True
    names = ", ".join(f"{marker.strip()} {len(pairs):,}" for marker, pairs in sorted(texts.markers.items()))
    return [
        *counted(
            "special_inside", audit.name, (facts.chosen_special + facts.rejected_special) > 0, facts.row,
            "{pairs} have special tokens inside the scored part of a response, such as a header or another turn",
            "remove special tokens from the answers; data of token ids: end the prompt after the assistant's header",
        ),
        *counted(
            "turn_markers", audit.name, marked, facts.row,
            "{pairs} have text in an answer that marks a turn in a chat format: " + _escaped(names),
            "cut these answers where the next turn begins, or remove the rows",
        ),
    ]  # fmt: skip


def check_header(audit: SetAudit) -> list[Finding]:
    """scored_header: what the template writes before an answer is scored with it.

    Where rows are tokenised, that is so for all of them or none, by `tokenization`; data of token ids are searched.
    """
    frame, facts = audit.frame, audit.tokens
    if audit.report is None:
        return counted(
            "scored_header", audit.name, facts.openings > 0, facts.row,
            "{pairs} have the header that the template writes before an answer inside a scored response",
            "end the prompt after the assistant's header; set tokenization: paper where these are the ids of the "
            "published implementation",
        )  # fmt: skip
    if not frame.header_text.strip():
        return []
    said = frame.header_text if len(frame.header_text) <= _SHOWN else frame.header_text[:_SHOWN] + "..."
    head = f"every response begins with {frame.header} tokens of the template, which are scored too: {said!r}"
    if frame.header_text.strip() in frame.opening:
        todo = "leave it so to match the published implementation; for any other run set tokenization: standard"
        return [Finding("note", "scored_header", audit.name, head, todo)]
    todo = "set tokenization: standard, or a chat_template without a default system turn (chatml is one)"
    return [Finding(LIMITS["scored_header"].level(1), "scored_header", audit.name, head, todo)]


def check_repeats(audit: SetAudit) -> list[Finding]:
    """duplicate_prompts, duplicate_pairs, contradictions, answers_alike: what stands more than once."""
    once = ~audit.repeated
    texts, row, name = audit.texts.of(once), audit.tokens.row[once], audit.name
    _, first, sizes = np.unique(texts.prompt, return_index=True, return_counts=True)
    again = np.ones(len(row), dtype=bool)
    again[np.unique(texts.pair, return_index=True)[1]] = False
    found = counted(
        "duplicate_pairs", name, again, row, "{pairs} repeat an earlier pair, prompt and both answers",
        "set deduplicate: exact, or near for copies that differ in case; dataset_weights is how rows weigh more",
    )  # fmt: skip
    found += counted(
        "contradictions", name, np.isin(texts.pair, texts.swapped) & ~texts.alike, row,
        "{pairs} have a twin that prefers the other of the same two answers", "keep one of the two, or neither",
    )  # fmt: skip
    found += counted(
        "answers_alike", name, texts.alike, row, "{pairs} have answers that differ in case or white space only",
        "remove these rows, unless form is what is to be learnt",
    )  # fmt: skip
    if len(sizes) < len(row):
        text = (
            f"{len(sizes):,} distinct prompts in {len(row):,} pairs; {int((sizes > 1).sum()):,} prompts have several "
            f"pairs, at most {sizes.max():,}"
        )
        todo = "nothing, if each has several answers; hold out prompts, not pairs, for evaluation (test_size does)"
        most = [int(row[first[at]]) for at in np.lexsort((first, -sizes))[:5] if sizes[at] > 1]
        found.append(
            Finding("note", "duplicate_prompts", name, text, todo, len(row) - len(sizes), len(row), tuple(most))
        )
    return found


def check_length_bias(audit: SetAudit) -> list[Finding]:
    """length_bias: how far the preference could be told from length alone."""
    bias, pairs = audit.statistics.bias, audit.statistics.pairs
    unequal = round((1 - bias.equal) * pairs)
    if not unequal:
        return []
    share = max(bias.chosen_longer, bias.rejected_longer) / (1 - bias.equal)
    side = "chosen" if bias.chosen_longer >= bias.rejected_longer else "rejected"
    lopsided = share >= BIASED_SHARE and share - 0.5 > _SIGMAS * 0.5 / unequal**0.5
    level: Level = "warning" if lopsided else "note"
    text = (
        f"the {side} answer is longer in {show_share(share)} of pairs of unequal length; chosen minus rejected is "
        f"{bias.mean_difference:+.1f} tokens on average (correlation of length and preference {bias.correlation:+.2f})"
    )
    todo = (
        "SimPO compares means over tokens, which takes length out of the reward, not out of the data: add or keep "
        "pairs of similar length, and compare lengths of answers after training"
    )
    return [Finding(level, "length_bias", audit.name, text, todo if lopsided else "", round(share * unequal), unequal)]


def check_overlap(audit: SetAudit) -> list[Finding]:
    """eval_overlap: prompts of evaluation sets that stand in the pairs."""
    return [_overlap_finding(audit, overlap) for overlap in audit.overlaps]


def _overlap_finding(audit: SetAudit, overlap: Overlap) -> Finding:
    hits, row, what = len(overlap.found), audit.tokens.row, f"{overlap.words} words in a row"
    if not hits:
        text = f"{overlap.name}: none of {overlap.prompts:,} prompts shares {what} with a pair"
        return Finding("note", "eval_overlap", audit.name, text, count=0, of=overlap.prompts)
    share = hits / overlap.prompts
    return Finding(
        level=LIMITS["eval_overlap"].level(share),
        check="eval_overlap",
        dataset=audit.name,
        text=f"{overlap.name}: {hits:,} of {overlap.prompts:,} prompts ({show_share(share)}) share {what} with "
        f"{len(overlap.pairs):,} pairs, or are their prompt",
        todo="remove these rows, or say so beside the results",
        count=hits,
        of=overlap.prompts,
        rows=tuple(row[overlap.pairs[:5]].tolist()),
        detail=tuple(
            f"prompt {at} in the {where} of row {row[pair]}: {words}" for at, pair, where, words in overlap.examples
        ),
    )


def check_leakage(train: SetAudit, evaluation: SetAudit) -> list[Finding]:
    """leakage: evaluation pairs whose prompt is also a training prompt."""
    return counted(
        "leakage", evaluation.name, np.isin(evaluation.texts.prompt, train.texts.prompt), evaluation.tokens.row,
        "{pairs} have a prompt that is also trained on", "remove them on one side, or split by prompt with test_size",
    )  # fmt: skip


def check_template(template: TemplateComparison) -> list[Finding]:
    """template_differs, template_markers: the template in use against what the model knows."""
    found = []
    if template.state == "different":
        text = "chat_template renders another text than the model's own template"
        todo = "use the model's own for a model that follows instructions; the one in use is saved with the result"
        found.append(Finding("warning", "template_differs", "", text, todo, detail=tuple(template.difference)))
    elif template.state in ("added", "alike"):
        texts = {
            "added": "the model has no chat template of its own; the one in use is saved with the result",
            "alike": "chat_template is written differently from the model's own and renders the same",
        }
        found.append(Finding("note", "template_differs", "", texts[template.state]))
    if template.split_markers:
        names = ", ".join(f"{marker} ({count} tokens)" for marker, count in template.split_markers.items())
        text = f"turn markers of chat_template are no tokens of this tokenizer: {names}"
        todo = "use a template in the model's own markers, or start from a model that knows these"
        found.append(Finding("warning", "template_markers", "", text, todo, len(template.split_markers)))
    return found


def _escaped(text: str) -> str:
    """For `str.format`: braces stay braces."""
    return text.replace("{", "{{").replace("}", "}}")


SET_CHECKS: tuple[Callable[[SetAudit], list[Finding]], ...] = (
    check_vocabulary,
    check_bos,
    check_ends,
    check_header,
    check_specials,
    check_rows,
    check_repeats,
    check_length_bias,
    check_overlap,
)


def by_level(findings: Iterable[Finding]) -> Counter[str]:
    """How many findings there are at each level."""
    return Counter(finding.level for finding in findings)
