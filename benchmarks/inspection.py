"""How long `simpo inspect` takes on data of UltraFeedback's lengths, from a file that nothing has cached yet.

    python -m benchmarks.inspection                  # 60,000 pairs, about as many as UltraFeedback has

Wall-clock time, and processor time over all cores: on a machine with other work the second says more.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import RESULTS, ROOT, environment, write_json
from benchmarks.tokenization import corpus, make_rows, make_tokenizer


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60_000)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="simpo-inspection-") as folder:
        seconds, processor, page = measure(Path(folder), given.pairs)
    print(f"{given.pairs:,} pairs: {seconds:.0f} s, {processor:.0f} s of processor time, page of {page / 1024:.0f} kB")
    result = {"pairs": given.pairs, "seconds": seconds, "processor_seconds": processor, "page_bytes": page}
    info = environment("benchmarks.inspection", sys.argv[1:])
    write_json({"environment": info, **result}, given.output, "inspection_cpu")


def measure(folder: Path, pairs: int) -> tuple[float, float, int]:
    """Seconds by the clock, seconds of processor time, and bytes of the page."""
    words = corpus()
    tokenizer = make_tokenizer(words)
    tokenizer.save_pretrained(folder)
    data, page = folder / "pairs.jsonl", folder / "report.html"
    with data.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in make_rows(words, tokenizer, pairs))
    command = [sys.executable, "-m", "simpo.cli", "inspect", "--model", str(folder), "--data", str(data)]
    command += ["--max_length=2048", "--max_prompt_length=1800", "--html", str(page)]
    environ = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    environ.pop("TOKENIZERS_PARALLELISM", None)  # left out, the library uses all cores
    start, before = time.perf_counter(), _processor_seconds()
    subprocess.run(command, check=True, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, _processor_seconds() - before, page.stat().st_size


def _processor_seconds() -> float:
    """User and system time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
