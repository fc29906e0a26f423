# Front door: each target is one line that calls the script which does the work.
.DEFAULT_GOAL := help
.PHONY: help demo test test-python wheel bench report cuda asan tsan fuzz format tidy setup install clean

SECONDS ?= 60
PREFIX ?= /usr/local

help: ## List these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: ## Build the pando program and run its demo
	@scripts/setup.sh build
	@scripts/build.sh release pando_cli
	@build/pando demo

test: ## Build everything and run every test, those of Python with NumPy and JAX
	@scripts/setup.sh build python
	@scripts/test.sh release

test-python: ## Run every test of Python, with PyTorch and Transformers too (gigabytes from PyPI)
	@scripts/setup.sh build python
	@scripts/python.sh test

wheel: ## Build the Python wheel into build-wheel/
	@scripts/setup.sh build python
	@scripts/python.sh wheel

bench: ## Build and run the benchmarks
	@scripts/setup.sh build
	@scripts/bench.sh

report: ## Build the benchmark report, docs/benchmarks/index.html, from the records beside it
	@scripts/setup.sh build python
	@scripts/python.sh report

asan: ## Run every test under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/setup.sh build
	@scripts/test.sh asan

tsan: ## Run every test under ThreadSanitizer
	@scripts/setup.sh build
	@scripts/test.sh tsan

cuda: ## Build the CUDA backend for sm_90a and check its kernels (needs nvcc, no GPU)
	@scripts/setup.sh build
	@scripts/cuda.sh

fuzz: ## Run each fuzz target for SECONDS (60)
	@scripts/setup.sh build fuzz
	@scripts/fuzz.sh $(SECONDS)

format: ## Format every C++ file
	@scripts/setup.sh format
	@scripts/format.sh

tidy: ## Run clang-tidy on every C++ file
	@scripts/setup.sh build tidy
	@scripts/tidy.sh

setup: ## Install the packages that all of these need
	@scripts/setup.sh build python format tidy fuzz

install: ## Build and install library, headers and program into PREFIX (/usr/local)
	@scripts/build.sh release
	@cmake --install build --prefix $(PREFIX)

clean: ## Remove the build directories of all presets
	rm -rf build build-dev build-asan build-tsan build-cuda build-fuzz build-gpu build-wheel
