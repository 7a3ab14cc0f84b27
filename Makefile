# Every target makes .venv and installs by itself when something it needs has changed.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo

.PHONY: install demo test test-flower check format bench docs dist clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## JobFed, FedAvg and local-only training on smartwatch data; ends with a report
	$(BIN)/tierfed run quickstart --out $(OUT)

test: install  ## the whole suite
	$(BIN)/python -m pytest

.venv-flower/.installed: pyproject.toml constraints-flower.txt
	test -x .venv-flower/bin/python || $(PYTHON) -m venv .venv-flower
	.venv-flower/bin/python -m pip install --quiet --constraint constraints-flower.txt --editable '.[flower]' \
		pytest pytest-xdist pytest-timeout
	touch $@

test-flower: .venv-flower/.installed  ## what runs on Flower, whose versions are not those of .venv
	.venv-flower/bin/python -m pytest tests/flower

check: install  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## seconds per round of two small networks, in turns with a plain loop
	$(BIN)/python benchmarks/peers.py --works M1,M3 --peers loop

docs: install  ## the site, into site/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict

dist: install  ## wheel and source archive, checked, into dist/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf .venv .venv-flower site dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
