"""How a model orders the two responses of preference pairs, and how its likelihood goes with their length.

    reward(y) = beta / |y| * log pi(y | x)             SimPO, arXiv 2405.14734, eq. 4
    reward accuracy: share of pairs with reward(w) > reward(l)
    sum likelihood accuracy: share of pairs with log pi(w | x) > log pi(l | x), summed over tokens
    reward margin: mean of reward(w) - reward(l)
    length correlation: Spearman's rho of log pi(y | x) / |y| and |y|, over both responses of all pairs (section 4.2)

An order by log pi(y | x) / |y|, the likelihood accuracy of simpo.analysis, is the reward accuracy itself.

Shape letters: N pairs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpo.errors import ConfigError
from simpo.estimates import share
from simpo.evals.pairs.intervals import RESAMPLES, Floats, Spearman, bootstrap
from simpo.evals.pairs.settings import PairsSettings
from simpo.evals.results import Metric, Result, write_result

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from simpo.data.load import LoadReport
    from simpo.data.tokenize import TokenizeReport

PAIRS_FILE = "pairs.parquet"
INTERVALS = f"accuracies: Wilson; others: bootstrap over pairs, {RESAMPLES} resamples, percentiles"


class ScoredPairs(NamedTuple):
    """What was measured, in the order of the data set.

    Fields:
        source: [N] where each pair comes from: source and split.
        row: [N] its row there, from 0.
        prompt_lengths, chosen_lengths, rejected_lengths: [N] tokens.
        chosen, rejected: [N] log-probs summed over the response, in nats.
    """

    source: list[str]
    row: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    chosen_lengths: NDArray[np.int64]
    rejected_lengths: NDArray[np.int64]
    chosen: Floats
    rejected: Floats


class ReadPairs(NamedTuple):
    """Tokenised pairs, before a model has seen them.

    Fields:
        told: how pairs become tokens, and beta.
        data: N tokenised rows.
        origin: where rows come from.
        report: what became of them; None where the sources hold token ids.
    """

    told: dict[str, Any]
    data: Dataset
    origin: LoadReport
    report: TokenizeReport | None

    @property
    def dropped(self) -> dict[str, int]:
        """Cause -> rows left out."""
        return dict(self.report.dropped) if self.report else {}

    def places(self) -> list[tuple[str, int]]:
        """[N] source of each pair, and its row there, from 0."""
        kept = np.asarray(self.data["row"]) if "row" in self.data.column_names else np.arange(len(self.data))
        return [self.origin.locate(int(self.origin.numbers[row])) for row in kept]


def run_pairs(settings: PairsSettings) -> Result:
    """Evaluate, and write `results.json` and `pairs.parquet` into `settings.output_dir`; every process must call it.

    Raises:
        SimPOError: what is wrong, where, and what to write instead.
    """
    from accelerate import PartialState

    _prepare_folder(settings.output_dir)
    result, pairs = measure_pairs(settings)
    if PartialState().is_main_process:
        write_pairs(Path(settings.output_dir) / PAIRS_FILE, pairs, beta=result.settings["beta"])
        write_result(settings.output_dir, result)
    PartialState().wait_for_everyone()
    return result


def measure_pairs(settings: PairsSettings) -> tuple[Result, ScoredPairs]:
    """The numbers, and what they are made of."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=settings.use_cpu)
    read = read_tokens(settings, accelerator)
    if accelerator.is_main_process and read.report is not None:
        print("\n".join(read.report.lines()), flush=True)
    pairs = score(settings, read, accelerator)
    metrics = pair_statistics(pairs, beta=float(read.told["beta"]), seed=settings.seed)
    counts = {"pairs": len(pairs.row), **{f"dropped: {cause}": count for cause, count in read.dropped.items()}}
    about = _about(settings, read.told, weights_dtype(settings, accelerator))
    return Result("pairs", settings.name, metrics, counts=counts, settings=about), pairs


def read_tokens(settings: PairsSettings, accelerator: Accelerator) -> ReadPairs:
    """Token ids, as training makes them or as the sources hold them; every process must call it.

    Raises:
        SimPOError: what is wrong, where, and what to write instead.
    """
    told = settings.resolve()
    with accelerator.main_process_first():
        return ReadPairs(told, *_read(settings, told))


def weights_dtype(settings: PairsSettings, accelerator: Accelerator) -> str:
    """The name of the dtype that the model is loaded in."""
    return settings.dtype or ("float32" if accelerator.device.type == "cpu" else "bfloat16")


def score(settings: PairsSettings, read: ReadPairs, accelerator: Accelerator) -> ScoredPairs:
    """Load the model, and compute the log-probs of all pairs; every process must call it.

    Raises:
        ModelError: it cannot be loaded, packs do not serve it, or log-probs are not finite.
    """
    import torch

    from simpo.evals.pairs.packed_scores import load_scored_model, score_pairs

    dtype = weights_dtype(settings, accelerator)
    model = load_scored_model(
        settings.model_name_or_path,
        dtype="auto" if dtype == "auto" else getattr(torch, dtype),
        device=accelerator.device,
        attn_backend=settings.attn_backend,
        revision=settings.model_revision,
        trust_remote_code=settings.trust_remote_code,
    )
    sums = score_pairs(
        model,
        read.data,
        accelerator,
        max_tokens=settings.max_tokens_per_batch,
        max_length=int(read.told["max_length"]),
        prefix_sharing=settings.prefix_sharing,
    )
    return _scored(read, sums)


def _about(settings: PairsSettings, told: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "model_name_or_path": settings.model_name_or_path,
        "dataset_mixer": dict(settings.data.dataset_mixer or {}),
        "dataset_splits": settings.dataset_splits,
        "max_samples": settings.max_samples,
        **told,
        "chat_template": settings.chat_template or "the tokenizer's",
        "dtype": dtype,
        "intervals": INTERVALS,
    }


def pair_statistics(pairs: ScoredPairs, *, beta: float, seed: int = 0) -> dict[str, Metric]:
    """The metrics of the module's head, with their 95% intervals.

    Args:
        pairs: what was measured.
        beta: scale of rewards.
        seed: of the bootstrap.
    """
    count = len(pairs.row)
    chosen, rejected = pairs.chosen / pairs.chosen_lengths, pairs.rejected / pairs.rejected_lengths
    margins = beta * (chosen - rejected)
    lengths = np.concatenate((pairs.chosen_lengths, pairs.rejected_lengths)).astype(np.float64)
    spearman = Spearman(np.concatenate((chosen, rejected)), lengths)

    def correlation(weights: Floats) -> float:
        return spearman(np.concatenate((weights, weights)))  # both responses of a pair are drawn together

    means = {"reward_margin": (margins, ""), "chosen_logps": (chosen, "nats/token"),
             "rejected_logps": (rejected, "nats/token")}  # fmt: skip
    statistics = [*(lambda weights, x=x: float(weights @ x) / count for x, _ in means.values()), correlation]
    ends = bootstrap(statistics, count, seed=seed)
    metrics = {
        "reward_accuracy": _share(margins > 0, count),
        "sum_likelihood_accuracy": _share(pairs.chosen > pairs.rejected, count),
    }
    for (name, (values, unit)), (low, high) in zip(means.items(), ends[:-1].tolist(), strict=True):
        error = float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else None
        metrics[name] = Metric(float(values.mean()), unit, low, high, error)
    rho = correlation(np.ones(count))
    if not np.isnan(rho):
        low, high = ends[-1].tolist()
        metrics["length_correlation"] = Metric(rho, "", low, high)
    return metrics


def _share(right: NDArray[np.bool_], count: int) -> Metric:
    found = share(int(right.sum()), count)
    error = float(np.sqrt(found.value * (1 - found.value) / count))
    return Metric(100 * found.value, "%", 100 * found.low, 100 * found.high, 100 * error)


def write_pairs(path: Path, pairs: ScoredPairs, *, beta: float) -> None:
    """Write one row for each pair: the fields of `ScoredPairs`, and the rewards."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    rewards = {
        "chosen_rewards": beta * pairs.chosen / pairs.chosen_lengths,
        "rejected_rewards": beta * pairs.rejected / pairs.rejected_lengths,
    }
    part = path.with_suffix(".unfinished")
    pq.write_table(pa.table(pairs._asdict() | rewards), part)
    os.replace(part, path)


def _prepare_folder(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: {folder} cannot be made: {error.strerror or error}") from error


def _read(settings: PairsSettings, told: Mapping[str, Any]) -> tuple[Dataset, LoadReport, TokenizeReport | None]:
    """Token ids, as training makes them or as the sources hold them; where rows come from; what became of them."""
    from simpo.data.chat import resolve_chat_template
    from simpo.data.load import load_rows
    from simpo.data.tokenize import TokenizeOptions, is_tokenized, tokenize_pairs
    from simpo.model import load_tokenizer

    tokenizer = load_tokenizer(
        settings.model_name_or_path, revision=settings.model_revision, trust_remote_code=settings.trust_remote_code
    )
    template = resolve_chat_template(settings.chat_template, tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    rows, origin = load_rows(settings.data, settings.seed)
    if is_tokenized(rows):
        return rows, origin, None
    options = TokenizeOptions(**{key: told[key] for key in PairsSettings.OF_TOKENS})
    data, report = tokenize_pairs(rows, tokenizer, options, num_proc=settings.dataset_num_proc, desc="pairs")
    return data, origin, report


def _scored(read: ReadPairs, sums: Mapping[str, Floats]) -> ScoredPairs:
    from simpo.packing import token_counts

    places = read.places()
    source, row = [source for source, _ in places], np.array([row for _, row in places], dtype=np.int64)
    prompt, chosen, rejected = token_counts(read.data)
    return ScoredPairs(source, row, prompt, chosen, rejected, sums["chosen"], sums["rejected"])
