from __future__ import annotations

import os
from collections.abc import Iterator

# Before PyTorch is imported, and for the programs that tests start: every core has a worker of
# pytest-xdist, and threads beside it would wait for each other.
for name in (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
):
    os.environ[name] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

# Before any kernel is imported: without a GPU, Triton's run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def one_thread_and_one_seed() -> Iterator[None]:
    """The same arithmetic and the same draws, whatever ran before and however many cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


from tests.emulated_cuda import emulated, kernels  # noqa: E402, F401 (fixtures)
