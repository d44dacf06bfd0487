# frostline: `make bench` and `make test` set everything up by themselves.
PYTHON  ?= python3
VENV    ?= .venv
STUDY   ?= digits
RESULTS ?= results
EXPORTS ?= exports
DATA    ?=
ARGS    ?=
WORKERS ?= 2

EXTRA := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)
STAMP := $(VENV)/.ready-$(EXTRA)
OF    := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
READY := $(STAMP)$(if $(findstring command,$(origin PYTHON)),-$(shell $(PYTHON) $(OF) 2>/dev/null || echo none))
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install --disable-pip-version-check
QUIET := $(shell test -t 2 || echo --quiet)# in a terminal pip shows how far it is
PLACE := --results "$(RESULTS)"
FROM  := $(if $(DATA),--data-dir "$(patsubst ~/%,$(HOME)/%,$(DATA))")

.DEFAULT_GOAL := help
.PHONY: help setup bench bench-gpu bench-compare test test-slow lint table plot export infer lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  STUDY=$(STUDY) DATA=$(DATA) RESULTS=$(RESULTS) EXPORTS=$(EXPORTS) ARGS=$(ARGS) are passed on"

setup: $(READY) ## the virtual environment, with the gpu extra where nvidia-smi lists a GPU

$(READY): requirements/$(EXTRA).txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "frostline needs Python 3.11, 3.12 or 3.13; type: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "1/3 a virtual environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "2/3 TensorFlow and the rest of requirements/$(EXTRA).txt: downloaded and installed, which takes minutes"
	@$(PIP) $(QUIET) --requirement requirements/$(EXTRA).txt
	@echo "3/3 frostline itself"
	@$(PIP) --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP) $(STAMP)-$$($(BIN)/python $(OF))

bench: $(READY) ## train, compare, export and measure STUDY
	$(BIN)/frostline run $(STUDY) $(PLACE) --exports "$(EXPORTS)" $(FROM) $(ARGS)

bench-gpu: $(READY) ## the whole GPU programme: digits and cifar10_split, mixed precision with XLA, with and without host copies
	@nvidia-smi -L >/dev/null 2>&1 || { echo "no GPU: nvidia-smi lists none"; exit 1; }
	@worst=0; for study in digits cifar10_split; do \
	  $(BIN)/frostline run $$study $(PLACE) --exports "$(EXPORTS)" $(FROM) --precision auto --xla on $(ARGS) || worst=$$?; \
	  case $$worst in 130) exit 130;; esac; \
	done; exit $$worst

bench-compare: $(READY) ## time single calls, and fail where one is slower than when this was last run
	@$(BIN)/python bench/compare.py $(ARGS)

test: $(READY) ## the tests, WORKERS files of them at once
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(READY) ## the tests that take minutes each, such as a backbone of each kind through every export
	$(BIN)/python -m pytest --slow -m slow $(ARGS)

lint: $(READY) ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

table: $(READY) ## the tables of RESULTS
	@$(BIN)/frostline table "$(RESULTS)" $(ARGS)

plot: $(READY) ## the curves of RESULTS, into RESULTS/plots
	@$(BIN)/frostline plot "$(RESULTS)" $(ARGS)

export: $(READY) ## publish the models of RESULTS into EXPORTS
	$(BIN)/frostline export "$(RESULTS)" --exports "$(EXPORTS)" $(FROM) $(ARGS)

infer: $(READY) ## measure the models of EXPORTS
	$(BIN)/frostline infer "$(EXPORTS)" $(PLACE) $(FROM) $(ARGS)

lock: $(READY) ## pin the dependencies of both extras anew
	$(PIP) --quiet uv
	for extra in cpu gpu; do \
	  $(BIN)/uv pip compile --quiet --universal --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
	    --extra $$extra --extra plot --extra efficientnet-lite0 --extra openvino --extra dev \
	    --output-file requirements/$$extra.txt pyproject.toml || exit 1; \
	done

clean: ## remove the environment and the caches, not your results or exports
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .benchmarks build dist src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
