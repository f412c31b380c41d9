# The targets install what they need into VENV. They require Python 3.11 or later, make and a package index.
PYTHON ?= python3
VENV ?= .venv
# The onnxruntime to install: cpu or gpu.
ENGINE ?= cpu
# The extras of the image: tracing, grpc, signing, cuda or none.
EXTRAS ?= tracing
# Options for the command that a target runs, for instance `make serve ARGS="--port 9000"`.
ARGS ?=
DATA_DIR ?= data/mnist
# make load: an empty HOST starts the service; more in docs/load-testing.md.
HOST ?=
STAGES ?= ramp
RATE ?= 200
# make chart-push and make sign.
REGISTRY ?=
REF ?=
KEY ?= cosign.key
BOM ?=
WORKERS ?= 2

BIN := $(VENV)/bin
AUDIT := .cache/audit
CHECKOV := .cache/checkov
CLIENTS := .cache/clients
FEDERATED := .cache/federated
SBOM := .cache/sbom
LOCKER := .cache/uv
# Tests run make: without the variables of this make's command line.
PYTEST = env -u ARGS -u MAKEFLAGS -u MFLAGS -u MAKEOVERRIDES $(BIN)/python -m pytest
ENVIRONMENT = PYTHON="$(PYTHON)" .ci/environment
# uv ignores pip's variables.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
# Without this machine's local files, and for every Python version and processor.
LOCK = UV_FIND_LINKS= $(LOCKER)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--constraint constraints.txt --custom-compile-command "make lock"

.DEFAULT_GOAL := help

.PHONY: help
help: ## Print this list; times are those of 2 cores, after the installation
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: serve
serve: $(VENV)/.serve ## Serve the models in models/ (ready in 9 s, after 30 s of installation)
	@# Ignored until Python has a handler, SIGHUP cannot kill the process while it starts.
	trap '' HUP; exec $(BIN)/python -m service $(ARGS)

.PHONY: check
check: lint ## Check style, types, imports and the fast unit tests, before a commit (50 s)
	@# pytest starts several seconds earlier if it may keep its cache of rewritten tests, and each of its processes
	@# 0.3 s earlier without schemathesis. A file's tests run in one process, so what they share is made once.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --quiet --numprocesses auto --dist loadfile \
		-p no:schemathesis -m "not slow and not nightly" tests/unit $(ARGS)

.PHONY: test
test: $(VENV)/.develop data ## Run every test; ARGS="--numprocesses 2 --dist loadfile" runs them in two processes (19 min)
	$(PYTEST) $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.develop data ## Run every test in two processes and measure the branch coverage (20 min)
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --numprocesses 2 --dist loadfile \
		--durations 30 --durations-min 5 $(ARGS)

.PHONY: lint
lint: $(VENV)/.develop ## Check style, types and which wing imports which (10 s, 1 min without a cache)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python -m mypy

.PHONY: image-lint
image-lint: $(VENV)/.develop ## Check the Dockerfile (1 s)
	$(BIN)/hadolint Dockerfile

.PHONY: image-check
image-check: $(VENV)/.develop ## Build, run and load the images, and play the chart; as root on Debian, without Docker; also with ENGINE=gpu
	PYTHON="$(BIN)/python" .ci/image-check

.PHONY: sbom
sbom: $(SBOM)/.installed ## Write the SBOM of the image's packages and models, build/inkserve.cdx.json (30 s)
	rm -rf build/sbom && mkdir -p build
	$(SBOM)/bin/python -m pip install --quiet --target build/sbom --report build/sbom.json --only-binary :all: \
		--require-hashes $(foreach lock,$(ENGINE) $(EXTRAS),--requirement requirements/$(lock).txt)
	$(SBOM)/bin/python -m pip install --quiet --target build/sbom --no-deps .
	$(SBOM)/bin/python .ci/sbom.py build/sbom --report build/sbom.json --models models --output build/inkserve.cdx.json

.PHONY: audit
audit: $(AUDIT)/.installed ## Look up known vulnerabilities of every pinned package, but for Flower's (1 min)
	.ci/audit.py $(AUDIT)/bin/pip-audit constraints.txt $(filter-out %/federated.txt, $(wildcard requirements/*.txt))

.PHONY: bench
bench: $(VENV)/.develop ## Run the micro-benchmarks of batching, codecs, engine and HTTP (40 s)
	$(BIN)/python -m pytest loadtests/benchmarks $(ARGS)

# atheris keeps the result of every comparison of arrays: 11 kB per input, 1.5 GB in 120,000 inputs.
.PHONY: fuzz
fuzz: $(VENV)/.develop ## Fuzz the decoding of bodies, guided by coverage (10 min; SECONDS= for less)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt atheris pillow-heif
	$(BIN)/python -m loadtests.fuzz -max_total_time=$(or $(SECONDS),600) -rss_limit_mb=4096 $(ARGS)

.PHONY: nightly
nightly: ## Run what takes too long for CI: fuzzing, many examples, photos, chaos, coverage, the GPU's image; then a summary (90 min)
	VENV="$(VENV)" .ci/nightly

.PHONY: fast-path
fast-path: $(VENV)/.develop ## Compare CPU time per request with and without access log, tracing, API keys; needs wrk (2 min)
	$(BIN)/python -m loadtests.fast_path $(ARGS)

.PHONY: gpu-check
gpu-check: $(VENV)/.serve ## Compare the engine on a GPU with the CPU; with ENGINE=gpu VENV=.venv-gpu (minutes)
	$(BIN)/python -m loadtests.gpu $(ARGS)

.PHONY: gpu-service
gpu-service: $(VENV)/.develop ## Load the service on a GPU in all its forms; needs wrk; with ENGINE=gpu VENV=.venv-gpu (4 min)
	$(BIN)/python -m loadtests.gpu_service $(ARGS)

.PHONY: peers
peers: $(VENV)/.develop ## Measure inkserve and other model servers; needs wrk (25 min)
	$(BIN)/python -m loadtests.peers $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.develop ## Trouble the service in every way and write docs/reliability.md's table; on Linux (40 min)
	$(BIN)/python -m loadtests.chaos $(ARGS)

.PHONY: data
data: $(VENV)/.develop ## Fetch MNIST into data/mnist (5 s); tests that need it are skipped if that fails
	-$(BIN)/python -m training data --data-dir $(DATA_DIR)

.PHONY: lock
lock: $(LOCKER)/.installed ## Pin and hash the packages of the image, at the versions in constraints.txt (30 s)
	$(LOCK) --extra cpu --output-file requirements/cpu.txt pyproject.toml
	$(LOCK) --extra gpu --output-file requirements/gpu.txt pyproject.toml
	$(LOCK) --extra cuda --output-file requirements/cuda.txt pyproject.toml
	$(LOCK) --extra tracing --output-file requirements/tracing.txt pyproject.toml
	$(LOCK) --extra signing --output-file requirements/signing.txt pyproject.toml
	$(LOCK) --extra grpc --output-file requirements/grpc.txt pyproject.toml
	$(LOCK) --group loadtest --output-file requirements/loadtest.txt
	echo hatchling | $(LOCK) --output-file requirements/build.txt -
	printf 'cyclonedx-python-lib\npackaging\npip\n' | $(LOCK) --output-file requirements/sbom.txt -
	echo pip-audit | UV_FIND_LINKS= $(LOCKER)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/audit.txt -
	echo checkov | UV_FIND_LINKS= $(LOCKER)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" --output-file requirements/checkov.txt -
	echo 'tritonclient[grpc,http]' | UV_FIND_LINKS= $(LOCKER)/bin/uv pip compile --quiet --universal \
		--python-version 3.11 --no-annotate --custom-compile-command "make lock" \
		--output-file requirements/clients.txt -
	printf 'flwr[simulation]\nmatplotlib\nopacus\n' | UV_FIND_LINKS= $(LOCKER)/bin/uv pip compile --quiet --universal \
		--python-version 3.11 --no-annotate --override requirements/federated.overrides --no-emit-package torch \
		--custom-compile-command "make lock" --output-file requirements/federated.txt -

.PHONY: checkov
checkov: $(CHECKOV)/.installed ## Install checkov, with which make test checks the rendered chart (1 min)

.PHONY: clients
clients: $(CLIENTS)/.installed ## Install Triton's client, with which make test asks the service (20 s)

.PHONY: federated
federated: $(FEDERATED)/.installed ## Train on simulated clients with Flower and draw accuracy by round; needs make data (minutes)
	$(FEDERATED)/bin/python -m training.federated $(ARGS)

.PHONY: load
load: $(VENV)/.develop ## Load the service with real digits: HOST= STAGES=ramp|spike|soak RATE= WORKERS= ARGS= (1 min)
	$(BIN)/python -m loadtests.load --host "$(HOST)" --stages $(STAGES) --rate $(RATE) --workers $(WORKERS) $(ARGS)

.PHONY: open-loop
open-loop: $(VENV)/.develop ## Measure latency at fixed rates, and goodput under overload (6 min)
	$(BIN)/python -m loadtests.open_loop $(ARGS)

.PHONY: retry-after
retry-after: $(VENV)/.develop ## Send bursts to clients that obey Retry-After, and to some that do not (3 min)
	$(BIN)/python -m loadtests.retry_after $(ARGS)

.PHONY: capacity
capacity: $(VENV)/.develop ## Measure one pod, check the simulation, simulate up to a million requests/s (6 min)
	$(BIN)/python -m loadtests.capacity measure
	-$(BIN)/python -m loadtests.simulation.check
	$(BIN)/python -m loadtests.simulation.scaling

.PHONY: plan
plan: $(VENV)/.develop ## Compute the pods for a rate from the measured capacity: ARGS="--rate 100000"
	$(BIN)/python -m loadtests.capacity plan $(ARGS)

.PHONY: tables
tables: $(VENV)/.develop ## Write docs/settings.md, the settings in helm/values.schema.json, and helm/README.md
	$(BIN)/python -m helm.settings_tables
	$(BIN)/python -m helm.values_table

.PHONY: chart-package
chart-package: $(VENV)/.develop ## Package the chart and list what it runs: build/inkserve-VERSION.tgz and .cdx.json (1 s)
	mkdir -p build
	$(BIN)/python .ci/publish_chart.py build $(ARGS)

.PHONY: chart-push
chart-push: $(VENV)/.develop ## Package the chart and push it: REGISTRY=registry.example.com/charts; prints what to sign
	@test -n "$(REGISTRY)" || { echo "REGISTRY is unset, expected such as registry.example.com/charts" >&2; exit 2; }
	mkdir -p build
	$(BIN)/python .ci/publish_chart.py build --push "$(REGISTRY)" $(ARGS)

.PHONY: sign
sign: ## Sign an image or a pushed chart and its SBOM: REF=...@sha256:... KEY=cosign.key BOM=build/...; needs cosign
	@case "$(REF)" in *@sha256:*) ;; *) echo "REF is '$(REF)', expected NAME@sha256:..." >&2; exit 2; esac
	@test -f "$(BOM)" || { echo "BOM is '$(BOM)', expected a file of make sbom or make chart-package" >&2; exit 2; }
	cosign sign --key "$(KEY)" "$(REF)"
	cosign attest --key "$(KEY)" --type cyclonedx --predicate "$(BOM)" "$(REF)"

.PHONY: proto
proto: $(VENV)/.develop ## Write the modules that protoc makes of service/grpc/*.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. service/grpc/*.proto

.PHONY: dashboard
dashboard: $(VENV)/.develop ## Write the Grafana dashboard, helm/dashboards/inkserve.json
	$(BIN)/python helm/dashboards/inkserve.py

.PHONY: dashboard-picture
dashboard-picture: $(VENV)/.develop ## Load the service and draw the dashboard, docs/dashboard.png; needs prometheus (7 min)
	$(BIN)/python -m loadtests.dashboard_picture $(ARGS)

.PHONY: docs
docs: $(VENV)/.develop ## Build the documentation site, build/site; a warning is an error (2 s)
	$(BIN)/python -m zensical build --clean --strict

.PHONY: clean
clean: ## Remove the virtual environments and the caches
	rm -rf $(VENV) $(VENV).new $(AUDIT) $(CHECKOV) $(CLIENTS) $(FEDERATED) $(LOCKER) $(SBOM) build .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache

# An environment of its own, because it requires older versions of packages that the project uses.
$(CHECKOV)/.installed: requirements/checkov.txt
	@$(ENVIRONMENT) $(CHECKOV) .installed "checkov (1 min)" --no-deps --requirement $<

# An environment of its own, because it requires older versions of packages that the project uses.
$(CLIENTS)/.installed: requirements/clients.txt
	@$(ENVIRONMENT) $(CLIENTS) .installed "Triton's client (20 s)" --no-deps --requirement $<

# An environment of its own, because Flower requires older versions. torch is the one of every other installation,
# and not in the lock, so that an index or --find-links with the build for CPUs decides what comes with it.
$(FEDERATED)/.installed: requirements/federated.txt constraints.txt
	@$(ENVIRONMENT) $(FEDERATED) .installed "Flower, Ray and torch (1.7 GB, minutes)" --requirement $< \
		"$(shell grep '^torch==' constraints.txt)"

# An environment of its own, because it may require other versions than those that it audits.
$(AUDIT)/.installed: requirements/audit.txt
	@$(ENVIRONMENT) $(AUDIT) .installed "pip-audit (10 s)" --no-deps --requirement $<

$(SBOM)/.installed: requirements/sbom.txt
	@$(ENVIRONMENT) $(SBOM) .installed "the SBOM's tools (10 s)" --require-hashes --requirement $<

$(LOCKER)/.installed: constraints.txt
	@$(ENVIRONMENT) $(LOCKER) .installed "uv (10 s)" --constraint constraints.txt uv

$(VENV)/.serve: pyproject.toml constraints.txt
	@$(ENVIRONMENT) $(VENV) .serve "the service into $(VENV) (240 MB, 30 s)" \
		--constraint constraints.txt --editable ".[$(ENGINE)]"

$(VENV)/.develop: pyproject.toml constraints.txt
	@$(ENVIRONMENT) $(VENV) .develop "service, training, tests and load tests into $(VENV) (2 GB, 2 to 6 minutes)" \
		--constraint constraints.txt --editable ".[$(ENGINE),training,test,load]"
