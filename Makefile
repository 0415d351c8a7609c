# Each verb sets up what it needs; `make` alone lists them.
#
# One virtual environment a backend: .venv for TensorFlow (the default), .venv-jax, .venv-torch.
BACKEND ?= tensorflow
PYTHON ?= python3
# A CPU build of torch, asked for first and by itself: asked for along with others, or in another
# version, pip takes the newest build and several GB of CUDA packages with it.
TORCH = torch==2.13.0
# keras-hub's backbones are tested on one backend, which takes seconds. It comes without what it asks
# for: that is all of TensorFlow, for texts. What it imports to build a backbone is these two.
HUB = keras-hub==0.32.* regex tokenizers

ifeq ($(filter $(BACKEND),tensorflow jax torch),)
$(error BACKEND must be tensorflow, jax or torch. Received: BACKEND=$(BACKEND))
endif

VENV = .venv$(if $(filter-out tensorflow,$(BACKEND)),-$(BACKEND))
BIN = $(VENV)/bin
RUN = KERAS_BACKEND=$(BACKEND) TF_CPP_MIN_LOG_LEVEL=2 $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint types docs build clean

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.plots  ## run the chest X-ray example on drawn phantoms (no data, no download needed)
	$(RUN) examples/chest_xray/run.py --epochs 8 --out out/demo

test: $(VENV)/.test  ## run all tests (BACKEND=tensorflow, jax or torch)
	$(RUN) -m pytest $(ARGS)

test-fast: $(VENV)/.test  ## run the tests that are not marked slow
	$(RUN) -m pytest -m "not slow" $(ARGS)

lint: $(VENV)/.lint  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.lint  ## check types
	$(BIN)/mypy

docs: $(VENV)/.docs  ## build the docs (docs/_build/html) and run their examples
	$(RUN) -m sphinx -n -W --keep-going -q -b html docs docs/_build/html
	$(RUN) -m sphinx -n -W --keep-going -q -b doctest docs docs/_build/doctest

build: $(VENV)/.lint  ## build the wheel and the source distribution into dist/, and check them
	$(BIN)/pip install -qq build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:  ## remove what the other verbs made
	rm -rf .venv .venv-* build dist out docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A stamp an extra: installed again only when pyproject.toml changes.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(if $(filter torch,$(BACKEND)),$(BIN)/pip install -qq $(TORCH))
	$(BIN)/pip install -qq -e '.[$(BACKEND),$*]'
	$(if $(filter torch-test,$(BACKEND)-$*),$(BIN)/pip install -qq --no-deps $(HUB))
	touch $@
