# One line per target: what happens is in Python. `make help` lists the targets.
#
# A variable becomes a flag only when it is set, so the command line's defaults and a model's own
# recipe hold for the others.

MODEL       = yolov6n_demo# zoo name, timm:NAME, package.module:callable or file.onnx
WEIGHTS     =# checkpoint: safetensors or a state dict
DATA        =# calibration images: folder, .npy or .npz
EVAL        =# labelled images: ImageFolder, labels.csv or COCO
CALIBRATOR  =# how scales are chosen; default auto
TARGET      =# where the engine will run; default auto
BITS        =# 2 to 8, of weights and activations; default 8
WORKSPACE   = build# folder for all that is made
CALIBRATORS = minmax,percentile,entropy,mse,mae,auto# of `make compare`
ARGS        =# further flags, as they are
PYTHON     ?= python3# that makes the environment, 3.10 or newer
VENV       ?= .venv# the environment
VENV_ARGS  ?=# of python -m venv
PIP_ARGS   ?=# of pip install

FLAGS = $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(DATA),--data "$(DATA)") \
	$(if $(EVAL),--eval "$(EVAL)") $(if $(CALIBRATOR),--calibrator $(CALIBRATOR)) \
	$(if $(TARGET),--target $(TARGET)) \
	$(if $(BITS),--weight-bits $(BITS) --activation-bits $(BITS)) \
	--workspace "$(WORKSPACE)" $(ARGS)

BIN   = $(VENV)/bin
READY = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help engine validate report compare test lint regress gpu-test docs docker-server docker-jetson clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' Makefile | awk -F@ '{printf "%-24s %s\n", $$1, $$2}'
	@echo
	@echo "variables:"
	@sed -n 's/^\([A-Z_]*\) *?*= *\([^ #]*\)# \(.*\)/  \1=\2@\3/p' Makefile | awk -F@ '{printf "%-24s %s\n", $$1, $$2}'

engine: $(READY) ## checkpoint in, validated INT8 engine and report out
	$(BIN)/reptrt engine "$(MODEL)" $(FLAGS)

validate: $(READY) ## compare INT8 with FP32 again, after `make engine`
	$(BIN)/reptrt validate "$(MODEL)" $(FLAGS)

report: $(READY) ## write report.json and report.html again, after `make engine`
	$(BIN)/reptrt report "$(MODEL)" $(FLAGS)

compare: $(READY) ## one model through several calibrators, one table
	$(BIN)/reptrt compare "$(MODEL)" --calibrators $(CALIBRATORS) $(FLAGS)

test: $(READY) ## the tests; no GPU, no network
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

regress: $(READY) ## real models against pipeline/regression/baselines.yaml and docs/results.md (REPTRT_DATA=folder)
	$(BIN)/reptrt regress $(if $(TARGET),--target $(TARGET)) --workspace "$(WORKSPACE)" $(ARGS)
	REPTRT_REGRESSION=1 $(BIN)/python -m pytest -rs tests/regression

gpu-test: $(READY) ## what needs a GPU; skips, with the reason, where there is none
	$(BIN)/python -m pytest -rs tests/gpu $(ARGS)

docs: $(READY) ## the documentation as a site: build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docker-server: ## image for a GPU server
	docker build --file docker/server.Dockerfile --tag reptrt-server .

docker-jetson: ## image for a Jetson with JetPack 6; build it on the Jetson
	docker build --file docker/jetson.Dockerfile --tag reptrt-jetson .

clean: ## remove build/ and caches; the environment stays
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One environment for everything, dev tools included: beside PyTorch they weigh nothing, and every
# target then runs the same versions. After it is made, no target needs the network.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("reptrt needs Python 3.10 or newer, and $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) --editable '.[dev]'
	@touch $@
