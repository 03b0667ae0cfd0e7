"""The guard rails of a run: `simpo.settings.lint` with what is known once its data are read."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PretrainedConfig

from simpo.flops import linear_parameters
from simpo.settings import Advice, RunFacts, RunSettings, lint, recommended, stop_on_warnings


def guard_rails(
    settings: RunSettings,
    config: PretrainedConfig,
    train: Dataset,
    evaluation: Dataset | None,
    lengths: np.ndarray | None,
    *,
    strict: bool,
) -> list[Advice]:
    """What is known to go wrong with a run like this, before weights are read.

    Args:
        settings: of the run.
        config: of its model.
        train, evaluation: rows.
        lengths: tokens of prompt and longer response of a sample [N], before anything is cut; None: not looked at.
        strict: whether warnings stop the run.

    Raises:
        ConfigError: with strict, there are warnings.
    """
    text = config.get_text_config()
    facts = RunFacts(
        parameters=about_parameters(text),
        model_type=str(config.model_type),
        context=getattr(text, "max_position_embeddings", None),
        train_pairs=len(train),
        eval_pairs=0 if evaluation is None else len(evaluation),
        lengths=lengths,
    )
    advice = lint(settings.training, settings.model, settings.data, facts)
    if strict:
        stop_on_warnings(advice)
    return advice


def told_before(settings: RunSettings, advice: Sequence[Advice], data_warnings: Sequence[str]) -> dict[str, Any]:
    """What a run was told before it started, for its manifest: recommended values, advice, and warnings of its data."""
    return {
        "recommended": recommended(settings),
        "advice": [asdict(one) for one in advice],
        "data_warnings": [warning.removeprefix("! ") for warning in data_warnings],
    }


def about_parameters(config: Any) -> int | None:
    """Parameters of linear maps and embeddings; None for models of a shape that is not counted, as with experts."""
    try:
        tables = 1 if config.tie_word_embeddings else 2
        return linear_parameters(config) + tables * config.vocab_size * config.hidden_size
    except (ValueError, AttributeError):
        return None
