# StreamForge. `make` alone prints what there is; every target makes the environment first when it has to.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup lock demo test lint flow bench

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install exactly what requirements.lock names (once; needs Python 3.11 or 3.12)
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

demo: $(READY) ## a month through every stage to a report (DATA=folder of recorded files, KEEP=1 stays up, FRESH=1 starts over)
	@$(BIN)/python -m app demo $(if $(DATA),--data '$(DATA)') $(if $(KEEP),--keep) $(if $(FRESH),--fresh)

test: $(READY) ## run the tests (one file or test: make test ARGS='tests/app -k coverage')
	@$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## style, types and the layers of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

flow: $(READY) ## print the topics and agents of the application as they are wired
	@$(BIN)/python -m app flow

bench: $(READY) ## measure the store and a month, stage by stage
	@$(BIN)/python -m bench.store
	@$(BIN)/python -m bench.month
