# Everything a user or a contributor runs, on Linux and macOS, with GNU make >= 3.81.
# Each target sets up what it needs first, in $(VENV); `make` alone lists them.
#
#   PYTHON  the interpreter the environment is made from, e.g. PYTHON=python3.12
#   VENV    where the environment lives
#   SITE    where the documentation is built
#   ARGS    passed on to the command of the target, e.g. ARGS="--steps 200"

PYTHON ?= python3
VENV ?= .venv
SITE ?= site
ARGS ?=

# The threads of OpenBLAS spin while they wait, against those of XLA. For matrices of the
# size met here one thread is faster.
export OPENBLAS_NUM_THREADS ?= 1

BIN := $(VENV)/bin
# Programs that are compiled for an example are kept for its next run, where JAX can: see
# "The first call" in docs/performance.md.
EXAMPLE := JAX_COMPILATION_CACHE_DIR="$${JAX_COMPILATION_CACHE_DIR-$(CURDIR)/.cache/jax}" \
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 $(BIN)/python
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv exp9 three-rungs digits mnist runaway published foreign-sampler test test-all bench bench-all bench-gpu lint format types docs \
  docs-check docs-serve tutorials dist clean clean-all

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

venv: $(VENV)/.installed-dev $(VENV)/.installed-docs ## set up the whole environment

exp9: $(VENV)/.installed-examples ## run the exp9 protocol into results/exp9
	$(EXAMPLE) examples/exp9.py --out results/exp9 $(ARGS)

three-rungs: $(VENV)/.installed-examples ## compare predicted, exact and sampled Q
	$(EXAMPLE) examples/three_rungs.py --out results/three_rungs $(ARGS)

digits: $(VENV)/.installed-examples ## does watching Q pay while an RBM trains?
	$(BIN)/python examples/digits.py --out results/digits $(ARGS)

mnist: $(VENV)/.installed-mnist ## sampled gradients beside the exact one, on MNIST
	$(BIN)/python examples/mnist.py --out results/mnist $(ARGS)

runaway: $(VENV)/.installed-examples ## where KL - lambda log Q has no minimum
	$(EXAMPLE) examples/runaway.py --out results/runaway $(ARGS)

published: $(VENV)/.installed-examples ## recompute the published numbers of the field
	$(BIN)/python examples/published.py --out results/published $(ARGS)

foreign-sampler: $(VENV)/.installed-examples $(VENV)/.installed-thrml ## a sampler with stale weights, caught
	$(EXAMPLE) examples/foreign_sampler.py --out results/foreign_sampler $(ARGS)

test: $(VENV)/.installed-dev ## run the tests, except those marked slow
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-all: $(VENV)/.installed-dev ## run every test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "" $(ARGS)

SHORT := naive_jax scipy_solvers lineax_solvers nonreversible_solvers deeptime_chains \
  thrml_chains large bottlenecks modes import_time study accuracy
LONG := windows first_call scaling sharding coverage annealing sampler_power estimator until exp9_time
# Contenders may have all the threads that they want.
BENCH := env -u OPENBLAS_NUM_THREADS $(BIN)/python

bench: $(VENV)/.installed-bench ## check the claims that take seconds, or a minute
	for name in $(SHORT); do $(BENCH) benchmarks/$$name.py || exit 1; done

bench-all: $(VENV)/.installed-bench ## check all of them, and write docs/performance
	for name in $(SHORT) $(LONG); do $(BENCH) benchmarks/$$name.py --all || exit 1; done
	$(BENCH) benchmarks/table.py

bench-gpu: $(VENV)/.installed-bench ## measure what a GPU makes of it, in eight minutes
	$(BENCH) benchmarks/gpu.py $(ARGS)

lint: $(VENV)/.installed-dev ## check style, formatting, and what imports what
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-dev ## apply the formatting and the safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.installed-dev ## check the types
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed-docs ## build the documentation, strictly, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(SITE)

docs-check: docs ## ... and look at every page in a browser, without a network
	$(BIN)/python docs/_check.py $(SITE) $(ARGS)

docs-serve: $(VENV)/.installed-docs ## serve the documentation while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

tutorials: $(VENV)/.installed-tutorials ## execute the tutorials, and store their outputs
	$(BIN)/python .ci/notebooks.py $(ARGS)

dist: $(VENV)/.installed-dist ## build the sdist and the wheel, and try them outside
	$(BIN)/python .ci/dist.py

clean: ## remove caches and build output
	rm -rf build dist site .cache .hypothesis .pytest_cache .ruff_cache
	find src tests examples -type d -name __pycache__ -prune -exec rm -rf {} +

clean-all: clean ## ... and the environment
	rm -rf $(VENV)

# One stamp per extra: `make exp9` need not wait for the test tools. A stamp is older
# than an edited pyproject.toml, so that the environment follows the dependencies.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/pip
	@echo "Installing trainq[$*] into $(VENV) (minutes the first time)"
	@$(PIP) install --quiet --editable ".[$*]"
	@touch $@

# Debian and Ubuntu ship Python without `ensurepip`; there `venv` fails, and virtualenv,
# put by pip into a temporary folder, does the same job without touching the system.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) not found. Choose one: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "trainq needs Python 3.11 or newer; $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1). Choose another:" \
	    "make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  tmp=$$(mktemp -d) && \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check \
	    --target "$$tmp" virtualenv && \
	  PYTHONPATH="$$tmp" $(PYTHON) -m virtualenv --quiet $(VENV); \
	  status=$$?; rm -rf "$$tmp"; exit $$status; }
