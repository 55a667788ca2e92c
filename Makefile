# `make demo` and `make test` each do all their set-up on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types docs clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/clipcap demo --out demo_out

types: .venv/installed
	$(BIN)/pyright --pythonpath $(BIN)/python

lint: .venv/installed types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 10

clean:
	rm -rf .venv build demo_out
