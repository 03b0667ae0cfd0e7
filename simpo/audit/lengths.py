"""How long pairs are before anything is cut."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from simpo.audit.checks import SetAudit
from simpo.audit.facts import TokenFacts
from simpo.config import PreferenceConfig
from simpo.data.schema import EMPTY_RESPONSE, EQUAL_AFTER_CUT, TOKEN_COLUMNS, TOO_LONG
from simpo.data.tokenize import tokenized
from simpo.data.truncate import TEXT_AFTER_END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNBOUNDED = 2**31 - 1
_LEFT_OUT = {TOO_LONG, EQUAL_AFTER_CUT, EMPTY_RESPONSE}  # what a bound can make of pairs


def uncut_lengths(
    sample: Dataset, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig, audit: SetAudit
) -> np.ndarray:
    """Tokens of prompt and longer response of each pair [N]: what max_length bounds.

    Args:
        sample: the rows that `audit` is of. They are tokenised once more, without a bound, where some were too long.
        args: how they are tokenised.
    """
    facts, report = audit.tokens, audit.report
    if report is not None and (report.truncated.keys() - {TEXT_AFTER_END} or report.dropped.keys() & _LEFT_OUT):
        unbounded = copy.copy(args)
        unbounded.max_length, unbounded.truncation = _UNBOUNDED, "cut"
        pairs, _ = tokenized(sample, tokenizer, unbounded, "train, uncut")
        return _of_pairs(pairs)
    return _of_facts(facts)


def _of_facts(facts: TokenFacts) -> np.ndarray:
    return facts.prompt + np.maximum(facts.chosen, facts.rejected)


def _of_pairs(pairs: Dataset) -> np.ndarray:
    prompt, chosen, rejected = (np.fromiter(map(len, pairs[side]), dtype=np.int64) for side in TOKEN_COLUMNS)
    return prompt + np.maximum(chosen, rejected)
