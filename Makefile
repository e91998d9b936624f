# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Another interpreter, 3.11 or newer: make PYTHON=/path/to/python3
export PYTHON ?= /usr/bin/python3
# Arguments for pytest, such as: make unit ARGS='-k header -x'
ARGS ?=
# Two thirds of the time a test waits, for a guest or a disk. A file's tests share what they build.
WORKERS ?= $(shell n=$$(( $$(nproc) * 3 )); echo $$(( n < 24 ? n : 24 )))
SIDE_BY_SIDE = --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
SLOW := slow or storm
RUN := . tools/env.sh;
SCRIPTS := tools/setup tools/sanity tools/env.sh $(wildcard tools/lab/*.sh) .ci/run

.PHONY: help setup setup-test demo demo-clean test test-all bench mutants storm static lint types sanity unit \
	functional live guest

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install what is missing (Debian packages, .venv, collections); others do this too
	@tools/setup </dev/null

setup-test: # what tests and benchmarks need besides
	@tools/setup test </dev/null

demo: setup ## reclaim 500 MiB of a real guest's disk and prove it (about 2 min)
	@$(RUN) python -m demo run </dev/null

demo-clean: ## remove every trace of the demo, processes included
	@PYTHONPATH=tools PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m demo clean

test: setup-test ## what every change has to pass (about 10 min; 13 the first time)
	@echo "==> Static checks, and the guest that tests start from (about 1 min; 2 min the first time)"
	@$(MAKE) -j2 --output-sync=target static guest
	@echo "==> Unit, functional and short live tests (about 8 min)"
	@$(RUN) pytest tests $(SIDE_BY_SIDE) -m "not ($(SLOW))" -rs --durations=20 $(ARGS) </dev/null

test-all: setup-test guest ## what make test leaves out: slow tests, storms in short form (about 25 min)
	@$(RUN) pytest tests $(SIDE_BY_SIDE) -m "$(SLOW)" -rs --durations=20 $(ARGS) </dev/null

guest: setup # the guest image, built once a machine, and a guest that has booted from it
	@$(RUN) python -m lab --state .cache/labs/make-guest warm >/dev/null

bench: setup-test ## time the modules against the bare tools (about 25 min)
	@$(RUN) python -m bench </dev/null

mutants: setup-test ## break the product in hundreds of ways, one at a time, and see tests turn red (long)
	@$(RUN) python -m mutants $(ARGS) </dev/null

storm: setup-test ## kill the modules at hundreds of moments, and look what is left (hours)
	@$(RUN) THINVIRT_STORM=full pytest -s -m storm --timeout=0 tests $(ARGS) </dev/null

static: lint types sanity

lint: setup ## ruff, yamllint, ansible-lint, shellcheck, biome, antsibull
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) yamllint --strict .
	@$(RUN) shellcheck -x $(SCRIPTS)
	@$(RUN) biome check --error-on-warnings biome.json plugins
	@$(RUN) antsibull-changelog lint
	@$(RUN) antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck .
	@$(RUN) ansible-lint -q

types: setup ## mypy, strict, on plugins and tools
	@$(RUN) mypy -p ansible_collections.thinvirt.kvm.plugins
	@$(RUN) mypy tools/lab tools/demo tools/bench tools/mutants

sanity: setup ## ansible-test sanity, with no ignore files
	@tools/sanity

unit: setup ## pure parts, seconds
	@$(RUN) pytest tests/unit --numprocesses=auto $(ARGS) </dev/null

functional: setup-test ## real qemu-img and file systems, test:///default, slow ones too
	@$(RUN) pytest tests/functional $(ARGS) </dev/null

live: setup-test ## real guests, slow ones too
	@$(RUN) pytest tests/live $(ARGS) </dev/null
