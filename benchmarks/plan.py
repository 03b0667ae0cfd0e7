"""What the plan of a step costs on 1 to 1024 ranks: how evenly tokens are spread, and what padding would take.

    python -m benchmarks.plan

Nothing is trained. Ranks run in lock step, so a micro-step takes as long as its largest micro-batch; time is counted in
tokens, padding included. Imbalance is that time over the time of a perfect split of the real tokens. `bound` is what no
plan can go below, because a step's longest pair lies on one rank whole; where `balanced` meets it, only larger steps
help. The time factor has the unpadded, unshared tokens of a perfect split as its 1.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import LENGTHS, is_real, load_lengths
from benchmarks.report import (
    COLOURS,
    MARKERS,
    RESULTS,
    environment,
    picture,
    print_table,
    write_json,
)
from benchmarks.sampling import UnbalancedSampler
from simpo.batching import Budget, MicroBatch, StepSampler

RANKS = tuple(2**power for power in range(11))
STEPS = (128, 512, 2048)
PAIRS = 4096
MAX_LENGTH = 2048
Plans = Iterable[list[list[MicroBatch]]]
FACTORS = ("padded", "padded, grouped", "unpadded", "balanced", "balanced, shared")


class GroupedSampler(UnbalancedSampler):
    """Pairs of similar length together: each step is sorted by `tokens` before it is cut, ranks taking neighbours."""

    def _cut(self, pairs: list[int]) -> list[list[MicroBatch]]:
        return super()._cut(sorted(pairs, key=lambda pair: int(self.tokens[pair])))


def lock_step(plans: Plans, cost: Callable[[tuple[int, ...]], int]) -> int:
    """Tokens that all ranks could have run while they waited for the largest micro-batch of each micro-step."""
    total = 0
    for plan in plans:
        for together in zip(*plan, strict=True):
            total += len(plan) * max(cost(micro_batch.pairs) for micro_batch in together)
    return total


def lower_bound(tokens: np.ndarray, sampler: StepSampler) -> float:
    """The imbalance that the longest pair of each step forces on any plan."""
    steps = [tokens[[row for rank in plan for m in rank for row in m.pairs[: len(m.pairs) - m.fillers]]]
             for plan in sampler.plans()]  # fmt: skip
    waited = sum(max(float(step.max()) * sampler.world_size, float(step.sum())) for step in steps)
    return waited / float(sum(step.sum() for step in steps))


def study(lengths: np.ndarray, pairs_per_step: int, ranks: int, pairs_per_micro_batch: int) -> dict[str, Any]:
    """Imbalances and time factors for pairs of these lengths [N, 3], N a multiple of pairs_per_step."""
    prompt, chosen, rejected = lengths.T
    width, unshared, shared = prompt + np.maximum(chosen, rejected), 2 * prompt + chosen + rejected, lengths.sum(axis=1)

    def sampler(kind: type[StepSampler], tokens: np.ndarray) -> StepSampler:
        budget = Budget(pairs_per_micro_batch)
        return kind(tokens, pairs_per_step=pairs_per_step, budget=budget, world_size=ranks, seed=0)

    def padded(pairs: tuple[int, ...]) -> int:
        return 2 * len(pairs) * max(int(width[pair]) for pair in pairs)

    def unpadded(pairs: tuple[int, ...]) -> int:
        return sum(int(unshared[pair]) for pair in pairs)

    random, balanced = sampler(UnbalancedSampler, shared), sampler(StepSampler, shared)
    plan, ideal = balanced.summary(), float(unshared.sum())
    waited = (
        lock_step(random.plans(), padded),
        lock_step(sampler(GroupedSampler, width).plans(), padded),
        lock_step(random.plans(), unpadded),
        lock_step(sampler(StepSampler, unshared).plans(), unpadded),
        plan.imbalance * plan.tokens,
    )
    return {
        "ranks": ranks,
        "pairs_per_step": pairs_per_step,
        "micro_batches_per_step": plan.micro_batches / plan.steps,
        "fillers_per_step": plan.fillers / plan.steps,
        "imbalance_balanced": plan.imbalance,
        "imbalance_random": random.summary().imbalance,
        "imbalance_bound": lower_bound(shared, balanced),
        "time_factor": dict(zip(FACTORS, (tokens / ideal for tokens in waited), strict=True)),
    }


def report(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows of one distribution and step size."""
    columns = ("ranks", "random", "balanced", "bound", *FACTORS)
    imbalances = ("ranks", "imbalance_random", "imbalance_balanced", "imbalance_bound")
    cells = [
        [f"{row[key]:.3f}" if key != "ranks" else row[key] for key in imbalances]
        + [f"{row['time_factor'][key]:.2f}" for key in FACTORS]
        for row in rows
    ]
    title = f"{name}, steps of {rows[0]['pairs_per_step']} pairs: imbalance (3 columns), time factor (5 columns)"
    print_table(title, columns, cells)


def draw(results: dict[str, Any], folder: Path, about: dict[str, Any]) -> None:
    """Imbalance over ranks for every step size, and time factors at the smallest, for every distribution."""
    with picture(folder, "plan_cpu", about, 2, len(results), (4.4, 3.3)) as axes:
        for (above, below), (name, result) in zip(zip(*axes, strict=True), results.items(), strict=True):
            steps = sorted({row["pairs_per_step"] for row in result["rows"]})
            for number, step in enumerate(steps):
                rows = [row for row in result["rows"] if row["pairs_per_step"] == step]
                ranks, colour = [row["ranks"] for row in rows], COLOURS[number]
                for key, style in (("random", ":"), ("balanced", "-"), ("bound", "--")):
                    label = f"{key}, {step} pairs a step"
                    above.plot(ranks, [row[f"imbalance_{key}"] for row in rows], style, color=colour, label=label)
            rows = [row for row in result["rows"] if row["pairs_per_step"] == steps[0]]
            for number, key in enumerate(FACTORS):
                line = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "label": key}
                below.plot([row["ranks"] for row in rows], [row["time_factor"][key] for row in rows], **line)
            above.set(title=f"{name} ({result['lengths_are']})", ylabel="imbalance (1 = perfect)")
            below.set(title=f"steps of {steps[0]} pairs", ylabel="time / ideal unpadded, unshared")
            for axis in (above, below):
                axis.set_xscale("log", base=2)
                axis.set_yscale("log", base=2)
                axis.set_xlabel("ranks")
                axis.yaxis.set_major_formatter("{x:g}")
                axis.xaxis.set_major_formatter("{x:,.0f}")
        axes[0][0].legend(fontsize=6)
        axes[1][0].legend(fontsize=7)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print, and write JSON and a picture."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the picture")
    parser.add_argument("--data", nargs="*", choices=list(LENGTHS), default=list(LENGTHS), help="default: all")
    parser.add_argument("--ranks", nargs="*", type=int, default=list(RANKS))
    parser.add_argument("--pairs-per-step", nargs="*", type=int, default=list(STEPS))
    parser.add_argument("--pairs-per-microbatch", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="drawn from each distribution")
    given = parser.parse_args(argv)
    about, results = environment("benchmarks.plan", argv), {}
    for name in given.data:
        lengths = load_lengths(name, given.pairs, max_length=MAX_LENGTH)
        rows = []
        for step in given.pairs_per_step:
            whole = lengths[: len(lengths) // step * step]
            rows += [study(whole, step, ranks, given.pairs_per_microbatch) for ranks in given.ranks]
            report(name, [row for row in rows if row["pairs_per_step"] == step])
        means = dict(zip(("prompt", "chosen", "rejected"), lengths.mean(axis=0).tolist(), strict=True))
        results[name] = {"lengths_are": "real" if is_real(name) else "log-normal", "mean_tokens": means, "rows": rows}
    settings = {"pairs_per_microbatch": given.pairs_per_microbatch, "pairs": given.pairs, "max_length": MAX_LENGTH}
    write_json({**about, **settings, "results": results}, given.output, "plan_cpu")
    draw(results, given.output, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
