"""How much memory loading, mixing, comparing, holding out and tokenising takes.

    python -m tests.workers.data_memory 1000000 /tmp/somewhere [--deduplicate near] [--num-proc 2]

Writes so many pairs of 69 words, half to a .jsonl and half to a .parquet file, then reads them in a fresh process and
prints JSON: rows, seconds, and peaks in MiB over that process and its workers, pages that they share counted once.
`own` is memory that cannot be given back; `resident` also counts pages of the files that are mapped, which the system
takes back when it is short.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

GOLDEN_TINY = Path(__file__).parents[1] / "golden" / "tiny"
MIXED = ("a.jsonl", "b.parquet")


def write(folder: Path, pairs: int) -> None:
    """Half of the pairs as messages in lines of JSON, half as texts in parquet; one in 20 stands twice."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]

    def row(number: int) -> tuple[str, str, str]:
        own = random.Random(number if number % 20 else number // 40)
        return tuple(" ".join(own.choices(words, k=count)) for count in (25, 22, 22))  # type: ignore[return-value]

    half = pairs // 2
    with (folder / MIXED[0]).open("w") as file:
        for number in range(half):
            prompt, *answers = row(number)
            sides = [
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] for answer in answers
            ]
            file.write(json.dumps({"chosen": sides[0], "rejected": sides[1]}) + "\n")
    schema = pa.schema(dict.fromkeys(("prompt", "chosen", "rejected"), pa.string()))
    with pq.ParquetWriter(folder / MIXED[1], schema) as file:
        for start in range(half, pairs, 10_000):
            rows = [row(number) for number in range(start, min(start + 10_000, pairs))]
            file.write_batch(pa.record_batch(list(zip(*rows, strict=True)), schema=schema))


class Watch(threading.Thread):
    """Peaks of memory of this process and all its children, four times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: Counter[str] = Counter()

    def run(self) -> None:
        while True:
            found: Counter[str] = Counter()
            for pid in family(os.getpid()):
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                except OSError:  # it has just ended
                    continue
                values = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
                found["own"] += values["Pss_Anon"] >> 10
                found["resident"] += values["Pss"] >> 10
            self.peaks |= found
            time.sleep(0.25)


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        children = []
    return [pid, *(member for child in children for member in family(child))]


def measure(folder: Path, deduplicate: str, num_proc: int) -> None:
    """Load and tokenise what `write` wrote, and print what it took."""
    from transformers import AutoTokenizer

    from simpo.data.config import DataConfig
    from simpo.data.load import load_mix
    from simpo.data.tokenize import TokenizeOptions, tokenize_pairs

    tokenizer = AutoTokenizer.from_pretrained(GOLDEN_TINY)
    watch = Watch()
    watch.start()
    time.sleep(0.5)
    before, start = dict(watch.peaks), time.perf_counter()
    settings = DataConfig(
        {str(folder / name): 1.0 for name in MIXED},
        deduplicate=deduplicate,  # type: ignore[arg-type]
        test_size=0.01,
        dataset_weights={str(folder / MIXED[0]): 1.5},
    )
    seconds = {}
    train, evaluation, loaded = load_mix(settings, num_proc=num_proc)
    seconds["load"] = time.perf_counter() - start
    peaks = {"load": dict(watch.peaks)}
    _, report = tokenize_pairs(train, tokenizer, TokenizeOptions(), num_proc=num_proc)
    seconds["all"] = time.perf_counter() - start
    peaks["all"] = dict(watch.peaks)
    print(json.dumps({
        "total": loaded.total, "dropped": loaded.dropped, "train": len(train), "held_out": len(evaluation or []),
        "kept": report.kept, "tokens": report.total_tokens, "seconds": seconds, "before": before, "peaks": peaks,
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--deduplicate", default="exact")
    parser.add_argument("--num-proc", type=int, default=2)
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    if args.measure:
        measure(args.folder, args.deduplicate, args.num_proc)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    write(args.folder, args.pairs)
    environment = os.environ | {"HF_DATASETS_CACHE": str(args.folder / "cache"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run(
        [sys.executable, "-m", "tests.workers.data_memory", *sys.argv[1:], "--measure"], env=environment, check=True
    )


if __name__ == "__main__":
    main()
