# Every target works in a fresh clone: it first makes .venv from the pinned requirements.
PYTHON ?= $(firstword $(shell which python3.11 python3))
BIN := .venv/bin

.PHONY: demo test test-all figures lint

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: .venv/installed
	$(BIN)/vae-jax train experiments/quickstart.py --workdir runs/demo
	$(BIN)/vae-jax evaluate runs/demo --num-samples 1000

test: .venv/installed
	$(BIN)/python -m pytest -n 2

test-all: .venv/installed
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

figures: .venv/installed
	$(BIN)/vae-jax figures experiments/aevb.py
	$(BIN)/vae-jax figures experiments/iwae.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
