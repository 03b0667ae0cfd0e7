"""What the throughput benchmark compares and measures: on a CPU, on one GPU, and small enough for tests.

Loads no torch.
"""

from typing import Any, NamedTuple

from benchmarks.data import Pair

TRL = "TRL CPOTrainer"


class Variant(NamedTuple):
    """What a row of the comparison does; `benchmarks.variants` makes trainers of it.

    Fields:
        shared: a pair's prompt is computed once.
        balanced: the plan looks at lengths, and so may keep a token budget.
        scored_rows_only: the head meets the rows that predict a response, not every row.
        padded: two padded rows for each pair and whole logits, in micro-batches like the peer's.
    """

    shared: bool = False
    balanced: bool = False
    scored_rows_only: bool = False
    padded: bool = False


PRODUCT = Variant(shared=True, balanced=True, scored_rows_only=True)

# Each has one idea more than the one before, so the steps between them say what an idea brings. The last: the product.
VARIANTS: dict[str, Variant] = {
    "padded": Variant(padded=True),
    "packed": Variant(),
    "+ shared prompt": Variant(shared=True),
    "+ balanced plan": Variant(shared=True, balanced=True),
    "+ head on scored rows": PRODUCT,
}


class TrainingJob(NamedTuple):
    """What the process of one run is given.

    Fields:
        variant: what to run, or None for TRL's trainer.
        pairs: of all steps, in order; nothing is longer than max_length.
        shape: arguments of `LlamaConfig`.
        max_length: tokens of a prompt with a response.
        pairs_per_step: pairs of an optimizer step.
        pairs_per_microbatch: pairs of a micro-batch.
        max_tokens: bound on a micro-batch where the plan is balanced, or None.
        learning_rate: constant over the steps.
        cuda: on the GPU in bf16 with the fused optimizer, else on the CPU in float32.
    """

    variant: Variant | None
    pairs: list[Pair]
    shape: dict[str, Any]
    max_length: int
    pairs_per_step: int
    pairs_per_microbatch: int
    max_tokens: int | None
    learning_rate: float
    cuda: bool


TINY = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
SMALL = {"vocab_size": 32_000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8,
         "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": False}  # fmt: skip
LLAMA_1B = {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}  # fmt: skip
LLAMA_3B = {"vocab_size": 128_256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True}  # fmt: skip
# Weights, gradients and AdamW's states take 16 bytes a parameter: all 32 layers would not fit on one device.
LLAMA_8B = {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 8,
            "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "llama-37m": SMALL,
    "llama-3.2-1b": LLAMA_1B,
    "llama-3.2-3b": LLAMA_3B,
    "llama-3-8b, 8 of 32 layers": LLAMA_8B,
}


class Case(NamedTuple):
    """One data set with one model.

    Fields:
        data: key of `benchmarks.data.LENGTHS`.
        model: key of `SHAPES`.
        max_length: tokens of a prompt with a response.
        pairs_per_step: pairs of an optimizer step.
        peer_pairs: pairs of a padded micro-batch; where there are several, the first repeat tries each with TRL and
            goes on with the fastest.
        pairs: pairs of a micro-batch that holds no padding.
        max_tokens: bound of a micro-batch where the plan is balanced.
        steps: timed steps; one step to warm up goes before them.
    """

    data: str
    model: str
    max_length: int
    pairs_per_step: int
    peer_pairs: tuple[int, ...]
    pairs: int
    max_tokens: int | None = None
    steps: int = 2


class Preset(NamedTuple):
    """Cases, and how they are run.

    Fields:
        cases: what is measured.
        cuda: on the GPU in bf16, else on the CPU in float32.
        tolerance: largest difference between two loss curves that rounding explains.
        repeats: of every run.
        minutes: no repeat begins that would end later than this; the first always runs.
        learning_rate: large enough that the losses move.
    """

    cases: tuple[Case, ...]
    cuda: bool
    tolerance: float
    repeats: int
    minutes: float
    learning_rate: float


PRESETS: dict[str, Preset] = {
    "cpu": Preset(
        cases=(
            Case("hh", "llama-37m", 1024, pairs_per_step=8, peer_pairs=(4,), pairs=4),
            # three times as many tokens in a pair
            Case("judged", "llama-37m", 1024, pairs_per_step=4, peer_pairs=(2,), pairs=2, steps=1),
        ),
        cuda=False,
        tolerance=1e-3,
        repeats=3,
        minutes=10,
        learning_rate=1e-4,
    ),
    "gpu": Preset(
        cases=(
            Case("ultrafeedback", "llama-3.2-1b", 2048, 32, (2, 4, 8), pairs=16, max_tokens=16_384, steps=3),
            # weights and states alone are 51 GB, and no activation is computed again: this one needs more than 80 GB
            Case("ultrafeedback", "llama-3.2-3b", 2048, 32, (2, 4), pairs=8, max_tokens=8192),
            Case("ultrafeedback", "llama-3-8b, 8 of 32 layers", 2048, 32, (2, 4), pairs=16, max_tokens=16_384),
        ),
        cuda=True,
        tolerance=2e-2,
        repeats=3,
        minutes=8,
        learning_rate=1e-5,
    ),
    "tiny": Preset(
        cases=(Case("hh", "tiny", 96, pairs_per_step=4, peer_pairs=(2,), pairs=2),),
        cuda=False,
        tolerance=1e-3,
        repeats=1,
        minutes=10,
        learning_rate=1e-3,
    ),
}
