"""SimPO from end to end on a CPU, without a network, in a few minutes: `make demo`, or `python scripts/demo.py`.

A small Llama learns to answer questions in every way, good or bad (`simpo sft`). It samples answers (`simpo generate`),
a program scores them (`simpo annotate`), best and worst make pairs (`simpo binarize`), SimPO trains on these (`simpo
train`), and the answers to held-out questions are compared with those from before. Every command is printed.

Settings of the SimPO run (training_configs/demo.yaml) can be overridden: `python scripts/demo.py --learning_rate=1e-3`
shows what too high a rate does to the answers.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when SimPO has won clearly, 1 when it has not, 2 after an error that the user can correct."""
    parser = argparse.ArgumentParser(
        usage="demo.py [options] [--key=value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an abbreviation could be a setting
    )
    parser.add_argument("--quick", action="store_true", help="a much smaller model on fewer questions, to try the path")
    parser.add_argument("--output", type=Path, help="folder to write into (default: outputs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of town, questions, weights and batches (default: 0)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="run N seeds from --seed on; one table of all"
    )
    given, overrides = parser.parse_known_args(argv)
    if given.seed < 0 or given.seeds < 1:
        parser.error("--seed must be 0 or more, --seeds at least 1")
    output = None if given.output is None else given.output.absolute()

    # Before anything heavy is imported: nothing is looked up on a network or on another device.
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.chdir(ROOT)  # the paths in training_configs/demo start here
    sys.path.insert(0, str(ROOT))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("error: the demo draws with matplotlib; run `make demo`, or pip install -e '.[plots]'", file=sys.stderr)
        return 2
    from scripts.demo_run import FULL, QUICK, run_demo, run_seeds

    if given.seeds > 1:
        return run_seeds(range(given.seed, given.seed + given.seeds), output, overrides, quick=given.quick)
    return run_demo(QUICK if given.quick else FULL, output, given.seed, overrides)


if __name__ == "__main__":
    sys.exit(main())
