"""`simpo analyze` on this process's share: python analyze.py MODEL DATA FOLDER."""

import sys

from simpo.cli import main

if __name__ == "__main__":
    model, data, folder = sys.argv[1:]
    words = ["analyze", "--models", model, "--data", data, "--output", folder, "--prompts", "2"]
    sys.exit(main([*words, "--max-new-tokens", "4", "--use_cpu=true"]))
