"""What the monitors cost: runs with their defaults and without, in turns, of as many steps and pairs as a real one.

    python -m benchmarks.monitors                        # 400 steps of 128 pairs, three times each
    python -m benchmarks.monitors --steps 40 --repeats 1  # to try it

A small Llama on a CPU, trained without evaluations, so that the monitors look eleven times: 704 pairs forward, and 44
answers. Processor time is compared, since the clock says less on a machine with other work; and what the looks took is
measured by itself, since runs differ by more than that.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback
from transformers.utils import logging

from benchmarks.data import TOKENIZER
from benchmarks.report import RESULTS, environment, write_json
from benchmarks.training import build_model
from simpo import SimPOConfig, SimPOTrainer

SHAPE = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
Monitor = Literal["off", "warn"]
PROMPT, RESPONSE = (16, 48), (32, 96)  # tokens, from and to


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pairs-per-step", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    given = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    pairs = make_pairs(given.steps * given.pairs_per_step)
    runs: dict[Monitor, list[dict[str, float]]] = {"off": [], "warn": []}
    for turn in range(given.repeats):
        for monitor in get_args(Monitor)[:: 1 if turn % 2 == 0 else -1]:
            runs[monitor].append(measure(pairs, given.pairs_per_step, monitor))
            print(monitor, runs[monitor][-1], flush=True)
    medians = {name: statistics.median(run["processor"] for run in found) for name, found in runs.items()}
    share = medians["warn"] / medians["off"] - 1
    inside = statistics.median(run["looks"] / run["processor"] for run in runs["warn"])
    print(
        f"{given.steps} steps of {given.pairs_per_step} pairs: {medians['off']:.1f} s without, {medians['warn']:.1f} s "
        f"with monitors ({share:+.1%}); {inside:.1%} of the processor time was spent in looks"
    )
    result = {"steps": given.steps, "pairs_per_step": given.pairs_per_step, "runs": runs, "median_seconds": medians,
              "overhead": share, "share_in_looks": inside}  # fmt: skip
    write_json(
        {"environment": environment("benchmarks.monitors", sys.argv[1:]), **result}, given.output, "monitors_cpu"
    )


def make_pairs(count: int) -> Dataset:
    """Random token ids of short chats' lengths."""
    rng = random.Random(0)
    bounds = {"prompt_ids": PROMPT, "chosen_ids": RESPONSE, "rejected_ids": RESPONSE}
    return Dataset.from_list(
        [
            {
                key: [rng.randrange(3, SHAPE["vocab_size"]) for _ in range(rng.randint(*bound))]
                for key, bound in bounds.items()
            }
            for _ in range(count)
        ]
    )


def measure(pairs: Dataset, pairs_per_step: int, monitor: Monitor) -> dict[str, float]:
    """Processor seconds of one run, of its looks, and seconds by the clock."""
    with tempfile.TemporaryDirectory(prefix="simpo-monitors-") as folder:
        args = SimPOConfig(
            output_dir=folder, monitor=monitor, total_train_batch_size=pairs_per_step, per_device_train_batch_size=16,
            per_device_eval_batch_size=16, max_length=256, max_prompt_length=64, learning_rate=1e-5, logging_steps=5,
            save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, optim="adamw_torch",
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        trainer = SimPOTrainer(build_model(SHAPE, cuda=False), args, pairs, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        looks = _count_looks(trainer)
        before, start = time.process_time(), time.perf_counter()
        trainer.train()
        return {
            "processor": time.process_time() - before,
            "clock": time.perf_counter() - start,
            "looks": sum(looks),
            "count": len(looks),
        }


def _count_looks(trainer: SimPOTrainer) -> list[float]:
    """Processor seconds of each look, filled in while the run goes."""
    seconds: list[float] = []
    for callback in trainer.callback_handler.callbacks:
        look: Any = getattr(callback, "_look", None)
        if look is None:
            continue

        def timed(look: Any = look) -> None:
            start, step = time.process_time(), len(trainer.state.log_history)
            look()
            if len(trainer.state.log_history) > step:
                seconds.append(time.process_time() - start)

        callback._look = timed  # type: ignore[attr-defined]
    return seconds


if __name__ == "__main__":
    main()
