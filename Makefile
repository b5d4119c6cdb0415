# One environment, .venv, with the versions of constraints.txt. The stamps keep it from being installed twice: `use` has
# what planish needs, `check` has the tools and peers of the checks on top. The libraries that planish works with, which
# few need and which do not all agree with those versions, have an environment of their own, .venv-integrations.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --no-compile -c constraints.txt
USE := .venv/use.stamp
CHECK := .venv/check.stamp
COMPILED := .venv/compiled.stamp
VERSIONS ?= constraints-integrations.txt
REAL := .venv-integrations/use.stamp
INSTALL_REAL := .venv-integrations/bin/python -m pip --disable-pip-version-check install --quiet -c $(VERSIONS)
NOTEBOOKS := $(patsubst notebooks/%.py,build/notebooks/%.md,$(wildcard notebooks/*.py))

# Python compiles what it imports, and keeps it: a third of what pip would compile, and half of the time of an installation.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test lint types wheel pytest docs integrations notes bench cifar10-small clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

quickstart: $(USE) ## install planish into .venv and run its first example; again: go on with what runs/ holds
	$(BIN)/planish quickstart --resume

test: lint types wheel pytest ## run everything that continuous integration runs

pytest: $(CHECK) $(COMPILED) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(CHECK) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(CHECK) ## check types
	$(BIN)/mypy --strict src

wheel: $(CHECK) ## build the wheel into dist/ and check that it holds every file of the package
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@cd src && find planish -type f ! -name '*.py[co]' | LC_ALL=C sort > ../dist/expected.txt
	@$(BIN)/python -m zipfile -l dist/*.whl | awk '/^planish\// { print $$1 }' | LC_ALL=C sort > dist/found.txt
	diff dist/expected.txt dist/found.txt
	@rm dist/expected.txt dist/found.txt

docs: $(CHECK) $(NOTEBOOKS) ## build the documentation into build/site; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build

build/notebooks/%.md: notebooks/%.py website/notebooks.py | $(CHECK)
	OMP_NUM_THREADS=1 $(BIN)/python website/notebooks.py build/notebooks $<

integrations: $(REAL) ## try every integration with the library itself; VERSIONS=/dev/null takes the newest ones
	OMP_NUM_THREADS=1 .venv-integrations/bin/python -m pytest -m packages --all-packages

notes: ## print what the changelog says of this version
	@version=$$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/planish/__init__.py); \
	awk -v title="## [$$version]" '/^## / { mine = index($$0, title) == 1; found += mine; next } mine; END { exit !found }' CHANGELOG.md \
	|| { echo "CHANGELOG.md has no part '## [$$version]'" >&2; exit 1; }

bench: $(CHECK) ## measure what training methods and attacks cost
	$(BIN)/python benchmarks/training_cost.py
	$(BIN)/python benchmarks/attack_cost.py

cifar10-small: $(USE) ## train and judge every method on a small CIFAR-10; about five hours on two cores
	bash benchmarks/cifar10_small.sh

clean: ## remove what was built and cached; keeps .venv, .venv-integrations and runs/
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -exec rm -rf {} +

.venv/bin/python .venv-integrations/bin/python: %/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "planish needs Python 3.11 or newer, and '$(PYTHON)' is not: name one that is, as in make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $* >/dev/null 2>&1 || { $(PYTHON) -m venv --clear --without-pip $* && $(PYTHON) -m pip --python $@ install --quiet pip; }

# torch comes first, so that nothing that follows chooses it.
$(USE): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --quiet hatchling
	$(INSTALL) --no-build-isolation torch -e .
	@touch $@

# torchattacks asks for an old requests and for torchvision, and needs neither for what the tests compare; of cffconvert,
# which asks for an old jsonschema, they read the schema alone.
$(CHECK): $(USE)
	$(INSTALL) --quiet --no-build-isolation torch -e '.[docs,test]'
	$(INSTALL) --quiet --no-deps cffconvert torchattacks
	@touch $@

# PyTorch is compiled while the tests' packages are installed, and not by every process of the tests at once.
$(COMPILED): $(USE)
	$(BIN)/python -c 'import torch._dynamo'
	@touch $@

# RobustBench asks for a timm and a gdown of long ago, and works with those of today.
$(REAL): pyproject.toml $(VERSIONS) | .venv-integrations/bin/python
	$(INSTALL_REAL) hatchling
	$(INSTALL_REAL) --no-build-isolation torch torchvision -e '.[integrations]'
	$(INSTALL_REAL) --no-deps cffconvert robustbench
	@touch $@
