"""`simpo inspect`, and the same checks on a sample before a run trains."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from datasets import Dataset

from simpo.audit.checks import SetAudit, all_findings
from simpo.audit.facts import TokenFacts, token_facts
from simpo.audit.findings import Finding
from simpo.audit.frame import TemplateComparison, compare_templates, find_frame
from simpo.audit.lengths import uncut_lengths
from simpo.audit.overlap import OverlapSearch, searches
from simpo.audit.page import render_page
from simpo.audit.result import Inspection, as_json
from simpo.audit.show import open_console, show
from simpo.audit.statistics import set_statistics
from simpo.audit.texts import read_texts, text_facts
from simpo.audit.tokens import ShownPair, shown_pairs
from simpo.config import PreferenceConfig
from simpo.data.chat import resolve_chat_template
from simpo.data.load import LoadReport, load_mix
from simpo.data.schema import Pair, normalise
from simpo.data.tokenize import TokenizeOptions, is_tokenized, tokenized
from simpo.errors import ConfigError, DataError
from simpo.model import load_tokenizer
from simpo.settings import RunSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_ROWS = 1000
"""Rows of each set that are looked at before a run: a share of 1 % is seen with near certainty."""


@dataclass(frozen=True)
class InspectOptions:
    """What `simpo inspect` is asked for beside the settings.

    Args:
        html, json: files to write.
        strict: whether warnings count as errors.
        pairs: how many pairs of the training set are shown as tokens.
        rows: rows to show in place of these.
        sample: at most so many rows of each set; None for all.
        eval_prompts: name of an evaluation set -> file with its prompts.
    """

    html: Path | None = None
    json: Path | None = None
    strict: bool = False
    pairs: int = 3
    rows: tuple[int, ...] = ()
    sample: int | None = None
    eval_prompts: Mapping[str, str] = field(default_factory=dict)


class SampleCheck(NamedTuple):
    """What the checks before a run say, and the lengths of the sampled training pairs [N]."""

    findings: Sequence[Finding] = ()
    lengths: np.ndarray | None = None

    @property
    def warnings(self) -> list[str]:
        """Lines for people."""
        found = (finding for finding in self.findings if finding.level == "warning")
        return [f"! {finding.where}: {finding.text}: {finding.todo}" for finding in found]


@dataclass(frozen=True)
class Audited:
    """A set with its token ids."""

    audit: SetAudit
    pairs: Dataset


def run_inspection(settings: RunSettings, options: InspectOptions) -> None:
    """Tokenise as training would, show what it would see, and check it.

    Raises:
        SimPOError: settings or data cannot be read; or DataError: a check found an error.
    """
    for path in (options.html, options.json):
        if path is not None:
            _check_writable(path)
    inspection = inspect_run(settings, options)
    show(inspection, open_console())
    if options.html is not None:
        options.html.write_text(render_page(inspection), encoding="utf-8")
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(inspection), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    stop_on(inspection.findings, strict=options.strict)


def _check_writable(path: Path) -> None:
    """Before the long part, and without touching a report that is there."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{path}: there is no folder {folder}; make it, or write elsewhere")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        why = "is a folder" if path.is_dir() else "cannot be written"
        raise ConfigError(f"{path}: {why}; name a file that can be written, e.g. report{path.suffix or '.html'}")


def inspect_run(settings: RunSettings, options: InspectOptions) -> Inspection:
    """Read, tokenise and check the data of a run; nothing is printed or written."""
    looking = list(searches(dict(options.eval_prompts)))  # a file that cannot be read is an error before the long part
    model, args = settings.model, settings.training
    name = str(model.model_name_or_path)
    tokenizer = load_tokenizer(name, revision=model.model_revision, trust_remote_code=model.trust_remote_code)
    own = tokenizer.chat_template
    template = resolve_chat_template(settings.data.chat_template, tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    train, evaluation, mix = load_mix(settings.data, seed=args.seed, num_proc=args.dataset_num_proc)
    audited = [audit_set("train", train, tokenizer, args, options.sample, looking, mix.numbers)]
    if evaluation is not None:
        audited.append(audit_set("eval", evaluation, tokenizer, args, options.sample))
    comparison = compare_templates(tokenizer, own)
    there = {"train": len(train), "eval": len(evaluation or ())}
    return Inspection(
        about=_about(settings, comparison, audited, there, mix),
        sets=tuple(one.audit for one in audited),
        findings=tuple(
            _with_origins(finding, mix) for finding in all_findings([one.audit for one in audited], comparison)
        ),
        samples={"train": _samples(audited[0], tokenizer, options)},
    )


def _with_origins(finding: Finding, mix: LoadReport) -> Finding:
    """Where the rows of the training set come from, unless their numbers say it."""
    if finding.dataset != "train" or (len(mix.taken) == 1 and not mix.lines()):
        return finding
    return replace(finding, origins=tuple(map(mix.origin, finding.rows)))


def check_sample(
    train: Dataset,
    evaluation: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    own_template: Any,
    args: PreferenceConfig,
    numbers: np.ndarray | None = None,
) -> SampleCheck:
    """The checks on a sample of each set, before weights are read; `problems_of` says whether they stop a run.

    Args:
        train, evaluation: raw rows, or token ids.
        tokenizer: with the template in use.
        own_template: the model's own.
        args: how rows are tokenised.
        numbers: of the training rows, where some are repeated on purpose.
    """
    audits = [audit_set("train", train, tokenizer, args, SAMPLE_ROWS, numbers=numbers).audit]
    if evaluation is not None:
        audits.append(audit_set("eval", evaluation, tokenizer, args, SAMPLE_ROWS).audit)
    findings = all_findings(audits, compare_templates(tokenizer, own_template))
    sample = train.select(sample_rows(train, SAMPLE_ROWS))
    return SampleCheck(findings, uncut_lengths(sample, tokenizer, args, audits[0]))


def sample_rows(data: Dataset, limit: int | None) -> range:
    """At most so many rows from all over a set: sources stand one after another."""
    if limit is None or limit >= len(data):
        return range(len(data))
    return range(0, len(data), len(data) // limit)[:limit]


def audit_set(
    name: str,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: PreferenceConfig,
    limit: int | None,
    searches: Sequence[OverlapSearch] = (),
    numbers: np.ndarray | None = None,
) -> Audited:
    """Tokenise one set as training would, and find out all about it.

    Args:
        name: train or eval.
        data: raw rows, or token ids.
        args: how rows are tokenised, and the padded batch to compare with.
        limit: at most so many rows, from all over; None for all.
        searches: for evaluation prompts.
        numbers: of the rows, [len(data)]: rows of one number are one row that is repeated on purpose.
    """
    rows = sample_rows(data, limit)
    sample = data if len(rows) == len(data) else data.select(rows)
    pairs, report = tokenized(sample, tokenizer, args, name)
    if report is not None:  # of a sample it tells rows by their place in it
        report.examples = {cause: [rows[row] for row in found] for cause, found in report.examples.items()}
    options = TokenizeOptions(args.tokenization, add_empty_system=args.add_empty_system)
    frame = find_frame(tokenizer, options, messages=_holds_messages(sample, tokenizer))
    facts = token_facts(pairs, frame)
    texts = text_facts(read_texts(sample, facts.row, tokenizer), frame.opening, searches)
    row = np.asarray(rows)[facts.row]
    repeated = np.ones(len(row), dtype=bool)
    repeated[np.unique(row if numbers is None else numbers[row], return_index=True)[1]] = False
    audit = SetAudit(
        name=name,
        report=report,
        frame=frame,
        tokens=facts._replace(row=row),
        texts=texts,
        statistics=set_statistics(facts, args.per_device_train_batch_size, args.seed),
        repeated=repeated,
        overlaps=tuple(search.result() for search in searches),
    )
    return Audited(audit, pairs)


def _holds_messages(data: Dataset, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the first pair is made of messages; data of token ids are taken for such where there is a template."""
    if is_tokenized(data):
        return tokenizer.chat_template is not None
    pairs = (normalise(row, unpaired=True) for row in data)
    first = next((pair for pair in pairs if isinstance(pair, Pair)), None)
    return first is not None and not first.is_text


def _samples(one: Audited, tokenizer: PreTrainedTokenizerBase, options: InspectOptions) -> list[ShownPair]:
    facts = one.audit.tokens
    return shown_pairs(one.pairs, facts.row, _positions(facts, options), tokenizer, one.audit.frame.special)


def _positions(facts: TokenFacts, options: InspectOptions) -> list[int]:
    """Which pairs are shown: those of the rows asked for, or some from all over."""
    if not options.rows:
        count = min(options.pairs, len(facts.row))
        return [at * len(facts.row) // count for at in range(count)]
    at = {row: position for position, row in enumerate(facts.row.tolist())}
    missing = [row for row in options.rows if row not in at]
    if missing:
        raise ConfigError(
            f"--rows: row {missing[0]} of the training set is no pair that was looked at; rows count from 0, and those "
            "that are dropped or outside a --sample have no tokens"
        )
    return [at[row] for row in options.rows]


def _about(
    settings: RunSettings,
    comparison: TemplateComparison,
    audited: list[Audited],
    there: dict[str, int],
    mix: LoadReport,
) -> dict[str, str]:
    args, data = settings.training, settings.data
    mixers: dict[str, Any] = {"train": data.dataset_mixer, "eval": data.eval_dataset_mixer}
    about = {"model": str(settings.model.model_name_or_path)}
    for one in audited:
        name = one.audit.name
        source = ", ".join(mixers[name]) if mixers[name] else "from the training sources"
        looked = one.audit.report.total if one.audit.report else len(one.pairs)
        sample = "" if looked == there[name] else f"a sample of {looked:,} of "
        about[name] = f"{sample}{there[name]:,} rows: {source}"
    if mix.lines():
        about["sources"] = "\n".join(line.strip().removeprefix("sources: ") for line in mix.lines())
    states = {"same": "the model's own", "none": "none"}
    about["template"] = states.get(comparison.state) or f"chat_template ({_short(str(data.chat_template))})"
    about["tokens"] = f"{args.tokenization}, max_length {args.max_length}, max_prompt_length {args.max_prompt_length}"
    return about


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def stop_on(findings: Iterable[Finding], *, strict: bool) -> None:
    """Raise where a run must not go on.

    Raises:
        DataError: there are errors, or with strict, warnings.
    """
    text = problems_of(findings, strict=strict)
    if text:
        raise DataError(text)


def problems_of(findings: Iterable[Finding], *, strict: bool) -> str:
    """What stops a run, the first with its text and the others by name; "" where nothing does.

    Args:
        findings: of the checks.
        strict: whether warnings count as errors.
    """
    grave = [finding for finding in findings if finding.level == "error" or (strict and finding.level == "warning")]
    if not grave:
        return ""
    first = grave[0]
    more = (
        f"; {len(grave) - 1} more: {', '.join(dict.fromkeys(other.where for other in grave[1:]))}" if grave[1:] else ""
    )
    counted = " (--strict counts warnings as errors)" if first.level == "warning" else ""
    return f"{first.where}: {first.text}: {first.todo}{more}{counted}"
