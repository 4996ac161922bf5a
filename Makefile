# Needs Python 3.11 to 3.13, git and make. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# One thread per process, so that two test processes use two cores without competing for them.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
WORKERS ?= 2
STAMP := $(VENV)/.installed
DEMO_STEPS := loop.max_steps=600 loop.eval_every=600

.PHONY: help venv demo test test-extended test-reference test-slow test-gpu check bench site clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

venv: $(STAMP) ## create the virtual environment, or update it after a change of the dependencies

$(STAMP): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
		"resdet needs Python 3.11 to 3.13, but $(PYTHON) is %d.%d; try make PYTHON=python3.12" % v[:2])'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(STAMP) ## pretrain a backbone on drawn objects; train a detector with it and one without
	$(PY) tools/pretrain_backbone.py configs/backbones/demo_objects.yaml --output runs/demo_objects
	$(PY) tools/train_det.py configs/detection/demo.yaml $(DEMO_STEPS) --output runs/demo_random
	$(PY) tools/train_det.py configs/detection/demo.yaml $(DEMO_STEPS) \
		model.backbone.weights=runs/demo_objects/backbone.safetensors --output runs/demo
	@echo "Gain from pretraining: the same number of steps from random weights and from the backbone above."
	$(PY) tools/compare.py runs/demo_random runs/demo
	@echo "mAP table: runs/demo/metrics.json; images: runs/demo/pictures/; curves: tensorboard --logdir runs"

test: $(STAMP) ## run the quick tests
	$(ONE_THREAD) $(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal

test-extended: $(STAMP) ## run the tests that start processes, compile or train for seconds
	$(ONE_THREAD) $(PY) -m pytest -m "extended and not slow and not gpu" --numprocesses $(WORKERS) \
		--dist worksteal

test-reference: $(STAMP) ## run the tests of models, losses, tasks and training with reference kernels
	RESDET_KERNELS=reference $(ONE_THREAD) $(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal \
		tests/backbones/test_resnet.py tests/backbones/classification/test_task.py \
		tests/detection/models tests/detection/tasks tests/detection/test_losses.py \
		tests/engine/test_trainer.py

test-slow: $(STAMP) ## run the tests that train
	$(PY) -m pytest -m slow

test-gpu: $(STAMP) ## run the tests that need a CUDA device
	$(PY) -m pytest -m gpu

check: $(STAMP) ## check lint rules, formatting, types and import directions
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(STAMP) ## measure speed and memory against other libraries
	$(PY) tools/benchmark.py all

site: $(STAMP) ## build the pages of docs/ as a site, in site/
	$(PY) -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean: ## remove the virtual environment, runs and caches
	rm -rf $(VENV) runs data/demo build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
