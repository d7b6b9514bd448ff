# Two commands for a fresh machine that has git, make and Python ≥ 3.11: `make demo` and `make test`.
# uv is fetched into .uv/ if it isn't installed; this also works where the system's Python refuses installs.

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
ifeq ($(UV),)
UV := .uv/bin/uv
endif
RUN := $(UV) run --frozen --no-sync

# An environment that was made with CPU=1 stays without CUDA until `make clean`.
CPU ?= $(wildcard .venv/.cpu)
# Three test processes keep two cores busy, since tests often wait for servers. 0 runs them in a single process.
WORKERS ?= 3
PYTEST := $(RUN) pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-slow test-nightly test-lowest coverage lint check dist env env-dev clean help

help:
	@echo "make demo          start the real server with the embedded model and ask it about a picture (KEEP=1 keeps it running)"
	@echo "make test          run the tests that every commit must pass (ARGS=… for pytest, WORKERS=… test processes)"
	@echo "make test-slow     run the tests that take minutes each: several clusters, long loads, training runs"
	@echo "make test-nightly  run the tests that take longer still"
	@echo "make test-lowest   test the lowest allowed versions of what installs without torch, in an environment of its own"
	@echo "make coverage      make test with branch coverage: each package's share and its floor"
	@echo "make lint          check formatting, style, types, import rules, circles and words"
	@echo "make check         lint and test"
	@echo "make dist          build the wheel and the source distribution of a release (REPOSITORY_URL=… if Git has no origin)"
	@echo "make env           install what serving needs into .venv; CPU=1, with any target, omits CUDA's libraries"
	@echo "make env-dev       install the development tools as well"
	@echo "make clean         remove the environment"

demo: env
	@$(RUN) minigpt4 demo $(if $(KEEP),--keep)

test: env-dev
	@$(PYTEST) $(ARGS)

test-slow: env-dev
	@$(PYTEST) -m slow $(ARGS)

test-nightly: env-dev
	@$(PYTEST) -m nightly $(ARGS)

# Only extras without torch: an older torch with its CUDA libraries is a download of several gigabytes. Left out are the
# modules that import the server or langchain-tests, which needs newer versions.
LOWEST := .venv-lowest
test-lowest: | $(UV)
	@$(UV) venv --quiet --clear --python 3.11 $(LOWEST)
	@$(UV) pip compile --quiet --resolution lowest-direct --python-version 3.11 pyproject.toml \
		--extra langchain --extra mcp --extra discord --extra telegram --output-file $(LOWEST)/requirements.txt
	@$(UV) pip install --quiet --python $(LOWEST) --requirement $(LOWEST)/requirements.txt --editable .
	@$(UV) pip install --quiet --python $(LOWEST) --constraints $(LOWEST)/requirements.txt \
		'pytest<9.2' pytest-asyncio pytest-timeout pytest-xdist hypothesis
	@$(LOWEST)/bin/pytest -n $(WORKERS) -p no:cacheprovider tests/client tests/images tests/prompt tests/mcp_minigpt4 \
		tests/langchain_minigpt4/test_agent.py tests/langchain_minigpt4/test_images.py tests/minigpt4_bots \
		--ignore tests/minigpt4_bots/core/test_answer_service.py tests/test_boxes.py tests/test_settings.py $(ARGS)

coverage: PYTEST += --cov --cov-report=
coverage: test
	@$(RUN) python -m tools.coverage_floors

lint: env-dev
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) lint-imports
	@$(RUN) python -m tools.import_circles
	@$(RUN) python -m tools.lint_words

check: lint test

# The README of a release links to files of the tagged version in this repository.
REPOSITORY_URL ?= $(shell git remote get-url origin 2>/dev/null | sed 's/\.git$$//')
dist: | $(UV)
	@case "$(REPOSITORY_URL)" in https://*) ;; *) echo "Git has no https origin: make dist REPOSITORY_URL=https://…"; exit 1 ;; esac
	@REPOSITORY_URL=$(REPOSITORY_URL) $(UV) build --out-dir dist

# Both environments are the same folder: env-dev installs all that env does, and env removes nothing.
# They are installed again only when uv.lock or pyproject.toml changes. Bytecode is compiled during the installation:
# where PYTHONDONTWRITEBYTECODE is set, as in many containers, each process would compile torch again.
env: .venv/.env
	@:
env-dev: .venv/.env-dev
	@:

ifeq ($(filter-out 0,$(CPU)),)

.venv/.env: uv.lock pyproject.toml | $(UV)
	@echo "Installing what serving needs into .venv (6.2 GB with CUDA's libraries; CPU=1 omits them) …"
	@$(UV) sync --frozen --inexact --no-dev --extra serve --compile-bytecode
	@touch $@

.venv/.env-dev: uv.lock pyproject.toml | $(UV)
	@echo "Installing the development environment into .venv (6.8 GB with CUDA's libraries; CPU=1 omits them) …"
	@$(UV) sync --frozen --compile-bytecode
	@touch .venv/.env $@

else

.venv/.env: .venv/.cpu
	@$(UV) pip install --python .venv --torch-backend=cpu --constraints $< --compile-bytecode --editable '.[serve]'
	@touch $@

.venv/.env-dev: .venv/.cpu
	@$(UV) pip install --python .venv --torch-backend=cpu --constraints $< --compile-bytecode --editable . --group dev
	@touch .venv/.env $@

# uv.lock as constraints with hashes. torch has no hash: its CPU build isn't the one that is locked. The file gets its
# name when it is complete: after a failed export the next run starts over.
.venv/.cpu: uv.lock pyproject.toml | $(UV)
	@test ! -e .venv/.env || test -e $@ || { echo "This .venv holds CUDA's libraries. Run make clean first."; exit 1; }
	@test -e .venv || $(UV) venv
	@$(UV) export --quiet --frozen --all-extras --no-emit-project --no-emit-package torch --output-file $@.partial
	@$(UV) export --quiet --frozen --all-extras --no-emit-project --no-hashes | grep '^torch==' >> $@.partial
	@mv $@.partial $@

endif

.uv/bin/uv:
	@echo "uv is not installed: fetching it into .uv/ …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv

clean:
	rm -rf .venv .venv-lowest .uv
