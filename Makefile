# make demo     freeze the bundled digits network to int8 and print what that did
# make test     style, types, tests; then test-core
# make test-core the tests that need no MXNet, on the newest Python there is and NumPy 2, in .venv-core
# make bench    the scripts that print the figures of docs/figures
# make docs     the pages of docs/ as a site that needs no network, in site/
# make docs-test what takes long: pages, notebooks, the site, a release built twice
# make dist     the wheel and the sdist, in dist/
# make coverage which lines the tests run
# make digits   train the demo's network again (about a minute)
# Each makes .venv first, when there is none or when setup.cfg changed.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-core lint types imports view core-venv bench digits venv clean docs docs-test dist coverage

BIN := .venv/bin
STAMP := .venv/installed
# these take hours; each takes parts by name
BENCHMARKS := $(filter-out benchmarks/zoo_freeze.py benchmarks/engines.py benchmarks/tune.py,$(sort $(wildcard benchmarks/[a-z]*.py)))
HAS_MXNET := $(BIN)/python -W ignore -c 'import mxnet' 2>/dev/null
export QGRAPH_CASES ?= ../shared/cases
# engines and tests share the cores between processes, not between threads
export OMP_NUM_THREADS ?= 1
# modules are compiled once, not by every process that a test starts
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -n 's/^# //p;/^$$/q' Makefile

venv: $(STAMP)

$(STAMP): setup.cfg pyproject.toml .ci/venv
	@.ci/venv
	@touch $@

# ---- demo -----------------------------------------------------------------------------------------------------------

demo: $(STAMP)
	@$(HAS_MXNET) || { echo 'the demo runs MXNet, which this .venv does not have:' \
	    'it needs Python 3.9 to 3.11 on x86-64, then: rm -r .venv && make demo' >&2; exit 1; }
	@mkdir -p demo
	@cp examples/digits/digits-symbol.json demo/model-symbol.json
	@cp examples/digits/digits-0000.params demo/model-0000.params
	@cp examples/digits/digits-calib.npz demo/model-calib.npz
	cd demo && ../$(BIN)/qgraph freeze model-symbol.json --exclude conv0 --calib kl
	@$(BIN)/python examples/demo.py demo/model demo/model-quantized

digits: $(STAMP)
	$(BIN)/python examples/train_digits.py

# ---- test -----------------------------------------------------------------------------------------------------------

STYLE := lint types imports

test: $(STAMP)
	@$(MAKE) --no-print-directory -j 2 $(STYLE) core-venv
	@$(HAS_MXNET) || echo 'MXNet is not in this .venv: the tests that need it are skipped'
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not docs'
	@$(MAKE) --no-print-directory test-core

# the installed package is tested: PYTHONSAFEPATH (Python 3.11) keeps the checkout's out of sight
test-core: core-venv
	cd .venv-core && PYTHONSAFEPATH=1 bin/pytest -c ../setup.cfg -n 2 --dist loadfile --no-loadscope-reorder \
	    -m 'not slow and not docs' ../tests

core-venv:
	@.ci/venv-core

lint: $(STAMP)
	$(BIN)/ruff check .

# mypy and import-linter do not see that setup.cfg maps passes/ and cli/ under qgraph: a view has them there
view:
	@rm -rf .typecheck && mkdir -p .typecheck/qgraph
	@ln -s $(CURDIR)/qgraph/* $(CURDIR)/passes $(CURDIR)/cli .typecheck/qgraph/

types: $(STAMP) view
	cd .typecheck && ../$(BIN)/mypy --config-file ../setup.cfg --cache-dir ../.mypy_cache -p qgraph

# import-linter wants Python 3.10
imports: $(STAMP) view
	@if [ -x $(BIN)/lint-imports ]; then cd .typecheck && PYTHONPATH=. ../$(BIN)/lint-imports --no-cache \
	    --no-logo ../setup.cfg; else echo 'import-linter is not in this .venv: imports are not checked'; fi

# ---- docs -----------------------------------------------------------------------------------------------------------

# MkDocs Material wants Python 3.11
docs: $(STAMP)
	@if $(BIN)/python -c 'import material' 2>/dev/null; then NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build \
	    --strict; else echo 'mkdocs-material is not in this .venv: the pages are not built'; fi

docs-test: $(STAMP)
	$(BIN)/python -m pytest -m docs tests/docs tests/examples tests/pages tests/test_release.py

# ---- release --------------------------------------------------------------------------------------------------------

dist: $(STAMP)
	$(BIN)/python .ci/release
	$(BIN)/python -m twine check --strict dist/*

# processes that tests start are seen too: setup.cfg, coverage:run
coverage: $(STAMP)
	@rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not docs'
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --sort cover

# ---- bench ----------------------------------------------------------------------------------------------------------

bench: $(STAMP)
	@for script in $(BENCHMARKS); do \
	    echo; echo "==== python $$script"; $(BIN)/python $$script; \
	done

clean:
	rm -rf demo site dist .coverage .typecheck .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
