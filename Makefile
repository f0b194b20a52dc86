# Every target works in a fresh clone: it first makes .venv from the pinned requirements.
PYTHON ?= $(firstword $(shell which python3.11 python3))
BIN := .venv/bin

.PHONY: demo test test-all test-newest figures docs bench lint

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

# The newest JAX, which wants a newer Python: densities, programs, checkpoints and refusals there too.
NEWEST ?= python3.13
ON_NEWEST := $(addprefix tests/test_,$(addsuffix .py,checkpoint compiled distributions float64 grid hostile posteriors))

.venv-newest/installed: pyproject.toml
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

test-newest: .venv-newest/installed
	.venv-newest/bin/python -m pytest -n 2 $(ON_NEWEST)

figures: .venv/installed
	for name in aevb iwae linear_vae vampprior flows hyperspherical vqvae vaegan \
			small_data conditional founding_example rate_distortion; do \
		$(BIN)/vae-jax figures experiments/$$name.py || exit 1; \
	done
	$(BIN)/python scripts/signal_to_noise.py

docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The programs that `make bench` compares with, in an environment of their own.
.venv-peers/installed:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check numpyro pythae torch==2.13.0
	touch $@

bench: .venv/installed .venv-peers/installed
	$(BIN)/python scripts/benchmark.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
