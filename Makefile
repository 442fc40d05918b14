# Two commands: `make demo` and `make test`. Both make .venv and install what they need if it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   ?= short

.PHONY: help install demo test lint clean

help:
	@echo "make demo              collect, train, evaluate and report on the play table (it says how long; some 15 minutes on 2 cores)"
	@echo "make demo DEMO=long    the same for about 2 hours, with a better policy"
	@echo "make test              every test, on all cores"
	@echo "make lint              ruff and mypy"
	@echo "make install           only make $(VENV) and install"

install: $(VENV)/.installed

# A Python that was asked for (make PYTHON=...) is used even where pybullet must be compiled for it.
$(VENV)/.installed: setup.py bootstrap.py
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not there: install Python 3.11, or name one with make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) bootstrap.py $(VENV) $(if $(filter file,$(origin PYTHON)),,--chosen)
	@touch $@

demo: install
	$(BIN)/roboflamingo demo --config configs/demo_$(DEMO).yaml

test: install
	$(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy roboflamingo calvin_eval bootstrap.py

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
