# Two commands: `make demo` and `make test`. Both make .venv and install what they need if it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   ?= short

.PHONY: help install demo test lint clean

help:
	@echo "make demo              collect, train, evaluate and report on the play table (about 25 minutes on 2 cores)"
	@echo "make demo DEMO=long    the same for about 2 hours, with a better policy"
	@echo "make test              every test, on all cores"
	@echo "make lint              ruff and mypy"
	@echo "make install           only make $(VENV) and install"

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else "Python 3.10, 3.11 or 3.12 is needed, this is %d.%d; choose one with make PYTHON=python3.11" % v)'
	@echo "Installing into $(VENV): PyTorch, OpenFlamingo, Lightning, pybullet, Panda3D (about 6 GB with PyTorch's GPU libraries, 3 minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -e ".[dev]"
	@echo "OpenFlamingo pins an old PyTorch that it does not need: installing it without its requirements"
	$(BIN)/python -m pip install --quiet --no-deps open_flamingo==2.0.1
	@touch $@

demo: install
	$(BIN)/roboflamingo demo --config configs/demo_$(DEMO).yaml

test: install
	$(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy roboflamingo calvin_eval

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
