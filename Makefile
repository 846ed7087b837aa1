# Everything runs in .venv; nothing is installed outside of it. PYTHON=python3.12 chooses another interpreter for it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
BIN := .venv/bin
DATABASE_URL_FOR_TESTS ?= postgres://postgres@127.0.0.1:5432/chatroom_$(shell echo $$PPID)
REDIS_URL_FOR_TESTS ?= redis://127.0.0.1:6379/9
REPORTS := build/tests

.PHONY: help setup setup-dev run test test-services lint bench simulate simulate-coverage mutants chaos lock clean

help:
	@echo "make run            set everything up and start Chatroom (make run ARGS='--port 8001')"
	@echo "make setup          only the set-up: .venv with the pinned dependencies"
	@echo "make test           all tests on SQLite and the embedded Valkey"
	@echo "make test-services  the same tests on PostgreSQL and Redis"
	@echo "make lint           formatting, lint rules, types, import directions, missing migrations"
	@echo "make bench          latency and throughput of the main path, beside Procrastinate"
	@echo "                    (python -m bench.vouching: 10,000 agents vouched for, 1,000 waiting; bench.sweeping, bench.kills, bench.outages)"
	@echo "make simulate       200 seeds under a virtual clock with every fault (SEEDS=1000 for more, SEED=17 for one)"
	@echo "make simulate-coverage  the lines of services and policy that the simulation reaches by itself (at least 90 %)"
	@echo "make mutants        deliberate defects, each of which the simulation must catch"
	@echo "make chaos          every part killed and frozen at random while 200 tasks travel (SEED=7 MINUTES=10)"
	@echo "make lock           pin the dependencies of pyproject.toml anew"

setup:
	@PYTHON="$(PYTHON)" scripts/setup.sh requirements.txt

setup-dev:
	@PYTHON="$(PYTHON)" scripts/setup.sh requirements-dev.txt

run: setup
	@exec $(BIN)/python manage.py up $(ARGS)

test: setup-dev
	@scripts/run_tests.sh $(REPORTS)/embedded

test-services: setup-dev
	@DATABASE_URL="$(DATABASE_URL_FOR_TESTS)" REDIS_URL="$(REDIS_URL_FOR_TESTS)" \
	CHATROOM_SIMULATION_SEEDS=$${CHATROOM_SIMULATION_SEEDS:-25} scripts/run_tests.sh $(REPORTS)/services
	@if [ -d $(REPORTS)/embedded ]; then $(BIN)/python scripts/compare_tests.py $(REPORTS)/embedded $(REPORTS)/services; \
	else echo "not compared: $(REPORTS)/embedded is missing, run 'make test' first" >&2; exit 1; fi

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_sizes.py
	DATABASE_URL=sqlite:// $(BIN)/python manage.py makemigrations --check --dry-run

bench: setup-dev
	@$(BIN)/python -m bench $(ARGS)

simulate: setup-dev
	@$(BIN)/python scripts/simulate.py $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200)) --steps $(or $(STEPS),300) $(ARGS)

simulate-coverage: setup-dev
	@$(BIN)/python scripts/simulation_coverage.py $(ARGS)

chaos: setup-dev
	@$(BIN)/python scripts/chaos.py --seed $(or $(SEED),1) --minutes $(or $(MINUTES),2) --tasks $(or $(TASKS),200)

mutants: setup-dev
	@$(BIN)/python scripts/mutants.py $(ARGS)

lock: setup-dev
	@scripts/lock.sh

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
