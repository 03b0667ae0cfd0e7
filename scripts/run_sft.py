"""Supervised fine-tuning: the same as `simpo sft`, for `accelerate launch`.

ACCELERATE_LOG_LEVEL=info accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml \
    scripts/run_sft.py training_configs/sft/mistral-7b-base-sft.yaml [--key=value ...]
"""

import sys
from pathlib import Path


def main() -> int:
    # The checkout that this script belongs to comes before an installed package of another version.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from simpo.cli import main as run

    return run(["sft", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
