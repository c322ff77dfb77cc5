# make demo: train GM-VQ on real photographs and write runs/photos/report.html.   make test: the tests.
# Both set up .venv by themselves, and only when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done

.PHONY: setup demo demo-generate test coverage test-slow test-faults lint docs compare experiment bench profile clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gmvq needs Python 3.11 or newer: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint,docs,tensorboard]'
	@touch $@

demo: setup
	$(BIN)/gmvq train photos
	@echo "Open runs/photos/report.html"

# A tokenizer of the bundled digits, a prior over its codes, new digits and what a classifier says of them: minutes.
demo-generate: setup
	$(BIN)/gmvq train digits
	$(BIN)/gmvq fit-prior runs/digits --steps 600 --width 128 --depth 4
	$(BIN)/gmvq sample runs/digits -n 60 --columns 10 --guidance 1.5
	$(BIN)/gmvq judge runs/digits --guidance 1.5
	@echo "Open runs/digits/prior/samples.png and runs/digits/prior/judged.png"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --durations=15 $(ARGS)

# The same, and what of the code they reach: a fifth longer.
coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-report=term --cov-fail-under=90 $(ARGS)

# Every layout, mask and precision compiled, for each member in each composition: an hour on two cores.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow $(ARGS)

# Every crash point, 1,000 mutations of each kind of file, a full disk at each write of each verb: ten minutes.
# make test has a small part of it. A failure prints what sees it again: GMVQ_FAULTS_SEED=7 make test-faults.
test-faults: setup
	GMVQ_FAULTS=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --durations=10 tests/faults $(ARGS)

lint: setup
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/lint-imports
	$(BIN)/basedpyright

# The pages in docs/_build/html. Warnings are errors, as in CI.
docs: setup
	$(BIN)/python -m sphinx -b html -W -E --keep-going --quiet docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

# The tables of docs/results.md: an hour on two cores. DATA is where CIFAR-10 and Fashion-MNIST are.
DATA ?= ../shared/data
compare: setup
	$(BIN)/gmvq compare photos cifar10 fashion-mnist --data cifar10=$(DATA)/cifar10 --data fashion-mnist=$(DATA)/fashion_mnist --steps 600 --threads 1
	$(BIN)/python benchmarks/drop_in.py --out runs/drop_in.json

# gmvq beside faiss, vector-quantize-pytorch and plain PyTorch on this machine: half an hour on two cores, runs/bench/bench.md.
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/gmvq bench $(ARGS)

# The tables and the page of the experiment; a day on two CPU cores. Rows that are there are not run again.
RESULTS = benchmarks/leaderboard/results
MEASURE = $(BIN)/gmvq compare --out runs/leaderboard --seeds 3 $(ARGS)
experiment: setup
	$(MEASURE) --protocol cifar10-8x8-k1024-short --quantizers all studies --data $(DATA)/cifar10 --table $(RESULTS)/cifar10-8x8-k1024-short.json
	$(MEASURE) --protocol fashion-mnist-7x7-k1024-short --quantizers all --data $(DATA)/fashion_mnist --table $(RESULTS)/fashion-mnist-7x7-k1024-short.json
	$(MEASURE) --protocol celeba64-16x16-k1024-short --quantizers all --data $(DATA)/celeba --table $(RESULTS)/celeba64-16x16-k1024-short.json
	$(MEASURE) --protocol cifar10-8x8-k1024-small --quantizers study:overfitting --data $(DATA)/cifar10 --table $(RESULTS)/cifar10-8x8-k1024-small.json
	$(BIN)/python benchmarks/leaderboard/gradients.py --out $(RESULTS)/gradients.json
	$(BIN)/python benchmarks/leaderboard/page.py

# Where the time of a training step on CIFAR-10 goes: runs/profile.json.
profile: setup
	$(BIN)/python benchmarks/profile_step.py --data $(DATA)/cifar10 $(ARGS)

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .ruff_cache .hypothesis .coverage*
