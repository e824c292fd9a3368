# Every command of the project. `make` alone prints this list.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.tunesmith-setup
TORCH := $(shell grep '^torch==' requirements.lock 2>/dev/null)
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format bench lock clean

help:  ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP)  ## make .venv with the pinned packages and tunesmith itself

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tunesmith needs Python 3.11 or newer; '$(PYTHON)' is not. Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing $(TORCH), then the packages of requirements.lock, into .venv (minutes the first time)."
	@# torch first and pinned: whatever is installed before it may pull a newer one with gigabytes of CUDA packages.
	@$(PIP) install $(TORCH)
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## the whole way on shipped data: check, train, evaluate, serve (FAST=1: a shorter one)
	$(BIN)/tunesmith demo $(if $(FAST),--fast)

test: $(STAMP)  ## the quick tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## the slow and soak tests
	$(BIN)/python -m pytest -q -m slow --timeout 3600

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary

format: $(STAMP)  ## rewrite the code in the house's layout
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

bench: $(STAMP)  ## run every benchmark; each prints a ratio against a named peer
	@found=0; for file in benchmarks/*.py; do \
	  test -e "$$file" || continue; found=1; echo "== $$file"; $(BIN)/python "$$file" || exit 1; \
	done; test $$found = 1 || echo "There is no benchmark in benchmarks/ yet."

clean:  ## remove caches and build outputs; .venv and models stay
	rm -rf build dist demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests recipes benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The lock is the closure of pyproject.toml's dependencies (and of its dev extra) over the versions now in .venv.
# Local version labels (+cpu) are cut off, so that the same pin fits every build of torch.
define LOCK
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
waiting = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
pins, seen = {}, set()
while waiting:
    wanted = waiting.pop()
    found = distribution(wanted.name)
    if not wanted.specifier.contains(found.version, prereleases=True):
        raise SystemExit(f"{wanted} is asked for, but .venv has {found.version}")
    pins[canonicalize_name(wanted.name)] = Version(found.version).public
    for extra in ("", *wanted.extras):
        if (wanted.name, extra) not in seen:
            seen.add((wanted.name, extra))
            needed = [Requirement(text) for text in found.requires or ()]
            waiting += [item for item in needed if not item.marker or item.marker.evaluate({"extra": extra})]
print("# Every package of the development environment, with the versions the tests run with.")
print("# Written by `make lock` from pyproject.toml and .venv: upgrade a package in .venv, test, run it again.")
print("# `make setup` installs torch from this file first. Each machine takes its own build of a pinned version.")
print(*(f"{name}=={version}" for name, version in sorted(pins.items())), sep="\n")
endef
export LOCK

lock:  ## rewrite requirements.lock from pyproject.toml and the versions in .venv
	@$(BIN)/python -c "$$LOCK" > requirements.lock.new && mv requirements.lock.new requirements.lock
