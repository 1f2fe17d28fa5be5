# `make demo` and `make test` work on a machine with Python >= 3.11, git and make; everything else they install into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/ready
	$(BIN)/grape demo $(DEMO)

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal
	@$(MAKE) --no-print-directory lint

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# torch by itself first: plain pip then finds the build that suits the machine, and the rest is content with it.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tasks,math,lora,bench,dev]'
	touch $@

clean:
	rm -rf $(VENV)
