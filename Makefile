# The one list of commands. `make help` prints it.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
# uv does not read pip's settings: hand it the folder of extra wheels when there is one.
LINKS  := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
# What only torch pulls in, and only its CUDA build: left to the torch wheel that is installed.
TORCH  := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
          nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile \
          nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
          nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
# Whether PostgreSQL's programs and Chromium are here, and how to become root.
POSTGRESQL := { command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1
CHROMIUM := command -v chromium >/dev/null 2>&1
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
# Nothing here needs a model hub; users who have one can set HF_HUB_OFFLINE=0.
export HF_HUB_OFFLINE ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Every stage is a process of its own: without kept bytecode each would compile its libraries anew.
unexport PYTHONDONTWRITEBYTECODE
# Where `make services` listens, on 127.0.0.1.
export PREFECT_PORT ?= 4200
export MLFLOW_PORT ?= 5000

.PHONY: help setup demo services test test-fast test-team lint format docs lock clean postgresql chromium
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## Make .venv from the committed locks (quick when already done)

# The lock is complete and hashed, so it is installed without resolving. torch alone is left
# out of it: a +cpu wheel and the CUDA wheel differ in hash and in dependencies.
$(VENV)/.installed: requirements.lock requirements-data.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock -r requirements-data.lock
	$(UV) pip install --quiet --python $(BIN)/python $(LINKS) "torch==2.13.0"
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

demo: setup  ## The main job on real weights and text: prune SmolLM2-135M to 80 % of its block weights
	$(BIN)/pruneflow configure demo
	$(BIN)/pruneflow run

services: export PREFECT_API_URL = http://127.0.0.1:$(PREFECT_PORT)/api
services: export PREFECT_HOME = $(CURDIR)/.pruneflow/server
services: export PRUNEFLOW_WORKSPACE = $(CURDIR)
services: export PREFECT_SERVER_ANALYTICS_ENABLED = false
services: export MLFLOW_DISABLE_TELEMETRY = true
services: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION = false
services: setup  ## Prefect's server and worker and MLflow's server on 127.0.0.1, until Ctrl-C
	@exec $(BIN)/honcho start

test: chromium test-fast lint  ## All tests, with the pipeline on real weights
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal

test-fast: setup  ## Unit tests on tiny models, in three minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not team" -n 2 --dist worksteal

test-team: setup postgresql  ## The pipeline on PostgreSQL, S3 and an MLflow server with users
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m team tests/team

# The tests start a cluster of their own; Debian keeps the programs off the path.
postgresql:
	@$(POSTGRESQL) || { $(SUDO) apt-get update -q; $(SUDO) apt-get install -qy postgresql; } || true
	@$(POSTGRESQL) || { echo "PostgreSQL cannot be installed here: put initdb on the path" >&2; exit 1; }

# The report is looked at in a real browser.
chromium:
	@$(CHROMIUM) || { $(SUDO) apt-get update -q; $(SUDO) apt-get install -qy chromium; } || true
	@$(CHROMIUM) || { echo "Chromium cannot be installed here: put chromium on the path" >&2; exit 1; }

lint: setup  ## Linter, formatter check, types, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: setup  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## Build the documentation into build/docs; a warning or broken link is an error
	$(BIN)/python -m docs.generate
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

lock:  ## Resolve requirements.lock and requirements-data.lock anew from pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	$(UV) pip compile --quiet $(LINKS) --universal --python-version 3.11 --generate-hashes --upgrade \
	    $(TORCH:%=--no-emit-package %) --custom-compile-command "make lock" \
	    --extra dev --extra team pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --no-deps --generate-hashes --upgrade --custom-compile-command "make lock" \
	    requirements-data.in -o requirements-data.lock

clean:  ## Remove the virtual environment and caches (data and registry stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
