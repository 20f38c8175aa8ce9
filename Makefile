# Every target sets itself up on a fresh machine: a virtual environment in .venv, then what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
# What the reference of `make docs` begins with; packages bring what is in them.
MODULES := api config labels errors losses models train evaluation checkpoints weights data predict export pages plan

.PHONY: quickstart test test-long lint format docs clean

quickstart: $(VENV)/installed
	$(BIN)/deeplab-jax data synthetic data/synthetic
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=$(RUN)
	$(BIN)/python eval.py --config=configs/quickstart.py --checkpoint=$(RUN) --output=$(RUN)/val
	@echo "scores, colours and overlays: $(RUN)/val; checkpoints: $(RUN)/checkpoints"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not long"

test-long: $(VENV)/installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-dev
	$(BIN)/pdoc -d google -o docs/api $(addprefix deeplab_jax.,$(MODULES))
	@echo "API reference: docs/api/index.html"

clean:
	rm -rf $(VENV) runs data/synthetic docs/api

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[demo,onnx,video]" --group dev
	touch $@ $(VENV)/installed
