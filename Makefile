# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Large pages for XLA's buffers, in place of `train.allocator`'s settings: programs this small gain as much from them,
# and compile faster. Ignored where there is no glibc.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help demo docs test test-all lint release clean

help:  ## this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(STAMP): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(STAMP)

demo: $(STAMP)  ## train a standard and a regularized model, attack both, write a report to open
	rm -rf runs/demo
	$(BIN)/python -m train fit mnist5k-standard --run-dir runs/demo/standard --no-evaluate
	$(BIN)/python -m train fit mnist5k-flow --run-dir runs/demo/flow-gradient --no-evaluate
	$(BIN)/python -m train evaluate runs/demo/standard runs/demo/flow-gradient --output runs/demo
	$(BIN)/python -m train report runs/demo/standard runs/demo/flow-gradient

docs: $(STAMP)  ## the documentation as a site: open site/index.html, or serve the folder for its search
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: $(STAMP)  ## the tests, without the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(STAMP)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

release: $(STAMP)  ## REPOSITORY=https://...: check version and changelog, build and test the wheel and the sdist
	REPOSITORY="$(REPOSITORY)" PYTHON=$(abspath $(BIN))/python .ci/release

clean:  ## remove the environment and caches, not the runs
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
