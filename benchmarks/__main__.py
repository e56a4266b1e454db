"""``python -m benchmarks``: every op × case × backend against its peers, then the whole loss."""

from __future__ import annotations

import argparse

import torch

import r1kernels  # noqa: F401  (declares the ops)
from benchmarks import head, ops, record
from benchmarks.record import Row
from r1kernels.op import OPS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "ops", "head", "status"), default="all")
    parser.add_argument("--op", choices=tuple(OPS), help="only this op")
    parser.add_argument("--quick", action="store_true", help="few runs, no memory, no record")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.what == "status":
        print("\n".join(record.status()) or "every kernel has a record of its present source")
        return
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{record.device_name(device)}, torch {torch.__version__}", flush=True)
    rows: list[Row] = []
    if options.what != "head":
        for op in [OPS[options.op]] if options.op else OPS.values():
            rows += ops.bench(op, device, options.quick)
    if options.what != "ops" and options.op is None:
        rows += head.bench(device, options.quick)
    if not options.quick:
        print(f"\nrecorded in {record.save(rows, device)}")


if __name__ == "__main__":
    main()
