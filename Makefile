# Recipes of the workspace. Each sets up .venv first; that needs Python 3.11 or newer and a C++ compiler, and takes no time once it is done.
BIN := .venv/bin
ARGS ?=

.PHONY: setup demo up test check gen docs bench lock

setup: ## Install everything into .venv
	@scripts/setup.sh

demo: setup ## Fine-tune a small model on real data, from nothing to a GGUF that answers
	$(BIN)/python -m tunesmith_local.demo $(ARGS)

up: setup ## Start every service on this machine, for example: make up ARGS="--port 9000"
	$(BIN)/tunesmith up $(ARGS)

test: setup ## Run all tests, for example: make test ARGS="services/task_service -k retry"
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadgroup $(ARGS)

check: setup ## Formatting, lint, types, contracts, import directions, lock
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python protos/generate.py --check
	$(BIN)/python scripts/check_lock.py
	$(BIN)/python scripts/check_docs.py
	$(BIN)/python scripts/parameter_docs.py --check
	PYTHONPATH=scripts $(BIN)/lint-imports
	$(BIN)/python -m mypy

gen: setup ## Generate protos/gen from the contracts
	$(BIN)/python protos/generate.py

docs: setup ## Write the pages that are drawn from the parameter table
	$(BIN)/python scripts/parameter_docs.py

BENCHMARKS := first_step throughput checkpoint_stall merge preparation overhead evaluation generation http_api streams memory

bench: setup ## Measure; prints one table for each figure
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

lock: ## Resolve the members' dependencies into requirements.lock, for example: make lock ARGS=--upgrade
	scripts/lock.sh $(ARGS)
