"""How time and memory of a training step grow: with tokens, pairs, the prompt's share, vocabulary and layers.

    python -m benchmarks.scaling              # CPU preset where there is no GPU: a small model, about 3 minutes

Every point has a process of its own and pairs of constant length. Time is the median of the timed steps, forward,
backward and optimizer; memory is the peak of the whole process. Printed beside the points: the exponent b of the fit
seconds per step = a x^b, and how much of the memory's growth with tokens a straight line explains.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.data import random_pairs
from benchmarks.presets import LLAMA_1B, PRODUCT, TINY, TrainingJob
from benchmarks.processes import run_apart
from benchmarks.report import (
    COLOURS,
    MARKERS,
    add_common_arguments,
    default_preset,
    environment,
    picture,
    print_table,
    slug,
    write_json,
)

WARM_UP = 1
AXES = {
    "tokens": "tokens per micro-batch",
    "pairs": "pairs per step",
    "share": "prompt's share of a pair's tokens",
    "vocabulary": "vocabulary",
    "layers": "layers",
}
_BASE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 8192, "tie_word_embeddings": False}  # fmt: skip


class Scale(NamedTuple):
    """The points of a preset.

    Fields:
        shape: of the model, where an axis does not change it.
        lengths: tokens of prompt, chosen and rejected, where an axis does not change them.
        pairs: of a micro-batch and step, where an axis does not change them.
        points: by axis: pairs per micro-batch ("tokens"), pairs per step in micro-batches of `pairs`, parts of the
            prompt in percent ("share"), vocabularies, layers.
        cuda: on the GPU.
        steps: timed steps.
    """

    shape: dict[str, Any]
    lengths: tuple[int, int, int]
    pairs: int
    points: dict[str, tuple[int, ...]]
    cuda: bool = False
    steps: int = 3


SCALES = {
    "cpu": Scale(
        _BASE,
        (64, 96, 96),
        4,
        {
            "tokens": (4, 8, 16, 32, 64),
            "pairs": (4, 8, 16, 32),
            "share": (10, 25, 50, 75, 90),
            "vocabulary": (2048, 8192, 32_768, 131_072),
            "layers": (1, 2, 4, 8, 16),
        },
    ),
    "gpu": Scale(
        LLAMA_1B,
        (256, 384, 384),
        8,
        {
            "tokens": (1, 2, 4, 8, 16, 32),
            "pairs": (8, 16, 32, 64),
            "share": (10, 25, 50, 75, 90),
            "vocabulary": (32_000, 64_000, 128_256, 256_000),
            "layers": (4, 8, 16, 32),
        },
        cuda=True,
    ),
    "tiny": Scale(
        TINY,
        (8, 12, 12),
        2,
        {"tokens": (2, 4, 8), "pairs": (2, 4), "share": (25, 75), "vocabulary": (512, 4096), "layers": (1, 2)},
        steps=1,
    ),
}


def jobs(scale: Scale, axis: str) -> Iterator[tuple[dict[str, Any], TrainingJob]]:
    """What is measured along an axis: the point, and the run that measures it."""
    for value in scale.points[axis]:
        shape, lengths = dict(scale.shape), scale.lengths
        micro_batch = step = scale.pairs
        if axis == "tokens":
            micro_batch = step = value
        elif axis == "pairs":
            step = value
        elif axis == "share":
            prompt = max(1, sum(lengths) * value // 100)
            response = max(1, (sum(lengths) - prompt) // 2)
            lengths = (prompt, response, response)
        elif axis == "vocabulary":
            shape["vocab_size"] = value
        elif axis == "layers":
            shape["num_hidden_layers"] = value
        for shared in (True, False) if axis == "share" else (True,):
            x = micro_batch * sum(lengths) if axis == "tokens" else value
            point = {"axis": axis, "x": x, "shared": shared, "pairs_per_step": step, "lengths": lengths}
            yield point, _job(scale, shape, lengths, step, micro_batch, shared)


def _job(
    scale: Scale, shape: dict[str, Any], lengths: tuple[int, int, int], step: int, micro_batch: int, shared: bool
) -> TrainingJob:
    rows = np.tile(lengths, ((WARM_UP + scale.steps) * step, 1))
    return TrainingJob(
        PRODUCT._replace(shared=shared),
        random_pairs(rows, shape["vocab_size"]),
        shape,
        max_length=lengths[0] + max(lengths[1:]),
        pairs_per_step=step,
        pairs_per_microbatch=micro_batch,
        max_tokens=None,
        learning_rate=1e-5,
        cuda=scale.cuda,
    )


def measure(scale: Scale, axis: str) -> list[dict[str, Any]]:
    """The points of an axis with seconds per step, seconds per pair and peak memory; without those that do not fit."""
    points = []
    for point, job in jobs(scale, axis):
        run = run_apart("benchmarks.training:run_training", job, cuda=scale.cuda)
        if "error" in run:
            print(f"{AXES[axis]} {point['x']:,}: {run['error']}")
            continue
        seconds = statistics.median(run["step_seconds"][WARM_UP:])
        point |= {
            "seconds_per_step": seconds,
            "seconds_per_pair": seconds / point["pairs_per_step"],
            "peak_gib": run["peak_bytes"] / 2**30,
            "device": run["device"],
        }
        points.append(point)
    return points


def exponent(points: Sequence[dict[str, Any]]) -> float:
    """b of the least-squares fit log(seconds per step) = log a + b log x."""
    x, y = (np.log([point[key] for point in points]) for key in ("x", "seconds_per_step"))
    return float(np.polyfit(x, y, 1)[0])


def straight_line(points: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Slope and intercept of peak memory (GiB) over x, and R^2."""
    x, y = (np.array([point[key] for point in points]) for key in ("x", "peak_gib"))
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - (slope * x + intercept)
    return float(slope), float(intercept), float(1 - (rest @ rest) / max(1e-12, ((y - y.mean()) ** 2).sum()))


def sharing(points: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """How much faster a step is with the prompt computed once, beside the ratio of the tokens."""
    gains = []
    for once, twice in zip(points[::2], points[1::2], strict=True):
        prompt, chosen, rejected = once["lengths"]
        tokens = (2 * prompt + chosen + rejected) / (prompt + chosen + rejected)
        gains.append({"x": once["x"], "tokens": tokens, "time": twice["seconds_per_step"] / once["seconds_per_step"]})
    rows = [list(gain.values()) for gain in gains]
    print_table("gain by sharing the prompt", (AXES["share"] + " (%)", "by tokens", "measured"), rows)
    return gains


def report_axis(axis: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Print an axis, and its fits for the JSON."""
    shown = ("x", "shared", "seconds_per_step", "seconds_per_pair", "peak_gib")
    rows = [[str(point[key]) if key == "shared" else point[key] for key in shown] for point in points]
    print_table(AXES[axis], (AXES[axis], "shared", "s/step", "s/pair", "peak GiB"), rows)
    if axis == "share":
        return {"points": points, "sharing": sharing(points)}
    fits = {"exponent": exponent(points)}
    print(f"seconds per step grow with the power {fits['exponent']:.3f}")
    if axis == "tokens":
        slope, intercept, r2 = straight_line(points)
        fits |= {"bytes_per_token": slope * 2**30, "intercept_gib": intercept, "memory_r2": r2}
        print(f"memory: {slope * 2**20:.1f} KiB a token and {intercept:.2f} GiB; straight line R^2 = {r2:.4f}")
    return {"points": points, **fits}


def draw(results: dict[str, dict[str, Any]], folder: Any, name: str, about: dict[str, Any]) -> None:
    """Seconds per pair along every axis, and memory over tokens."""
    with picture(folder, name, about, 2, 3, (4.2, 3.0)) as grid:
        panels = [*grid[0], *grid[1]]
        for panel, (axis, result) in zip(panels, results.items(), strict=False):
            for number, (shared, label) in enumerate(((True, "prompt once"), (False, "prompt twice"))):
                points = [point for point in result["points"] if point["shared"] is shared]
                _line(panel, points, "seconds_per_pair", label, number)
            panel.set(xlabel=AXES[axis], ylabel="seconds per pair", title="gain by sharing the prompt")
            if axis == "share":
                panel.set_xlabel(f"{AXES[axis]} (%)")
                panel.legend()
            else:
                panel.set_title(f"seconds per step ~ x^{result['exponent']:.2f}")
                panel.set_xscale("log", base=2)
        if "tokens" in results:
            _draw_memory(panels[-1], results["tokens"])
        for panel in panels:
            panel.set_visible(bool(panel.lines))
            panel.set_ylim(0, 1.15 * max((y for line in panel.lines for y in line.get_ydata()), default=1))
            panel.xaxis.set_major_formatter("{x:,.0f}")


def _draw_memory(panel: Any, tokens: dict[str, Any]) -> None:
    _line(panel, tokens["points"], "peak_gib", "peak", 0)
    x = np.array([point["x"] for point in tokens["points"]])
    line = tokens["bytes_per_token"] / 2**30 * x + tokens["intercept_gib"]
    panel.plot(x, line, color=COLOURS[1], linestyle="--", label=f"line, R² = {tokens['memory_r2']:.4f}")
    panel.legend()
    panel.locator_params(axis="x", nbins=5)
    panel.set(xlabel=AXES["tokens"], ylabel="peak memory (GiB)", title="memory")


def _line(panel: Any, points: Sequence[dict[str, Any]], key: str, label: str, number: int) -> None:
    if points:
        x, y = ([point[name] for point in points] for name in ("x", key))
        panel.plot(x, y, color=COLOURS[number], marker=MARKERS[number], label=label)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and write JSON and a picture."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser, list(SCALES))
    parser.add_argument("--axes", nargs="*", choices=list(AXES), default=list(AXES), help="default: all")
    given = parser.parse_args(argv)
    preset = given.preset or default_preset()
    scale, about = SCALES[preset], environment("benchmarks.scaling", argv)
    results = {axis: report_axis(axis, measure(scale, axis)) for axis in given.axes}
    device = next(point["device"] for result in results.values() for point in result["points"])
    name = f"scaling_{slug(device)}"
    base = {"shape": scale.shape, "lengths": scale.lengths, "pairs": scale.pairs, "timed_steps": scale.steps}
    write_json({**about, "preset": preset, "base": base, "results": results}, given.output, name)
    draw(results, given.output, name, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
