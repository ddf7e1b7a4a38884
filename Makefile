PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
DEVICE ?=
RESULTS ?= results
REPORT ?= report
QUICK ?=
ACCEPT ?=

.DEFAULT_GOAL := help
.PHONY: help setup peers test test-cuda check graph zoo bench bench-accuracy bench-gpu bench-honesty bench-memory bench-peers bench-time bench-work-precision \
	experiments gate report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

# The stamp is the last thing that an installation writes: a broken one is made again from the start.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $(STAMP) $(PEERS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=/path/to/it" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV): this takes a minute or two.'
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

setup: $(STAMP) ## make or refresh the environment in .venv

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

CUDA_TESTS = tests/amaml_core/methods/test_contract.py \
	$(addprefix tests/bench/probes/test_,$(addsuffix .py,allocator counts error memory time)) \
	'tests/bench/harness/test_worker.py::test_a_kept_worker_measures_what_fresh_ones_do_in_any_order[cuda]'

test-cuda: $(STAMP) ## run the tests that take a device on a CUDA card, where there is one
	$(BIN)/python -m pytest -n auto --dist worksteal --benchmark-disable --device cuda $(CUDA_TESTS)

check: $(STAMP) ## lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

graph: $(STAMP) ## draw the pictures in CONTRIBUTING.md from the code's own imports
	$(BIN)/python tests/imports.py

zoo: $(STAMP) ## every kind of module through every method, into docs/models.md (some minutes)
	$(BIN)/python tests/amaml_core/zoo_table.py

gate: $(STAMP) ## counters, memory and gradients against their committed baselines
	$(BIN)/amaml-bench gate --out $(RESULTS)/gate $(if $(ACCEPT),--accept '$(ACCEPT)')

bench: $(STAMP) ## the quick sweep and its report
	$(BIN)/amaml-bench run smoke $(if $(DEVICE),--device $(DEVICE)) --out $(RESULTS)/smoke
	$(BIN)/amaml-report build $(RESULTS)/smoke --out $(REPORT)

bench-accuracy: $(STAMP) ## gradient accuracy on closed forms and CosMixture
	$(BIN)/amaml-bench run accuracy $(if $(DEVICE),--device $(DEVICE)) --out $(RESULTS)/accuracy

bench-honesty: $(STAMP) ## whether status and error estimate tell the truth, over random networks
	$(BIN)/amaml-bench run honesty $(if $(DEVICE),--device $(DEVICE)) --out $(RESULTS)/honesty
	$(BIN)/amaml-bench run tolerance $(if $(DEVICE),--device $(DEVICE)) --out $(RESULTS)/tolerance

bench-memory: $(STAMP) ## peak memory against trajectory length
	$(BIN)/amaml-bench run memory $(if $(DEVICE),--device $(DEVICE)) --out $(RESULTS)/memory

# The outside libraries are two more minutes of installation, which only those who compare have to wait for.
$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e '.[dev,peers]'
	touch $(PEERS)

peers: $(PEERS) ## install the outside libraries that bench-peers compares with; their tests run then

bench-peers: $(PEERS) ## ours against TorchOpt, higher, JAX and diffrax, and the report
	$(BIN)/amaml-bench run peers $(if $(DEVICE),--device $(DEVICE)) --out $(RESULTS)/peers
	$(BIN)/amaml-report build $(RESULTS)/peers --out $(REPORT)

bench-gpu: $(PEERS) ## ours and outside libraries on one CUDA card, in minutes, and the report
	$(BIN)/amaml-bench run gpu --device cuda --out $(RESULTS)/gpu
	$(BIN)/amaml-report build $(RESULTS)/gpu --out $(REPORT)

bench-work-precision: $(PEERS) ## gradient error against seconds and bytes, over four horizons and two models
	$(BIN)/amaml-bench run work_precision $(if $(DEVICE),--device $(DEVICE)) --out $(RESULTS)/work_precision

bench-time: $(STAMP) ## seconds per outer update against trajectory length
	$(BIN)/amaml-bench run time $(if $(DEVICE),--device $(DEVICE)) --out $(RESULTS)/time

# QUICK=1 makes it a quarter of an hour instead of hours.
EXPERIMENT = $(BIN)/amaml-bench train $(1) $(if $(QUICK),--quick) $(if $(DEVICE),--device $(DEVICE)) --out $(2)
TRAINED = $(RESULTS)/train_$(1)$(if $(QUICK),_quick)

experiments: $(STAMP) ## meta-train by every method, test what they learned, and the report (QUICK=1: in 15 minutes)
	$(call EXPERIMENT,regression,$(call TRAINED,regression))
	$(call EXPERIMENT,ratings,$(call TRAINED,ratings))
	$(BIN)/amaml-report build $(call TRAINED,regression) $(call TRAINED,ratings) --out $(REPORT)

report: $(STAMP) ## one report of all results in $(RESULTS), else of the committed ones
	$(BIN)/amaml-report build $(if $(wildcard $(RESULTS)/*/records.jsonl),$(RESULTS),reports/results) --out $(REPORT)

clean: ## remove what the targets made, results excepted
	rm -rf $(VENV) $(REPORT) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
