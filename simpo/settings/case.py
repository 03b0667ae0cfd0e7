"""What guard rails look at: settings, and what is known of the run beside them."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from simpo.config import DataConfig, ModelSettings, PreferenceConfig

# Values of models of 7 to 9 billion parameters say nothing about one that is trained from scratch on a laptop.
SMALL = 100_000_000
CUT_SHARE = 0.1  # of pairs, as the check `truncated` of simpo inspect
LONG_RUN = 200  # steps between two checkpoints in training_configs/
_STEP = 128  # lengths are advised in multiples of this

# The models of the published runs, and their architectures.
_PUBLISHED = {
    "zephyr-7b-sft-full",
    "mistral-7b-instruct-v0.2",
    "llama-3-base-8b-sft",
    "meta-llama-3-8b-instruct",
    "gemma-2-9b-it",
}
_FAMILIES = {"mistral", "llama", "gemma2"}


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run beside its settings. Rules that need what is None are silent.

    Args:
        parameters: of the model, about.
        model_type: of its config.
        context: tokens that it can read.
        train_pairs, eval_pairs: rows to train and to evaluate on; 0 evaluation rows where there is no such set.
        lengths: tokens of prompt and longer response of some pairs [N], before anything is cut.
    """

    parameters: int | None = None
    model_type: str | None = None
    context: int | None = None
    train_pairs: int | None = None
    eval_pairs: int | None = None
    lengths: np.ndarray | None = None


@dataclass(frozen=True)
class Case:
    """Settings and facts as rules look at them, and as their texts name them."""

    training: PreferenceConfig
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataConfig = field(default_factory=DataConfig)
    facts: RunFacts = field(default_factory=RunFacts)

    @property
    def rate(self) -> float:
        """Peak learning rate."""
        return self.training.learning_rate

    @property
    def small(self) -> bool:
        """Whether the model is too small for the published values to mean anything."""
        return self.facts.parameters is not None and self.facts.parameters < SMALL

    @property
    def full(self) -> bool:
        """All weights are trained, of a model that the published values are about."""
        return not (self.model.use_peft or self.small)

    @property
    def adapter(self) -> bool:
        """An adapter is trained, on a model that the published values are about."""
        return self.model.use_peft and not self.small

    @property
    def simpo(self) -> bool:
        """Whether the objective is SimPO."""
        return self.training.objective == "simpo"

    @property
    def name(self) -> str:
        """The model's name without its owner or folder."""
        return Path(str(self.model.model_name_or_path or "")).name

    @property
    def sources(self) -> str:
        """Names of the training data."""
        return ", ".join(self.data.dataset_mixer or {})

    @property
    def hub_sources(self) -> str:
        """Names of those that are no files or folders here, whose names say nothing of what they hold."""
        return ", ".join(name for name in self.data.dataset_mixer or {} if not Path(name).expanduser().exists())

    @property
    def dtype(self) -> str | None:
        """Type of the weights that is asked for."""
        given = self.training.model_init_kwargs
        found = given.get("dtype") if isinstance(given, dict) else None
        found = self.model.dtype if found is None else found
        return None if found is None else str(found).removeprefix("torch.")

    @property
    def deepspeed(self) -> bool:
        """DeepSpeed drives the run."""
        return getattr(self.training, "deepspeed_plugin", None) is not None

    @property
    def unpublished(self) -> bool:
        """Whether the model is known to be none whose token ids `tokenization: paper` is about.

        A folder can hold any model, such as one that came of a published one: there the architecture decides.
        """
        if not self.name or self.name.lower() in _PUBLISHED:
            return False
        if Path(str(self.model.model_name_or_path)).expanduser().is_dir():
            return self.facts.model_type not in {None, *_FAMILIES}
        return True

    @property
    def steps(self) -> int:
        """Optimizer steps of the run; 0 where they are not known."""
        args = self.training
        if args.max_steps > 0:
            return args.max_steps
        return math.ceil(args.num_train_epochs * (self.facts.train_pairs or 0) / (args.total_train_batch_size or 1))

    @property
    def checkpoint_distance(self) -> float:
        """Optimizer steps between two checkpoints; infinite where none are written."""
        args = self.training
        if args.save_strategy == "steps":
            return args.save_steps if args.save_steps >= 1 else args.save_steps * self.steps  # below 1 it is a part
        return math.inf if args.save_strategy == "no" else 0  # of epochs, or of the best: decided on the way

    @property
    def checkpoints(self) -> str:
        """The line that leads to checkpoints."""
        if self.training.save_strategy == "steps":
            return f"save_steps: {LONG_RUN}"
        return f"save_strategy: steps  # with save_steps: {LONG_RUN}"

    @property
    def cut_share(self) -> float:
        """Share of pairs that exceed max_length, and are cut."""
        if self.training.truncation != "cut":
            return 0.0
        return self.share_above(self.training.max_length)

    def share_above(self, length: int) -> float:
        """Share of pairs of more tokens; 0 where lengths are not known."""
        return 0.0 if self.facts.lengths is None else float((self.facts.lengths > length).mean())

    def length_at(self, percentile: float) -> int:
        """A percentile of the lengths, rounded up to a multiple of 128; 0 where lengths are not known."""
        if self.facts.lengths is None:
            return 0
        return math.ceil(np.percentile(self.facts.lengths, percentile) / _STEP) * _STEP

    @property
    def longest(self) -> int:
        """The 99.9th percentile of the lengths, rounded up."""
        return self.length_at(99.9)

    @property
    def enough(self) -> int:
        """`longest`, or where it is below max_prompt_length the next multiple of 128, as max_length must be above."""
        return max(self.longest, (self.training.max_prompt_length // _STEP + 1) * _STEP)

    @property
    def room(self) -> str:
        """The line after which few are cut: room for 99 pairs in 100, where the model can read that much."""
        wanted = min(self.length_at(99), self.facts.context or self.length_at(99))
        return f"max_length: {wanted}" if self.share_above(wanted) <= CUT_SHARE else "truncation: drop"
