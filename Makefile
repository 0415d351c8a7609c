# Each target sets up what it needs; `make` alone lists them.
#
# One virtual environment for each backend: .venv for TensorFlow (the default), .venv-jax, .venv-torch.
BACKEND ?= tensorflow
PYTHON ?= python3
# A CPU build of torch, installed first and on its own: together with other packages, or in another
# version, pip takes the newest build and several GB of CUDA packages with it.
TORCH = torch==2.13.0
# keras-hub's backbones are tested on one backend, which takes seconds. It is installed without its
# dependencies, which include TensorFlow; these two are what it imports to build a backbone.
HUB = keras-hub==0.32.* regex tokenizers
# The experiment trackers of docs/howto/log_your_runs.md, likewise on one backend.
TRACKERS = "mlflow-skinny>=3" sqlalchemy alembic "wandb>=0.31" "trackio>=0.43" tensorboard
# The S3 server of tests/test_cloud.py, likewise. It takes 60 MB.
S3 = "moto[s3]>=5" flask flask-cors s3fs

# finetune_kit.ray on a local cluster, and a sweep on Dask, likewise on one backend: 300 MB.
CLUSTERS = "ray>=2.50" "distributed>=2025.1"

ifeq ($(filter $(BACKEND),tensorflow jax torch),)
$(error BACKEND must be tensorflow, jax or torch. Received: BACKEND=$(BACKEND))
endif

VENV = .venv$(if $(filter-out tensorflow,$(BACKEND)),-$(BACKEND))
BIN = $(VENV)/bin
RUN = KERAS_BACKEND=$(BACKEND) TF_CPP_MIN_LOG_LEVEL=2 $(BIN)/python
# The tests run in one process for each core, so each process needs only one thread.
ONE_THREAD = OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1
# JAX compiles most of the tests' models for a single use; without optimization that takes two thirds
# of the time.
ifeq ($(BACKEND),jax)
ONE_THREAD += XLA_FLAGS="--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 \
  --xla_llvm_disable_expensive_passes=true"
endif
PYTEST = $(ONE_THREAD) $(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint types docs build clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.plots  ## run the chest X-ray example on phantoms (no data, no download), and name the page to open
	$(RUN) examples/chest_xray/run.py --out out/demo

test: $(VENV)/.test  ## run all tests (BACKEND=tensorflow, jax or torch)
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/.test  ## run the tests that are not marked slow
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(VENV)/.lint  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.lint  ## check types
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini

docs: $(VENV)/.docs  ## build the docs (docs/_build/html) and run their examples
	$(RUN) -m sphinx -n -W --keep-going -q -b html docs docs/_build/html
	$(RUN) -m sphinx -n -W --keep-going -q -D nb_execution_mode=off -b doctest docs docs/_build/doctest

build: $(VENV)/.lint  ## build the wheel and the source distribution into dist/, and check them
	$(BIN)/pip install -qq build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:  ## remove what the other targets made
	rm -rf .venv .venv-* build dist out docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One stamp file for each extra: it is installed again only when pyproject.toml changes.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(if $(filter torch,$(BACKEND)),$(BIN)/pip install -qq $(TORCH))
	$(BIN)/pip install -qq -e '.[$(BACKEND),$*]'
	$(if $(filter torch-test,$(BACKEND)-$*),$(BIN)/pip install -qq --no-deps $(HUB))
	$(if $(filter tensorflow-test,$(BACKEND)-$*),$(BIN)/pip install -qq $(TRACKERS) $(S3) $(CLUSTERS))
	touch $@
