# Every target needs only cargo, g++ and Python 3.11+; no root. What is built already is not built again.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
NIXL_VERSION := 1.5.1
# The oldest supported NIXL: the tests load it once.
NIXL_OLDEST := 1.4.1
TORCH_VERSION := 2.13.0
# Upstream's classes, which the tests talk to and the benchmarks compare with.
UPSTREAM_VERSION := 1.6.1

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PEERS := .cache/peers/upstream
# What else the benchmarks compare with. Mooncake needs the system's libibverbs.
OTHER_PEERS := .cache/peers/ucxx/.ready .cache/peers/mooncake/.ready
# NIXL and UCX without Python in between, a package of its own that shares the crate's builds.
RAW := .cache/peers/raw
RAW_MANIFEST := benches/raw/Cargo.toml
RAW_SOURCES := $(shell find benches/raw/src -name '*.rs') $(RAW_MANIFEST) benches/raw/Cargo.lock
RAW_CARGO := CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-target}" cargo
# Once on disk, for both environments.
TORCH := .cache/torch
DIST ?= dist
OLDEST := .cache/nixl-$(NIXL_OLDEST)

# Cargo has one word for "with Python"; maturin reads the same two features from pyproject.toml.
PYTHON_FEATURES := --features python,abi3

VENV_READY := $(VENV)/.ready
EXTENSION_READY := $(VENV)/.extension-ready
# What the Python tests need beside the extension.
OTHERS_READY := $(VENV)/.torch-ready $(PEERS)/.ready $(OLDEST)/.ready
SOURCES := $(shell find src build_backend -name '*.rs' -o -name 'bindgen_env.py' 2>/dev/null)
MANIFESTS := $(wildcard Cargo.toml Cargo.lock pyproject.toml)

##@ Daily work

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "The interpreter of a new virtual environment: make PYTHON=python3.12 setup"

setup: $(VENV_READY) .cargo/config.toml ## Make the virtual environment; afterwards plain cargo works too

build: setup $(EXTENSION_READY) ## Build the extension module into the virtual environment

demo: build ## Hand a tensor from one process to another over real NIXL
	$(BIN)/dynamo-nixl demo

test: build $(OTHERS_READY) ## Run lint and every test not marked `long`
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory test-rust
	$(MAKE) --no-print-directory test-models
	$(MAKE) --no-print-directory test-python

format: setup ## Format Rust and Python
	cargo fmt
	cargo fmt --manifest-path $(RAW_MANIFEST)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

##@ Parts of `make test`

lint: lint-rust lint-python ## Both of the next two

lint-rust: setup ## rustfmt, clippy, rustdoc, ignored tests
	cargo fmt --check
	cargo fmt --check --manifest-path $(RAW_MANIFEST)
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features testing -- -D warnings
	cargo clippy --all-targets $(PYTHON_FEATURES) -- -D warnings
	cargo clippy --tests --features model -- -D warnings
	$(RAW_CARGO) clippy --all-targets --manifest-path $(RAW_MANIFEST) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet --features testing
	$(BIN)/python scripts/check_rust_skips.py

lint-python: build ## ruff, mypy, basedpyright, stubtest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/stubtest dynamo_nixl._core --allowlist tests/python/stubtest-allow.txt

test-rust: setup ## Rust tests, with and without the scripted transport, none of them with Python
	scripts/cargo_test.sh
	scripts/cargo_test.sh --features testing
	$(RAW_CARGO) test --quiet --lib --manifest-path $(RAW_MANIFEST)

# loom itself finds threads that wait for each other; the limit is for a test that takes turns without end.
test-models: setup ## The core's concurrency: its threads in every order that differs, under loom
	timeout --foreground 900 cargo test --quiet --lib --features model ::model::

test-python: build $(OTHERS_READY) ## Python tests not marked `long`
	$(BIN)/python -m pytest

##@ Now and then

test-long: build $(OTHERS_READY) ## Tests marked `long`, and more orders of the models: they take minutes each
	LOOM_MAX_PREEMPTIONS=5 LOOM_MAX_DURATION=300 $(MAKE) --no-print-directory test-models
	$(BIN)/python -m pytest -m long -o timeout=1800 -o faulthandler_timeout=0

wheel: setup ## Build the abi3 wheel into dist/
	$(BIN)/maturin build --release --locked --out "$(DIST)"

bench: setup ## Rust benchmarks, no Python
	cargo bench

bench-python: build bench-raw ## Python benchmarks beside NIXL and, after `make bench-peers`, others
	$(BIN)/python benches/python/transfer.py
	$(BIN)/python benches/python/loop.py
	$(BIN)/python benches/python/endings.py
	$(BIN)/python benches/python/soak.py

peers: $(PEERS)/.ready ## Upstream's own environment, in .cache/peers/upstream, with torch in .cache/torch (5 GB)

bench-peers: $(PEERS)/.ready $(OTHER_PEERS) bench-raw ## What `dynamo-nixl bench` compares with, in .cache/peers: upstream, ucxx, Mooncake, NIXL and UCX

bench-raw: $(RAW)/.ready ## Of these NIXL and UCX without Python: two programs in Rust

peers-nixl141: $(OLDEST)/.ready ## The oldest supported NIXL, in .cache/nixl-1.4.1

clean: ## Remove what was built; keep the environments
	rm -rf target benches/raw/target dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f python/dynamo_nixl/*.so $(EXTENSION_READY)
	find python tests build_backend scripts benches -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove everything that git ignores here
	rm -rf $(VENV) .cache .cargo/config.toml

.PHONY: help setup build demo test format lint lint-rust lint-python test-rust test-models test-python test-long wheel bench bench-python \
	peers bench-peers bench-raw peers-nixl141 clean distclean

# The files behind the targets.

$(VENV_READY): requirements-dev.txt
	scripts/check_tools.sh "$(PYTHON)"
	test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV)
	$(PIP) install -r requirements-dev.txt
	$(PIP) install --no-deps nixl-cu12==$(NIXL_VERSION)
	touch $@

.cargo/config.toml: $(VENV_READY) scripts/write_cargo_config.py build_backend/bindgen_env.py
	$(BIN)/python scripts/write_cargo_config.py
	touch $@

# Always the release profile: `make demo`, `make test`, `make wheel` and `cargo bench` then share one build.
$(EXTENSION_READY): $(SOURCES) $(MANIFESTS) | $(VENV_READY) .cargo/config.toml
	$(BIN)/maturin develop --release
	touch $@

$(OLDEST)/.ready: | $(VENV_READY)
	rm -rf $(OLDEST)
	$(PIP) install --no-deps --target $(OLDEST) nixl-cu12==$(NIXL_OLDEST)
	touch $@

$(TORCH)/.ready: | $(VENV_READY)
	rm -rf $(TORCH)
	$(PIP) install --target $(TORCH) torch==$(TORCH_VERSION)
	touch $@

$(VENV)/.torch-ready: $(TORCH)/.ready scripts/share_packages.py | $(VENV_READY)
	$(BIN)/python scripts/share_packages.py $(TORCH)
	touch $@

# Of the interpreter that torch was installed for. The import fails here rather than in every test, and leaves the
# compiled modules behind, without which it takes a minute.
$(PEERS)/.ready: $(TORCH)/.ready scripts/share_packages.py | $(VENV_READY)
	rm -rf $(PEERS)
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install numpy pydantic uvloop
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --no-deps nixl==$(NIXL_VERSION) \
		nixl-cu13==$(NIXL_VERSION) ai-dynamo-runtime==$(UPSTREAM_VERSION)
	$(PEERS)/bin/python scripts/share_packages.py $(TORCH)
	$(PEERS)/bin/python -c "import dynamo.nixl_connect"
	touch $@

.cache/peers/ucxx/.ready: | $(VENV_READY)
	"$(PYTHON)" -m venv .cache/peers/ucxx
	.cache/peers/ucxx/bin/python -m pip --disable-pip-version-check install ucxx-cu12 numpy
	touch $@

.cache/peers/mooncake/.ready: | $(VENV_READY)
	"$(PYTHON)" -m venv .cache/peers/mooncake
	.cache/peers/mooncake/bin/python -m pip --disable-pip-version-check install mooncake-transfer-engine nvidia-cuda-runtime-cu12 numpy
	touch $@

# Only what it loads NIXL with is the crate's, so the crate's own sources are not looked at.
$(RAW)/.ready: $(RAW_SOURCES) | $(VENV_READY) .cargo/config.toml
	$(RAW_CARGO) install --quiet --locked --force --path benches/raw --root $(RAW)
	touch $@
