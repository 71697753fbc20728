# `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
SEEDS ?= 1000

export PYTHONPATH := $(CURDIR)/include:$(CURDIR)/plugins
# Where the environment forbids bytecode, as many images' does, every process would compile all of Airflow again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help:
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: demo
demo: .venv/ready  ## play a whole migration on this machine: STORES=real from the Oracle wire emulator to MySQL, AUTO=1 to press no key
	STORES="$(STORES)" AUTO="$(AUTO)" $(PYTHON) -m billing.demo

.PHONY: screenshots
screenshots: .venv/ready  ## take the pictures of Airflow that the documents show, in a headless Chromium
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium fonts-liberation; \
	fi
	$(PYTHON) -m billing.screenshots

.PHONY: test
test: .venv/ready  ## run the tests, on real servers where they can be had: ARGS="-n 0 -k fence" goes to pytest
	@# The ledger is tested on PostgreSQL too, on a private server; the system's own is not used.
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql; \
	fi
	@# Twice as many processes as processors, because half of the time they wait. In the order in which they are
	@# collected: else the files of few and long tests come last.
	$(PYTHON) -m tests.servers around --volatile $(PYTHON) -m pytest -n $$((2 * $$(nproc))) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: scenario
scenario: .venv/ready  ## run the tests that take minutes each, which make test leaves out: ARGS="-k matrix" goes to pytest
	$(PYTHON) -m tests.servers around --volatile $(PYTHON) -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: check
check: .venv/ready  ## ruff, mypy and import-linter: what CI checks besides the tests
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy include benchmarks tests/servers plugins dags
	.venv/bin/lint-imports

.PHONY: stores
stores: .venv/ready  ## start the servers that the tests use, and print where they are
	$(PYTHON) -m tests.servers start

.PHONY: stores-stop
stores-stop:  ## stop them and remove their files; downloads stay until make clean
	@if [ -d .stores ]; then $(firstword $(wildcard $(PYTHON)) python3.11) -m tests.servers stop; fi

.PHONY: bench
bench: .venv/ready  ## measure, beside references: ROWS=100000, CASES=load,apply, PEERS=1 for other tools too
	$(PYTHON) -m tests.servers around $(PYTHON) -m benchmarks

.PHONY: types
types: .venv/ready  ## run every type into every other one, and write docs/types.md
	$(PYTHON) -m tests.servers around $(PYTHON) -m tests.contract.matrix

.PHONY: simulate
simulate: .venv/ready  ## run the simulated world: SEEDS=1000
	$(PYTHON) -m tests.simulation --seeds $(SEEDS)

.PHONY: model
model: .venv/ready  ## explore the models' larger worlds, for minutes: ARGS="load" explores that one
	$(PYTHON) -m tests.model --large $(ARGS)

.PHONY: constraints
constraints: .venv/bin/uv  ## pin what requirements.txt brings along, in constraints.txt
	.venv/bin/uv pip compile requirements.txt --quiet --python-version 3.11 --no-header \
		--no-emit-index-url --no-emit-find-links --output-file constraints.txt

.PHONY: clean
clean: stores-stop  ## stop the servers and remove everything that these targets made
	rm -rf .stores .demo .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache benchmarks/results.jsonl
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp of a complete installation: older than what it was installed from, it is made again.
.venv/ready: requirements.txt constraints.txt | .venv/bin/uv
	@if ! { command -v pkg-config && pkg-config --exists libmariadb && command -v gcc; } >/dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update && \
			DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libmariadb-dev pkg-config gcc; \
		else \
			echo "mysqlclient compiles, and needs: apt-get install libmariadb-dev pkg-config gcc" >&2; exit 1; \
		fi; \
	fi
	.venv/bin/uv pip install --python $(PYTHON) -r requirements.txt -c constraints.txt
	@touch $@

.venv/bin/uv:
	@command -v python3.11 >/dev/null || { echo "Python 3.11 is needed, as python3.11 in the PATH" >&2; exit 1; }
	python3.11 -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
