"""Evaluate pairs on this process's share of them: python pairs.py MODEL DATA FOLDER."""

import sys

from simpo.evals.pairs.measure import run_pairs
from simpo.evals.pairs.settings import PairsSettings

if __name__ == "__main__":
    model, data, folder = sys.argv[1:]
    run_pairs(PairsSettings(model, folder, dataset_name=data, use_cpu=True))
