"""Every objective of SimPO's comparison on the demo's pairs: `make demo-objectives`.

One small Llama is taught to answer in every way, good or bad, and then trained with each objective on the ordinary path
(`training_configs/demo.yaml` with a file of `training_configs/objectives/` behind it). A table, a CSV and a picture
compare the models on held-out pairs; findings of the paper are looked for and said to be seen or not.

The objectives' settings were chosen by the share of good answers at another seed: `--search --seed=1` repeats that.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("outputs/demo-objectives")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 unless something breaks, whatever is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a much smaller model on fewer pairs, to try the path")
    parser.add_argument("--search", action="store_true", help="train with every setting that was tried, and compare")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these objectives (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder to write into (default: {OUTPUT})")
    parser.add_argument("--seed", type=int, default=0, help="of the town, the pairs and the first weights (default: 0)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time (default: 2)")
    given = parser.parse_args(argv)
    output = given.output.absolute()

    # Before anything heavy is imported: nothing is looked up on a network or on another device.
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("error: this draws with matplotlib; run `make demo-objectives`, or pip install -e '.[plots]'",
              file=sys.stderr)  # fmt: skip
        return 2
    from scripts.demo_compare import candidates, compare

    try:
        trials = candidates(search=given.search, only=given.only)
    except KeyError as error:
        print(f"error: no objective of the comparison is called {error}", file=sys.stderr)
        return 2
    return compare(trials, output, quick=given.quick, seed=given.seed, jobs=max(1, given.jobs), search=given.search)


if __name__ == "__main__":
    sys.exit(main())
