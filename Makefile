# Every target builds .venv by itself when it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# one thread per test process: many small matrix products in parallel beat one product on many threads
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8

.PHONY: help synth test test-slow prove lint format bench calibrate clean

help:
	@echo "synth      the demonstration: a world, an SAE, the decomposition beside the truth (runs/synth)"
	@echo "test       the tests, statistical suites at reduced size"
	@echo "test-slow  the full-size statistical suites"
	@echo "prove      every theorem of proofs/ attacked with 1,000 cases, and its wrong twins"
	@echo "lint       ruff, mypy and the layering contract"
	@echo "calibrate  bias and coverage of the estimator, beside four customary ones"
	@echo "bench      speed of the pass, of worlds and of training, beside this machine's matrix product and SAELens"
	@echo "clean      remove .venv, caches and runs"

.venv/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/.dev: .venv/.base
	$(PIP) --editable '.[dev]'
	touch $@

.venv/.bench: .venv/.dev
	$(PIP) --editable '.[bench]'
	touch $@

synth: .venv/.base
	$(BIN)/darkmatter synth --features 4096 --dense-dim 32

test: .venv/.dev
	$(PYTEST)

test-slow: .venv/.dev
	$(PYTEST) -m slow

prove: .venv/.base
	$(BIN)/darkmatter prove --twins

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.bench
	$(BIN)/python -m benchmarks.moments
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.dictionary
	$(BIN)/python -m benchmarks.training

calibrate: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.calibrate

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
