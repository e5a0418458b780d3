# Two commands are all that a fresh machine needs:
#   make demo    sets up .venv and converts the bundled residual CNN
#   make test    installs what the tests need and runs them all
# For those who change it:
#   make lint      ruff, its formatter and mypy
#   make test-torch  the tests that need PyTorch, in .venv-torch
#   make bench     the benchmarks of docs/benchmarks.md
#   make fixtures  trains the bundled models again, with torch in .venv-fixtures
# Nothing has to be activated. Set PYTHON for another interpreter, JOBS for more test processes.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OUT := out

.DEFAULT_GOAL := help
.PHONY: demo test test-torch lint bench fixtures clean help

help:
	@sed -n 's/^#   make/make/p' Makefile

demo: $(VENV)/.ready
	@mkdir -p $(OUT)
	$(BIN)/convert fixtures/digits_resnet.onnx $(OUT)/digits_resnet.onnx \
	    --recipe fixtures/recipes/demo.toml --report $(OUT)/report.html
	@echo
	@echo "And on labelled pictures that calibration has not seen:"
	$(BIN)/convert verify fixtures/digits_resnet.onnx $(OUT)/digits_resnet.onnx \
	    --data fixtures/digits_test.npz --budget "accuracy>=0.99x"

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-torch: .venv-torch/.ready
	.venv-torch/bin/python -m pytest -n $(JOBS) tests/converter/io/test_import_torch.py $(PYTEST_ARGS)

lint: $(VENV)/.ready-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-test
	$(BIN)/python benchmarks/run.py

fixtures: .venv-fixtures/.ready
	.venv-fixtures/bin/python fixtures/build.py

# Each stamp is newer than the two files that decide what is installed, else pip runs again.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.ready-test: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e ".[test]"
	@touch $@ $(VENV)/.ready

$(VENV)/.ready-lint: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e ".[test,lint]"
	@touch $@ $(VENV)/.ready $(VENV)/.ready-test

# torch first and from its own pin: nothing else may choose its build
.venv-torch/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    -e ".[test,torch]"
	@touch $@

.venv-fixtures/.ready: constraints.txt
	$(PYTHON) -m venv .venv-fixtures
	.venv-fixtures/bin/python -m pip install --quiet -c constraints.txt torch
	.venv-fixtures/bin/python -m pip install --quiet -c constraints.txt \
	    onnx onnxscript onnxruntime scikit-learn
	@touch $@

clean:
	rm -rf $(OUT) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
