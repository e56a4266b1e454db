"""Runs the tests of Liger, TRL and transformers on r1kernels' forms of their classes.

    make test-peers LIGER=path TRL=path TRANSFORMERS=path

Each path is a checkout of the peer, of about the release that is installed; wheels have no tests.
TRL is then the checkout's own, Liger and transformers are the installed ones.
Those that are given are run, each in a process of its own, with a plugin of this folder that puts
our classes in the place of theirs, chooses the tests that are about these, and says of each test
that it leaves out why. Ends with one line a peer; not zero if a test failed, or if nothing ran.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Peer(NamedTuple):
    """One peer. module: of this package, a pytest plugin. files: in its checkout."""

    module: str
    source: str
    files: tuple[str, ...]
    needs: tuple[str, ...] = ()  # packages that its tests import
    working_place: Callable[[Path], None] | None = None


def hub(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "peers.hub", str(folder)], check=True, env=environment())


PEERS = {
    "liger": Peer(
        "of_liger",
        "https://github.com/linkedin/Liger-Kernel",
        (
            "test/chunked_loss/test_grpo_loss.py",
            "test/transformers/test_fused_linear_cross_entropy.py",
        ),
    ),
    "trl": Peer(
        "of_trl",
        "https://github.com/huggingface/trl",
        ("tests/test_grpo_trainer.py",),
        working_place=hub,
    ),
    "transformers": Peer(
        "of_transformers",
        "https://github.com/huggingface/transformers",
        tuple(
            f"tests/models/{name}/test_modeling_{name}.py"
            for name in ("llama", "qwen2", "qwen3", "mistral", "gemma2", "qwen3_moe", "mixtral")
        ),
        needs=("parameterized",),
    ),
}


def environment(*first: Path) -> dict[str, str]:
    # The plugins are a package of their own: the checkouts have a package ``tests`` too.
    path = [*map(str, first), str(HERE.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "HF_HUB_OFFLINE": "1",
        "TRITON_INTERPRET": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(peer: Peer, checkout: Path, options: list[str]) -> int:
    missing = [name for name in peer.files if not (checkout / name).is_file()]
    if missing:
        print(f"{checkout}: expected a checkout of {peer.source}, which has {missing[0]}")
        return 2
    absent = [name for name in peer.needs if find_spec(name) is None]
    if absent:
        print(f"{checkout}: its tests import {', '.join(absent)}: pip install {' '.join(absent)}")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if peer.working_place is not None:
            peer.working_place(place)
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", f"peers.{peer.module}",
            "-c", os.devnull, "--rootdir", str(checkout), "-p", "no:cacheprovider",
            *(str(checkout / name) for name in peer.files), *options,
        ]  # fmt: skip
        return subprocess.run(command, cwd=place, env=environment(checkout)).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.peers", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for name, peer in PEERS.items():
        parser.add_argument(f"--{name}", type=Path, help=f"a checkout of {peer.source}")
    given, options = parser.parse_known_args()
    chosen = {name: path for name, path in vars(given).items() if path and str(path) != "."}
    if not chosen:
        print("test-peers: expected at least one checkout, since wheels have no tests:\n")
        for name, peer in PEERS.items():
            print(f"  {name.upper()}=path   git clone --depth 1 {peer.source}")
        print("\nand then: make test-peers LIGER=… TRL=… TRANSFORMERS=… (any of them)")
        return 2
    codes = {}
    for name, path in chosen.items():
        codes[name] = run(PEERS[name], path.resolve(), options)
    for name, code in codes.items():
        print(f"test-peers: {name}: {'passed' if code == 0 else f'FAILED (pytest: {code})'}")
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main())
