"""``python -m benchmarks``: every op × case × backend, and the whole loss, against peers.

ops: each op alone. head: whole tasks, from hidden states to gradients, at
several sizes. distill: the divergence of a student from a teacher, and its
gradients. scaling: the loss against the number of rows. moe: a mixture of
experts, with its growth. fp8: a linear layer in FP8. elementwise: norms,
rotations, gates, and a model with and without. train: whole models, a GRPO
update and a rollout. all: these eight.

status: which kernels have no record of their present source.
plot: draw how time and memory grow, and the roofline of FP8, from the records.
prove: let the guarded kernels run on devices whose records allow it.
tune: better launch parameters for the Triton kernels on this GPU.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import torch

import r1kernels  # noqa: F401  (declares the ops)
from benchmarks import (
    distill,
    elementwise,
    fp8,
    head,
    moe,
    ops,
    plot,
    prove,
    record,
    roofline,
    scaling,
    status,
    train,
)
from benchmarks.record import Row
from r1kernels.core.op import OPS

MEASURE = ("ops", "moe", "fp8", "elementwise", "head", "distill", "scaling", "train")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("all", *MEASURE, "status", "plot", "prove", "tune"),
        default="all",
    )
    parser.add_argument("--op", choices=tuple(OPS), metavar="OP", help="only this op")
    parser.add_argument("--quick", action="store_true", help="few runs, no memory, no record")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.what == "status":
        print("\n".join(status.lines()) or "every kernel has a record of its present source")
    elif options.what == "prove":
        prove.write(record.load())
    elif options.what == "tune":
        from benchmarks.tune import tune  # imports Triton

        tune(options.device or "cuda", options.op)
    elif options.what == "plot":
        files = plot.draw(record.load()) + roofline.draw(record.load())
        print(f"drawn: {', '.join(map(str, files))}")
    else:
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        print(f"{record.device_name(device)}, torch {torch.__version__}", flush=True)
        path = None
        for rows in measure(options, device):
            if rows and not options.quick:  # at once: a run cut short keeps what it has measured
                path = record.save(rows, device)
        if path is not None:
            print(f"\nrecorded in {os.path.relpath(path)}")


def measure(options: argparse.Namespace, device: str) -> Iterator[list[Row]]:
    wanted = ("ops",) if options.op else MEASURE if options.what == "all" else (options.what,)
    if "ops" in wanted:
        for op in [OPS[options.op]] if options.op else OPS.values():
            yield from ops.bench(op, device, options.quick)
    if "moe" in wanted:
        yield from moe.bench(device, options.quick)
    if "fp8" in wanted:
        yield from fp8.bench(device, options.quick)
    if "elementwise" in wanted:
        yield from elementwise.bench(device, options.quick)
    if "head" in wanted:
        yield from head.bench(device, options.quick)
    if "distill" in wanted:
        yield from distill.bench(device, options.quick)
    if "scaling" in wanted:
        yield from scaling.bench(device, options.quick)
    if "train" in wanted:
        yield from train.bench(device, options.quick)


if __name__ == "__main__":
    main()
