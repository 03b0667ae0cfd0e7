"""How many pairs a run has, and how long they are: from its data, or assumed and said so."""

from dataclasses import dataclass

import numpy as np

from simpo.batching import Budget, PlanSummary, StepSampler
from simpo.config import PreferenceConfig
from simpo.errors import ConfigError, SimPOError
from simpo.flops import PairLengths
from simpo.settings import RunSettings

MEAN_TOKENS = PairLengths(172, 331, 312)
"""Mean tokens of a pair of UltraFeedback, which the published recipes train on."""
PAIRS = 60_000
_SPREAD = 0.7  # of the logarithms of assumed lengths
_DRAWN = 4096  # pairs
_SAMPLE = 1000  # rows


@dataclass(frozen=True, eq=False)
class Workload:
    """The data of a run in numbers.

    Attributes:
        lengths: [N, 3] int64, tokens of prompt, chosen and rejected: a sample.
        pairs: of an epoch.
        source: where both come from, for people.
        assumed: they are not those of the run's data.
    """

    lengths: np.ndarray
    pairs: int
    source: str
    assumed: bool

    @property
    def mean(self) -> PairLengths:
        """Mean lengths in tokens, rounded."""
        return PairLengths(*(max(1, round(x)) for x in self.lengths.mean(axis=0).tolist()))

    def tokens(self, *, shared: bool) -> np.ndarray:
        """[N] packed tokens of each pair."""
        prompt, chosen, rejected = self.lengths.T
        return (1 if shared else 2) * prompt + chosen + rejected

    def plan(self, budget: Budget, *, per_step: int, gpus: int, shared: bool, seed: int = 0) -> PlanSummary:
        """How steps of such pairs are cut into micro-batches: as a run cuts them, over some thousand pairs."""
        drawn = np.random.default_rng(seed).choice(self.tokens(shared=shared), max(_DRAWN, per_step))
        whole = drawn[: len(drawn) // per_step * per_step]
        return StepSampler(whole, pairs_per_step=per_step, budget=budget, world_size=gpus, seed=seed).summary()

    def micro_batch(self, tokens: int, *, shared: bool) -> tuple[PairLengths, ...]:
        """Pairs of mean length that fill a micro-batch; at least one, which is longer where tokens are left."""
        mean = self.mean
        size = (1 if shared else 2) * mean.prompt + mean.chosen + mean.rejected
        count = max(1, tokens // size)
        left = tokens - count * size
        last = PairLengths(mean.prompt, max(1, mean.chosen + left // 2), max(1, mean.rejected + left - left // 2))
        return (*[mean] * (count - 1), last)


def read_workload(settings: RunSettings, mean_tokens: PairLengths | None = None, pairs: int | None = None) -> Workload:
    """The workload of a run: a sample of its data tokenised as training would, where they can be read.

    Args:
        settings: of the run.
        mean_tokens: mean lengths in place of the data's, which are not read then.
        pairs: pairs of an epoch, in place of the data's.
    """
    args = settings.training
    if mean_tokens is not None:
        return assumed_workload(args, mean_tokens, pairs, "lengths and pairs as given" if pairs else "lengths as given")
    try:
        lengths, count = _sample(settings)
    except SimPOError as error:
        why = str(error).splitlines()[0]
        source = f"the data were not read ({why}); UltraFeedback's mean lengths"
        return assumed_workload(args, MEAN_TOKENS, pairs, source)
    source = f"{len(lengths):,} pairs of the run's data, tokenised"
    return Workload(lengths, pairs or count, source, assumed=False)


def _sample(settings: RunSettings) -> tuple[np.ndarray, int]:
    from simpo.data.chat import resolve_chat_template
    from simpo.data.load import load_mix
    from simpo.data.tokenize import tokenized
    from simpo.model import load_tokenizer
    from simpo.packing import token_counts

    model, args = settings.model, settings.training
    tokenizer = load_tokenizer(
        str(model.model_name_or_path), revision=model.model_revision, trust_remote_code=model.trust_remote_code
    )
    template = resolve_chat_template(settings.data.chat_template, tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    train, _, _ = load_mix(settings.data, seed=args.seed)
    rows = range(0, len(train), max(1, len(train) // _SAMPLE))[:_SAMPLE]
    kept, _ = tokenized(train.select(rows), tokenizer, args, "train")
    return token_counts(kept).T, round(len(train) * len(kept) / len(rows))


def assumed_workload(args: PreferenceConfig, mean: PairLengths, pairs: int | None, source: str) -> Workload:
    """Log-normal lengths with these means, cut to the run's `max_length` and `max_prompt_length`.

    Raises:
        ConfigError: a mean is not above 0, or prompt and response are longer than max_length.
    """
    longest = mean.prompt + max(mean.chosen, mean.rejected)
    if min(mean) < 1 or longest > args.max_length:
        raise ConfigError(
            f"--mean-tokens {','.join(map(str, mean))}: each must be above 0, and prompt with response at most "
            f"max_length: {args.max_length}"
        )
    logs = np.random.default_rng(0).normal(np.log(mean) - _SPREAD**2 / 2, _SPREAD, (_DRAWN, 3))
    lengths = np.maximum(1, np.rint(np.exp(logs))).astype(np.int64)
    lengths[:, 0] = np.minimum(lengths[:, 0], args.max_prompt_length)
    lengths[:, 1:] = np.minimum(lengths[:, 1:], args.max_length - lengths[:, :1])
    count = "" if pairs else f"; {PAIRS:,} pairs assumed"
    return Workload(lengths, pairs or PAIRS, f"{source}, {','.join(map(str, mean))} tokens{count}", assumed=True)
