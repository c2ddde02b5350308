# Needs python3 (3.11 or newer), make and git; everything else is installed into .venv from
# requirements/lock.txt.
#
#   PYTHON=python3.12   the interpreter that .venv is made from
#   EXTRAS=cpu,rtx      back-ends: cpu (ONNX Runtime), gpu (ONNX Runtime CUDA and TensorRT),
#                       rtx (TensorRT-RTX, builds engines also without a GPU), sd2 (what the
#                       profile sd2 needs beyond). cpu and gpu exclude each other; where neither
#                       is named: gpu if an NVIDIA driver is found, else cpu.
#   JOBS=2              test processes
#
# torch from the default index brings CUDA libraries (gigabytes) on Linux. Without a GPU, point
# PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS at PyTorch's CPU wheels before the first make.

PYTHON ?= python3
EXTRAS ?=
JOBS ?= 2
BIN := .venv/bin

export DO_NOT_TRACK ?= 1
export DVC_NO_ANALYTICS ?= 1
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false

.DEFAULT_GOAL := help
.PHONY: help setup run serve test test-slow test-gpu lint format smoke lock deps licences audit clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create or update .venv; quick when nothing changed
	@$(PYTHON) scripts/environment.py --extras "$(EXTRAS)"

run: setup ## the whole pipeline with the profile of params.yaml, then what came out
	@$(BIN)/dvc repro
	@$(BIN)/python -m flows.summary

serve: setup ## a Prefect server (if none is there), all deployments, the schedule
	@$(BIN)/python -m flows.serve

test: setup ## unit, golden and integration tests
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: setup ## the tests marked slow
	@$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: setup ## the tests that need an NVIDIA GPU
	@$(BIN)/python -m pytest -m gpu

lint: setup ## style, format, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: setup ## put imports and format in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

smoke: setup ## the smoke profile end to end, in a scratch copy under .work/smoke
	@sh scripts/smoke.sh

lock: ## resolve pyproject.toml anew into requirements/lock.txt
	@$(PYTHON) scripts/lock.py

licences: setup ## the licence of every installed package; fails where one may not be used
	@$(BIN)/python scripts/licences.py

audit: licences ## the licences, and known vulnerabilities of the locked versions (asks PyPI)
	@$(BIN)/python scripts/audit.py

deps: setup ## correct the code dependencies in dvc.yaml from the imports
	@$(BIN)/python scripts/stage_deps.py --write

clean: ## remove .venv, scratch files and caches; keeps artifacts and DVC's cache
	@rm -rf .venv .work .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	@find flows metricgold export scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
