# All development commands; `make help` lists them.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
# uv does not read pip's settings: pass it the folder of extra wheels, if there is one.
LINKS  := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
# Dependencies of torch's CUDA build alone: not locked, but resolved with the installed torch wheel.
TORCH  := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
          nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile \
          nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
          nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
# Checks for PostgreSQL's programs and Chromium, and how to become root.
POSTGRESQL := { command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1
CHROMIUM := command -v chromium >/dev/null 2>&1
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
# No target needs a model hub; to use one, set HF_HUB_OFFLINE=0.
export HF_HUB_OFFLINE ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Every stage is a separate process: without cached bytecode each one would recompile its libraries.
unexport PYTHONDONTWRITEBYTECODE
# Ports of `make services`, on 127.0.0.1.
export PREFECT_PORT ?= 4200
export MLFLOW_PORT ?= 5000

.PHONY: help setup demo services test test-fast test-team lint format docs lock clean postgresql chromium
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## Create .venv from the committed locks (skipped if up to date)

# The lock is complete and hashed, so it is installed without resolving. Only torch is not in it,
# because its +cpu and CUDA wheels differ in hash and dependencies.
$(VENV)/.installed: requirements.lock requirements-data.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock -r requirements-data.lock
	$(UV) pip install --quiet --python $(BIN)/python $(LINKS) "torch==2.13.0"
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

demo: setup  ## Run the full pipeline: remove 20 % of the block weights of SmolLM2-135M
	$(BIN)/pruneflow configure demo
	$(BIN)/pruneflow run

services: export PREFECT_API_URL = http://127.0.0.1:$(PREFECT_PORT)/api
services: export PREFECT_HOME = $(CURDIR)/.pruneflow/server
services: export PRUNEFLOW_WORKSPACE = $(CURDIR)
services: export PREFECT_SERVER_ANALYTICS_ENABLED = false
services: export MLFLOW_DISABLE_TELEMETRY = true
services: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION = false
services: setup  ## Start Prefect's server and worker and MLflow's server on 127.0.0.1, until Ctrl-C
	@exec $(BIN)/honcho start

test: chromium test-fast lint  ## Run all tests and checks, including the pipeline on real weights
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal

test-fast: setup  ## Run the unit tests on tiny models, in three minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not team" -n 2 --dist worksteal

test-team: setup postgresql  ## Test the pipeline on PostgreSQL, S3 and an MLflow server with users
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m team tests/team

# The tests start their own cluster; Debian does not put its programs on the path.
postgresql:
	@$(POSTGRESQL) || { $(SUDO) apt-get update -q; $(SUDO) apt-get install -qy postgresql; } || true
	@$(POSTGRESQL) || { echo "PostgreSQL cannot be installed automatically: install it and put initdb on the path" >&2; exit 1; }

# Tests open the report in a real browser.
chromium:
	@$(CHROMIUM) || { $(SUDO) apt-get update -q; $(SUDO) apt-get install -qy chromium; } || true
	@$(CHROMIUM) || { echo "Chromium cannot be installed automatically: install it and put chromium on the path" >&2; exit 1; }

lint: setup  ## Check lint, format, types and spelling
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

lock:  ## Update requirements.lock and requirements-data.lock from pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	$(UV) pip compile --quiet $(LINKS) --universal --python-version 3.11 --generate-hashes --upgrade \
	    $(TORCH:%=--no-emit-package %) --custom-compile-command "make lock" \
	    --extra dev --extra team pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --no-deps --generate-hashes --upgrade --custom-compile-command "make lock" \
	    requirements-data.in -o requirements-data.lock

clean:  ## Remove the virtual environment and caches (keeps data and registry)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
