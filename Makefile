# Two commands for a fresh machine that has git, make and Python ≥ 3.11: `make demo` and `make test`.
# uv is fetched into .uv/ if it isn't installed; that works where the system's Python refuses installs, too.

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
ifeq ($(UV),)
UV := .uv/bin/uv
endif
RUN := $(UV) run --frozen --no-sync

.PHONY: demo test lint check env clean help

help:
	@echo "make demo   start the real server with the embedded model and ask it about a picture (KEEP=1 leaves it running)"
	@echo "make test   run all tests that this machine can run"
	@echo "make lint   formatting, lint, types, import rules"
	@echo "make check  lint and test, as CI does"

demo: env
	@$(RUN) minigpt4 demo $(if $(KEEP),--keep)

test: env
	@$(RUN) pytest $(ARGS)

lint: env
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) lint-imports

check: lint test

# Compiled at once: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each process would compile torch anew.
# The environment is made anew only when the lock or the project file changed.
env: .venv/.made
.venv/.made: uv.lock pyproject.toml | $(UV)
	@echo "Installing what uv.lock names into .venv (torch is large: the first time takes minutes) …"
	@$(UV) sync --frozen --compile-bytecode
	@touch $@

.uv/bin/uv:
	@echo "uv is not installed: fetching it into .uv/ …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv

clean:
	rm -rf .venv .uv
