"""Sources to one training and one evaluation set of raw rows: splits, fractions, mixing, holding out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from datasets import Dataset, DatasetDict, Features, Json, List, ReadInstruction, Value, concatenate_datasets

from simpo.data.schema import RAW_COLUMNS, TOKEN_COLUMNS, check_columns, normalise
from simpo.data.sources import open_source
from simpo.data.tokenize import is_tokenized
from simpo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

DEFAULT_SPLITS = ["train", "test"]
Purpose = Literal["train", "eval"]


class DataSettings(Protocol):
    """What `load_datasets` reads of the run's data settings (`simpo.config.DataConfig`)."""

    dataset_mixer: dict[str, float] | None
    dataset_splits: list[str] | None
    dataset_configs: list[str | None] | None
    eval_dataset_mixer: dict[str, float] | None
    dataset_name: str | None
    test_size: float
    max_train_samples: int | None
    max_eval_samples: int | None


class RawData(NamedTuple):
    """Rows for training and for evaluation; None where there are none."""

    train: Dataset | None
    evaluation: Dataset | None


def load_datasets(settings: DataSettings, seed: int = 42) -> tuple[Dataset, Dataset | None]:
    """Read, mix and split everything that a run's settings name.

    Args:
        settings: the run's data settings.
        seed: of every draw; the same seed gives the same rows in the same order.

    Returns:
        Training rows and evaluation rows or None, in the order of the sources. Rows are raw (`prompt`,
        `chosen`, `rejected`), or token ids where the sources hold them.

    Raises:
        ConfigError: settings contradict each other.
        DataError: a source, split or column is missing, or a file cannot be read.
    """
    mixer = settings.dataset_mixer or ({settings.dataset_name: 1.0} if settings.dataset_name else None)
    if not mixer:
        raise ConfigError("no training data: set dataset_mixer ({source: fraction}) or dataset_name")
    purposes: tuple[Purpose, ...] = ("train",) if settings.eval_dataset_mixer else ("train", "eval")
    # Steps draw their pairs from a seeded permutation anyway; in file order, a row's number can be found in its file.
    train, evaluation = load_raw(
        mixer,
        splits=settings.dataset_splits,
        configs=settings.dataset_configs,
        seed=seed,
        shuffle=settings.max_train_samples is not None,
        purposes=purposes,
    )
    if settings.eval_dataset_mixer:
        evaluation = load_raw(
            settings.eval_dataset_mixer, splits=settings.dataset_splits, seed=seed, purposes=("eval",)
        ).evaluation
    if train is None:
        raise DataError(f"no training rows: no split of dataset_splits {settings.dataset_splits} has train in its name")
    if settings.test_size:
        if evaluation is not None:
            raise ConfigError(
                f"test_size: {settings.test_size} and an evaluation source ({len(evaluation)} rows) are both given; "
                "set test_size: 0 to use the source, or dataset_splits: [train] to hold out training prompts"
            )
        train, evaluation = hold_out(train, settings.test_size, seed)
    train = _at_most(train, settings.max_train_samples)
    if evaluation is not None and settings.max_eval_samples and settings.max_eval_samples < len(evaluation):
        evaluation = _at_most(evaluation.shuffle(seed=seed), settings.max_eval_samples)
    return train, evaluation


def load_raw(
    mixer: Mapping[str, float],
    *,
    splits: Sequence[str] | None = None,
    configs: Sequence[str | None] | None = None,
    seed: int = 42,
    shuffle: bool = True,
    purposes: Sequence[Purpose] = ("train", "eval"),
) -> RawData:
    """Read and mix sources.

    Args:
        mixer: source -> fraction in (0, 1] of its rows; of a source with splits it cuts only those that train, unless
            `purposes` is only "eval".
        splits: splits to read; "train" in the name: for training; "test", "eval" or "validation": for evaluation. None
            or the default `[train, test]` takes the test split only from sources that have one.
        configs: one configuration name or None per source.
        seed: of the draw of a fraction and of the final shuffle of training rows.
        shuffle: shuffle the training rows; needed only where a part of the mix is taken.
        purposes: what is wanted. A source without splits is training data, unless only evaluation data are wanted.

    Raises:
        ConfigError: a fraction out of bounds, a wrong number of configs, or a split name that tells no purpose.
        DataError: a source, split or column is missing, or a file cannot be read.
    """
    names = list(configs) if configs else [None] * len(mixer)
    if len(names) != len(mixer):
        raise ConfigError(f"dataset_configs has {len(names)} entries for {len(mixer)} sources; write one per source")
    parts: dict[Purpose, list[tuple[str, Dataset]]] = {"train": [], "eval": []}
    for (source, fraction), config in zip(mixer.items(), names, strict=True):
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise ConfigError(f"{source}: fraction {fraction!r} must be above 0 and at most 1")
        for purpose, where, data in _parts_of(source, config, splits, purposes):
            cut = fraction < 1 and (purpose == "train" or "train" not in purposes)
            data = _keep_columns(data, where)
            if cut:
                data = data.shuffle(seed=seed).select(range(max(1, int(fraction * len(data)))))
            parts[purpose].append((where, data))
    train, evaluation = (_concatenate(parts[purpose]) for purpose in ("train", "eval"))
    return RawData(train.shuffle(seed=seed) if train is not None and shuffle else train, evaluation)


def _parts_of(
    source: str, config: str | None, splits: Sequence[str] | None, purposes: Sequence[Purpose]
) -> list[tuple[Purpose, str, Dataset]]:
    """The wanted splits of one source, each with its purpose and its name for messages."""
    data = open_source(source, config)
    if isinstance(data, Dataset):
        return [(purposes[0], source, data)]
    default = splits is None or list(splits) == DEFAULT_SPLITS
    parts: list[tuple[Purpose, str, Dataset]] = []
    for split in DEFAULT_SPLITS if splits is None else splits:
        purpose = _purpose(split)
        if purpose not in purposes:
            continue
        if default and split not in data and (purpose == "eval" and "train" in purposes):
            logger.info("%s has no split %s: it is not evaluated on", source, split)
            continue
        parts.append((purpose, f"{source} [{split}]", _take_split(data, split, source)))
    if not parts and list(purposes) == ["eval"]:
        raise DataError(
            f"{source}: dataset_splits {list(splits or [])} names no evaluation split; add one of {', '.join(data)}"
        )
    return parts


def _purpose(split: str) -> Purpose:
    name = re.split(r"[\[+]", split)[0].lower()
    if "train" in name:
        return "train"
    if any(word in name for word in ("test", "eval", "validation")):
        return "eval"
    raise ConfigError(
        f"dataset_splits: {split!r} does not tell whether it trains or evaluates; "
        "a split's name must contain train, or one of test, eval and validation"
    )


def _take_split(data: DatasetDict, split: str, source: str) -> Dataset:
    """A split by name, or a slice of it in the notation of `datasets` (train[:10%])."""
    if split in data:
        return data[split]
    try:
        slices = ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in data.items()})
        return concatenate_datasets([data[part.splitname].select(range(part.from_, part.to)) for part in slices])
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{source}: no split {split!r}; it has {', '.join(data)}: name these in dataset_splits"
        ) from error


def _keep_columns(data: Dataset, where: str) -> Dataset:
    if not len(data):
        raise DataError(f"{where}: holds no rows")
    if is_tokenized(data):
        return data.select_columns(list(TOKEN_COLUMNS))
    check_columns(data.features, where)
    return data.select_columns([column for column in RAW_COLUMNS if column in data.features])


def _concatenate(parts: list[tuple[str, Dataset]]) -> Dataset | None:
    """One data set of all parts; columns that differ in type are brought to JSON first, which holds either form."""
    if not parts:
        return None
    if len({is_tokenized(data) for _, data in parts}) > 1:
        raise DataError(
            f"token ids and raw rows cannot be mixed: {', '.join(where for where, _ in parts)}; use one of the two"
        )
    members = [data for _, data in parts]
    if any(data.features != members[0].features for data in members):
        if is_tokenized(members[0]):
            members = [data.cast(Features(dict.fromkeys(TOKEN_COLUMNS, List(Value("int64"))))) for data in members]
        else:
            members = [_as_json(data) for data in members]
    return members[0] if len(members) == 1 else concatenate_datasets(members)


def _as_json(data: Dataset) -> Dataset:
    return data.map(
        _all_columns,
        batched=True,
        remove_columns=data.column_names,
        features=Features(dict.fromkeys(RAW_COLUMNS, Json())),
        desc="Aligning columns",
    )


def _all_columns(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    size = len(batch["chosen"])
    return {column: batch[column] if column in batch else [None] * size for column in RAW_COLUMNS}


def hold_out(data: Dataset, test_size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split by prompt: no prompt is on both sides, however many pairs share it.

    Args:
        data: raw or tokenised rows.
        test_size: distinct prompts to hold out: a fraction below 1, or a count.
        seed: of the draw.

    Returns:
        The rows that train, and the rows held out.

    Raises:
        DataError: fewer than one prompt would be left on a side.
    """
    keys = data.map(
        _prompt_keys, batched=True, remove_columns=data.column_names, features=Features({"key": Value("string")})
    )["key"][:]
    prompts = list(dict.fromkeys(key for key in keys if key is not None))
    count = round(test_size * len(prompts)) if test_size < 1 else int(test_size)
    if not 0 < count < len(prompts):
        raise DataError(
            f"test_size: {test_size} holds out {count} of {len(prompts)} distinct prompts; "
            "choose a fraction or a count that holds out at least 1 and leaves at least 1"
        )
    order = np.random.default_rng(seed).permutation(len(prompts))
    held = {prompts[index] for index in order[:count]}
    mask = np.fromiter((key in held for key in keys), dtype=bool, count=len(data))
    return data.select(np.flatnonzero(~mask)), data.select(np.flatnonzero(mask))


def _prompt_keys(batch: Mapping[str, list[Any]]) -> dict[str, list[str | None]]:
    """What makes two prompts the same: roles and texts, without white space around them; None for unusable rows."""
    if "prompt_ids" in batch:
        return {"key": [json.dumps(ids) for ids in batch["prompt_ids"]]}
    columns = _all_columns(batch)
    keys: list[str | None] = []
    for values in zip(*columns.values(), strict=True):
        pair = normalise(dict(zip(columns, values, strict=True)))
        if isinstance(pair, str):
            keys.append(None)
            continue
        turns = [{"role": "user", "content": pair.prompt}] if isinstance(pair.prompt, str) else pair.prompt
        keys.append(json.dumps([(turn["role"], str(turn.get("content", "")).strip()) for turn in turns]))
    return {"key": keys}


def _at_most(data: Dataset, limit: int | None) -> Dataset:
    return data if limit is None or limit >= len(data) else data.select(range(limit))
