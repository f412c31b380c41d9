# Everything is set up by the targets themselves; python3, make and a package index are enough.
PYTHON ?= python3
VENV ?= .venv
# cpu or gpu: which onnxruntime is installed.
ENGINE ?= cpu
# Options of what the target runs, for instance `make serve ARGS="--port 9000"`.
ARGS ?=
DATA_DIR ?= data/mnist
# make load: an empty HOST starts the service; more in docs/load-testing.md.
HOST ?=
STAGES ?= ramp
RATE ?= 200
WORKERS ?= 2

BIN := $(VENV)/bin
CHECKOV := .cache/checkov
LOCKER := .cache/uv
ENVIRONMENT = PYTHON="$(PYTHON)" .ci/environment
# uv does not read pip's variables; whoever set them meant both.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
# Without files that lie on this machine alone; for every Python and processor at once.
LOCK = UV_FIND_LINKS= $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--constraint constraints.txt --custom-compile-command "make lock"

.DEFAULT_GOAL := help

.PHONY: help
help: ## Print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: serve
serve: $(VENV)/.serve ## Serve the models in models/
	$(BIN)/python -m service $(ARGS)

.PHONY: test
test: $(VENV)/.develop data ## Run every test
	$(BIN)/python -m pytest

.PHONY: lint
lint: $(VENV)/.develop ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: image-lint
image-lint: $(VENV)/.develop ## Check the Dockerfile
	$(BIN)/hadolint Dockerfile

.PHONY: image-check
image-check: ## Build the images without a Docker engine, run and load them; needs root and Debian; also with ENGINE=gpu
	.ci/image-check

.PHONY: bench
bench: $(VENV)/.develop ## Run the micro-benchmarks of batching, codecs, engine and HTTP (40 s)
	$(BIN)/python -m pytest loadtests/benchmarks $(ARGS)

.PHONY: fast-path
fast-path: $(VENV)/.develop ## Compare CPU time per request with and without access log, tracing, API keys; needs wrk (2 min)
	$(BIN)/python -m loadtests.fast_path $(ARGS)

.PHONY: gpu-check
gpu-check: $(VENV)/.serve ## Compare the engine on a GPU with the CPU; with ENGINE=gpu VENV=.venv-gpu (minutes)
	$(BIN)/python -m loadtests.gpu $(ARGS)

.PHONY: peers
peers: $(VENV)/.develop ## Measure inkserve and other model servers; needs wrk (30 min)
	$(BIN)/python -m loadtests.peers $(ARGS)

.PHONY: data
data: $(VENV)/.develop ## Fetch MNIST into data/mnist; tests that need it are skipped where that fails
	-$(BIN)/python -m training data --data-dir $(DATA_DIR)

.PHONY: lock
lock: $(VENV)/.develop ## Pin and hash the packages of the image, at the versions in constraints.txt
	$(INSTALL) --constraint constraints.txt uv
	$(LOCK) --extra cpu --output-file requirements/cpu.txt pyproject.toml
	$(LOCK) --extra gpu --output-file requirements/gpu.txt pyproject.toml
	$(LOCK) --extra cuda --output-file requirements/cuda.txt pyproject.toml
	$(LOCK) --extra tracing --output-file requirements/tracing.txt pyproject.toml
	$(LOCK) --group loadtest --output-file requirements/loadtest.txt
	echo hatchling | $(LOCK) --output-file requirements/build.txt -
	echo checkov | UV_FIND_LINKS= $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/checkov.txt -

.PHONY: checkov
checkov: $(CHECKOV)/.installed ## Install checkov, by which make test judges the rendered chart

.PHONY: load
load: $(VENV)/.develop ## Load the service with real digits: HOST= STAGES=ramp|spike|soak RATE= WORKERS= ARGS= (1 min)
	$(BIN)/python -m loadtests.load --host "$(HOST)" --stages $(STAGES) --rate $(RATE) --workers $(WORKERS) $(ARGS)

.PHONY: open-loop
open-loop: $(VENV)/.develop ## Measure latency at fixed rates, and goodput under overload (6 min)
	$(BIN)/python -m loadtests.open_loop $(ARGS)

.PHONY: capacity
capacity: $(VENV)/.develop ## Measure one pod, check the simulation, simulate up to a million requests/s (6 min)
	$(BIN)/python -m loadtests.capacity measure
	-$(BIN)/python -m loadtests.simulation.check
	$(BIN)/python -m loadtests.simulation.scaling

.PHONY: plan
plan: $(VENV)/.develop ## Compute the pods for a rate from the measured capacity: ARGS="--rate 100000"
	$(BIN)/python -m loadtests.capacity plan $(ARGS)

.PHONY: tables
tables: $(VENV)/.develop ## Write the tables of settings: docs/settings.md and helm/values.schema.json
	$(BIN)/python -m helm.settings_tables

.PHONY: dashboard
dashboard: $(VENV)/.develop ## Write the Grafana dashboard, helm/dashboards/inkserve.json
	$(BIN)/python helm/dashboards/inkserve.py

.PHONY: dashboard-picture
dashboard-picture: $(VENV)/.develop ## Load the service and draw the dashboard, docs/dashboard.png; needs prometheus (7 min)
	$(BIN)/python -m loadtests.dashboard_picture $(ARGS)

.PHONY: clean
clean: ## Remove the virtual environment and the caches
	rm -rf $(VENV) $(CHECKOV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# An environment of its own, because it requires older versions of packages that the project uses.
$(CHECKOV)/.installed: requirements/checkov.txt
	@$(ENVIRONMENT) $(CHECKOV) .installed "checkov" --no-deps --requirement $<

$(LOCKER)/.installed: constraints.txt
	@$(ENVIRONMENT) $(LOCKER) .installed "uv" --constraint constraints.txt uv

$(VENV)/.serve: pyproject.toml constraints.txt
	@$(ENVIRONMENT) $(VENV) .serve "the service into $(VENV)" --constraint constraints.txt --editable ".[$(ENGINE)]"

$(VENV)/.develop: pyproject.toml constraints.txt
	@$(ENVIRONMENT) $(VENV) .develop "the service, training, tests and load tests into $(VENV)" \
		--constraint constraints.txt --editable ".[$(ENGINE),training,test,load]"
