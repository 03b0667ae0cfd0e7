"""Pairs per second and peak memory: this trainer against TRL's CPOTrainer, and against itself with ideas taken away.

    python -m benchmarks.throughput                           # CPU preset where there is no GPU, at most 10 minutes
    python -m benchmarks.throughput --data hh --repeats 1
    python -m benchmarks.throughput --preset gpu --models llama-3.2-1b

Every run has a process of its own, with the same token ids in the same order, model, precision, total batch and
optimizer; the loss curves must agree. The variants take turns within each repeat. The table holds medians over repeats,
and medians of ratios that were formed within a repeat.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import LENGTHS, Pair, is_real, load_pairs
from benchmarks.presets import PRESETS, SHAPES, TRL, VARIANTS, Case, Preset, TrainingJob
from benchmarks.processes import run_apart
from benchmarks.report import (
    COLOURS,
    GREY,
    add_common_arguments,
    default_preset,
    environment,
    picture,
    print_table,
    slug,
    write_json,
)
from simpo.flops import utilisation

WARM_UP = 1
Run = dict[str, Any]


def measure(
    cases: Sequence[Case], preset: Preset, variants: Sequence[str], repeats: int
) -> dict[Case, list[list[Run]]]:
    """Runs of all variants, repeat by repeat, for every case that TRL's trainer has the memory for.

    TRL goes first in a repeat; the micro-batch that is best for it is what `padded` gets too.
    """
    start = time.monotonic()
    done: dict[Case, list[list[Run]]] = {case: [] for case in cases}
    for repeat in range(repeats):
        minutes = (time.monotonic() - start) / 60
        if repeat and minutes * (repeat + 1) / repeat > preset.minutes:
            print(f"stopping after {repeat} of {repeats} repeats: the next would end after {preset.minutes:g} minutes")
            break
        for case in list(done):
            pairs = _pairs(case)
            sizes = (done[case][0][0]["pairs_per_microbatch"],) if repeat else case.peer_pairs
            tried = [_run(case, preset, TRL, pairs, size) for size in sizes]
            peer = max(tried, key=pairs_per_second)
            if "error" in peer:
                print(f"{case.data}, {case.model}: left out, TRL's trainer does not fit into memory")
                del done[case]
                continue
            size = peer["pairs_per_microbatch"]
            done[case].append([peer, *(_run(case, preset, name, pairs, size) for name in variants)])
    return done


def _pairs(case: Case) -> list[Pair]:
    count = (WARM_UP + case.steps) * case.pairs_per_step
    return load_pairs(case.data, count, max_length=case.max_length, vocabulary=SHAPES[case.model]["vocab_size"])


def _run(case: Case, preset: Preset, name: str, pairs: list[Pair], peer_pairs: int) -> Run:
    variant = VARIANTS.get(name)  # none of them: TRL
    padded = variant is None or variant.padded
    job = TrainingJob(
        variant,
        pairs,
        SHAPES[case.model],
        max_length=case.max_length,
        pairs_per_step=case.pairs_per_step,
        pairs_per_microbatch=peer_pairs if padded else case.pairs,
        max_tokens=case.max_tokens,
        learning_rate=preset.learning_rate,
        cuda=preset.cuda,
    )
    run: Run = run_apart("benchmarks.training:run_training", job, cuda=preset.cuda)
    run |= {"variant": name, "pairs_per_step": case.pairs_per_step}
    outcome = run.get("error") or f"{pairs_per_second(run):.2f} pairs/s"
    print(f"{case.data}, {case.model}: {name}: {outcome}", flush=True)
    return run


def pairs_per_second(run: Run) -> float:
    """By the median of the timed steps."""
    return run["pairs_per_step"] / statistics.median(run["step_seconds"][WARM_UP:]) if "error" not in run else 0.0


def summarize(repeats: list[list[Run]]) -> list[dict[str, Any]]:
    """A row for each variant; TRL is the first."""
    rows = []
    for column, first in enumerate(repeats[0]):
        runs = [repeat[column] for repeat in repeats]
        if any("error" in run for run in runs):
            rows.append({"variant": first["variant"], "error": first.get("error", "failed in a later repeat")})
            continue
        peers = [repeat[0] for repeat in repeats]
        flops = statistics.median(_per_second(run, "step_flops") for run in runs)
        rows.append(
            {
                "variant": first["variant"],
                "pairs_per_second": statistics.median(map(pairs_per_second, runs)),
                "speed_over_trl": _ratio(runs, peers, pairs_per_second),
                "tokens_per_second": statistics.median(_per_second(run, "step_tokens") for run in runs),
                "peak_gib": statistics.median(run["peak_bytes"] for run in runs) / 2**30,
                "memory_over_trl": _ratio(runs, peers, lambda run: run["peak_bytes"]),
                "model_tflops": flops / 1e12,
                "mfu": utilisation(flops, 1.0, first["device"]),
                "losses": first["losses"],
            }
        )
    return rows


def _per_second(run: Run, key: str) -> float:
    return sum(run[key][WARM_UP:]) / sum(run["step_seconds"][WARM_UP:])


def _ratio(runs: list[Run], peers: list[Run], value: Any) -> float:
    return statistics.median(value(run) / value(peer) for run, peer in zip(runs, peers, strict=True))


def curve_difference(repeats: list[list[Run]]) -> float:
    """Largest difference between TRL's loss and any other at the same step, in any repeat."""
    reference = repeats[0][0]["losses"]
    curves = [run["losses"] for repeat in repeats for run in repeat if "error" not in run]
    return max(abs(a - b) for curve in curves for a, b in zip(curve, reference, strict=True))


def draw(results: list[dict[str, Any]], folder: Path, name: str, about: dict[str, Any]) -> None:
    """Bars of pairs per second and of peak memory."""
    with picture(folder, name, about, len(results), 2, (5.5, 2.4)) as axes:
        for line, result in zip(axes, results, strict=True):
            rows = [row for row in result["rows"] if "error" not in row]
            names = [row["variant"] for row in rows]
            colours = [GREY, *[COLOURS[0]] * (len(rows) - 1)]
            for axis, key, ratio, label in (
                (line[0], "pairs_per_second", "speed_over_trl", "pairs per second"),
                (line[1], "peak_gib", "memory_over_trl", "peak memory (GiB)"),
            ):
                bars = axis.barh(names, [row[key] for row in rows], color=colours)
                axis.bar_label(bars, [f"{row[key]:.2f}  ({row[ratio]:.2f} x)" for row in rows], padding=3)
                axis.invert_yaxis()
                axis.margins(x=0.3)
                axis.grid(False, axis="y")
                axis.set(xlabel=label, title=f"{result['data']}, {result['model']}")


_COLUMNS = {
    "variant": "variant", "pairs_per_second": "pairs/s", "speed_over_trl": "x TRL", "tokens_per_second": "tokens/s",
    "peak_gib": "peak GiB", "memory_over_trl": "x TRL", "model_tflops": "model TFLOP/s", "mfu": "MFU",
}  # fmt: skip


def report_case(case: Case, preset: Preset, repeats: list[list[Run]]) -> dict[str, Any]:
    """Print a case's table, and everything about it for the JSON."""
    rows, difference = summarize(repeats), curve_difference(repeats)
    size = repeats[0][0]["pairs_per_microbatch"]
    title = f"{case.data}, {case.model}: {len(repeats)} repeats; TRL and padded in micro-batches of {size} pairs"
    print_table(title, list(_COLUMNS.values()), [[row.get(key) for key in _COLUMNS] for row in rows])
    print(f"largest difference between two loss curves: {difference:.2g} (allowed: {preset.tolerance:g})")
    for row in rows:
        print(f"  {row['variant']}: {row.get('error') or ' '.join(f'{loss:.4f}' for loss in row['losses'])}")
    real = "real pairs" if is_real(case.data) else "random ids with such lengths"
    agreement = {"curve_difference": difference, "curves_agree": difference <= preset.tolerance}
    about = {"pairs_are": real, "shape": SHAPES[case.model]}
    return {**case._asdict(), **about, "rows": rows, **agreement, "repeats": repeats}


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and write JSON and a picture; 1 where loss curves differ."""
    argv = sys.argv[1:] if argv is None else list(argv)
    given = _parse(argv)
    preset = PRESETS[given.preset]
    cases = [case for case in preset.cases if given.data in (case.data, "all")]
    cases = [case for case in cases if not given.models or case.model in given.models]
    if not cases:
        raise SystemExit(f"the preset {given.preset} has no such case: {[case[:2] for case in preset.cases]}")
    variants = list(VARIANTS) if given.variants is None else given.variants
    about = environment("benchmarks.throughput", argv)
    preset = preset._replace(minutes=given.minutes or preset.minutes)
    measured = measure(cases, preset, variants, given.repeats or preset.repeats)
    if not measured:
        raise SystemExit("nothing fits into this device's memory")
    results = [report_case(case, preset, repeats) for case, repeats in measured.items()]
    device = next(iter(measured.values()))[0][0]["device"]
    name = f"throughput_{slug(device)}"
    write_json({**about, "preset": given.preset, "results": results}, given.output, name)
    draw(results, given.output, name, about)
    return 0 if all(result["curves_agree"] for result in results) else 1


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser, list(PRESETS))
    parser.add_argument("--data", choices=[*LENGTHS, "all"], default="all")
    parser.add_argument("--models", nargs="*", choices=list(SHAPES), help="default: all of the preset")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), help="beside TRL; default: all")
    parser.add_argument("--repeats", type=int, help="default: the preset's")
    parser.add_argument("--minutes", type=float, help="begin no repeat that would end later (default: the preset's)")
    given = parser.parse_args(argv)
    given.preset = given.preset or default_preset()
    return given


if __name__ == "__main__":
    sys.exit(main())
