# make env    an environment in .venv with everything that tests and demo need
# make demo   SFT, on-policy samples, a checker, pairs, SimPO, held-out answers: a few minutes on a CPU, no network
# make demo-seeds   the same with three seeds, and one table of them
# make demo-objectives   all objectives on the demo's pairs, one table
# make test   lint, format, types, all tests, a soak of five minutes
# make soak-short   five minutes of small runs that are stopped, killed and resumed: nothing may be left behind
# make soak   the same for an hour, and memory must be flat; table and picture into benchmarks/results
# make bench  speed and memory on a CPU in about a quarter of an hour, into benchmarks/results
#
# On a machine without a GPU, a CPU build of PyTorch saves gigabytes:
#   make env PIP_TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
PIP_TORCH_ARGS ?=
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two workers with one thread each: more threads than cores make the small models of the tests slower.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help env demo demo-seeds demo-objectives bench soak soak-short test lint format types pytest clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' $(MAKEFILE_LIST)

env: $(STAMP)

# torch goes first: it is the one package whose build depends on the machine, and deepspeed looks at it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make env PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar off -c constraints.txt $(PIP_TORCH_ARGS) torch
	$(PIP) install --progress-bar off -c constraints.txt -e '.[dev,deepspeed,plots]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python scripts/demo.py

demo-seeds: $(STAMP)
	$(BIN)/python scripts/demo.py --seeds 3

demo-objectives: $(STAMP)
	$(BIN)/python scripts/demo_objectives.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.scaling --preset cpu
	$(BIN)/python -m benchmarks.throughput --preset cpu

soak: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m benchmarks.soak.soak --minutes 60

soak-short: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m benchmarks.soak.soak --minutes 5 --output outputs/soak

test: lint types pytest soak-short

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

# Tests that start several training processes fill the machine alone, so they run after the others, one by one.
pytest: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(PYTEST_WORKERS) -m "not multiprocess" $(PYTEST_ARGS)
	$(TEST_ENV) $(BIN)/python -m pytest -m multiprocess $(PYTEST_ARGS)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache outputs
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
