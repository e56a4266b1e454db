from __future__ import annotations

import os
from collections.abc import Iterator

# Before PyTorch is imported, and for the programs that tests start: every core has a worker of
# pytest-xdist, so one thread each, and where a test asks for two they wait without spinning.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}

import pytest
import torch

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
