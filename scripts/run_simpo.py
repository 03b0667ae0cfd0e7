"""Train with SimPO: the same as `simpo train`, for `accelerate launch`.

ACCELERATE_LOG_LEVEL=info accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml \
    scripts/run_simpo.py training_configs/llama-3-8b-instruct-simpo-v2.yaml [--key=value ...]
"""

import sys
from pathlib import Path


def main() -> int:
    # The checkout that this script belongs to comes before an installed package of another version.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from simpo.cli import main as run

    return run(["train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
