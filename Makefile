# make demo: train GM-VQ on real photographs and write runs/photos/report.html.   make test: the tests.
# Both set up .venv by themselves, and only when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done

.PHONY: setup demo test lint compare clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gmvq needs Python 3.11 or newer: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint,tensorboard]'
	@touch $@

demo: setup
	$(BIN)/gmvq train photos
	@echo "Open runs/photos/report.html"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov --cov-report=term --cov-fail-under=90 $(ARGS)

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/basedpyright

# The tables of docs/results.md: an hour on two cores. DATA is where CIFAR-10 and Fashion-MNIST are.
DATA ?= ../shared/data
compare: setup
	$(BIN)/gmvq compare photos cifar10 fashion-mnist --data cifar10=$(DATA)/cifar10 --data fashion-mnist=$(DATA)/fashion_mnist --steps 600 --threads 1
	$(BIN)/python benchmarks/drop_in.py --out runs/drop_in.json

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .coverage*
