"""Tokenizers of the data tests, and rows that become audited sets."""

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset

from simpo.audit.findings import Finding
from simpo.audit.frame import compare_templates
from tests.data.conftest import assistant, make_tokenizer, metaspace_tokenizer, own_cache, user

__all__ = ["make_tokenizer", "metaspace_tokenizer", "own_cache"]


def row(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    """A row of messages."""
    return {"prompt": [user(prompt)], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}


def good_rows(count: int) -> list[dict[str, Any]]:
    """Rows without a fault: either answer may be the longer one, no prompt twice."""
    sides = (("It is {}.", "Is it {}? No, it is more."), ("It is {}, so much is sure.", "Is it {}?"))
    answers = [[side.format(2 * n + at) for at, side in enumerate(sides[n % 2])] for n in range(count)]
    return [row(f"What is {n} plus {n}?", *sides) for n, sides in enumerate(answers)]


@pytest.fixture
def make_audit(make_args: Any, tiny_tokenizer: Any) -> Callable[..., Any]:
    """make_audit(rows, tokenizer=the tiny one, name="train", searches=[], limit=None, **settings) -> SetAudit."""
    from simpo.audit.inspect import audit_set

    def make(
        rows: Any, tokenizer: Any = None, *, name: str = "train", searches: Any = (), limit: Any = None, **settings: Any
    ) -> Any:
        data = Dataset.from_list(rows) if isinstance(rows, list) else rows
        args = make_args(**settings)
        return audit_set(name, data, tokenizer or tiny_tokenizer, args, limit, list(searches)).audit

    return make


@pytest.fixture
def findings_of(make_audit: Any, tiny_tokenizer: Any) -> Callable[..., dict[str, Finding]]:
    """findings_of(rows, tokenizer, own=its template, **settings) -> check -> its gravest finding."""
    from simpo.audit.checks import all_findings

    def find(rows: Any, tokenizer: Any = None, *, evaluation: Any = None, own: Any = "same", **given: Any) -> Any:
        tokenizer = tokenizer or tiny_tokenizer
        audits = [make_audit(rows, tokenizer, **given)]
        if evaluation is not None:
            audits.append(make_audit(evaluation, tokenizer, name="eval", **given))
        template = compare_templates(tokenizer, tokenizer.chat_template if own == "same" else own)
        return {finding.check: finding for finding in reversed(all_findings(audits, template))}

    return find
