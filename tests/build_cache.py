"""What takes long to build is kept under build/tests, by a hash of all that it is made from."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build/tests"


def cached_build(
    name: str,
    made_from: Iterable[str | Path],
    make: Callable[[Path], None],
    *,
    under: Path = FOLDER,
) -> Path:
    """The folder that ``make(folder)`` fills: made once for one state of ``made_from``.

    Args:
        name: of what is built; its build from an older state is deleted.
        made_from: files, which count by what is in them, and words such as a compiler's flags.
        make: fills an empty folder. When it raises, nothing is kept.

    Of several processes that ask at once, one makes it and the others wait.
    """
    folder = under / f"{name}-{_hash(made_from)}"
    with _locked(under / f"{name}.lock"):
        if not folder.exists():
            for outdated in under.glob(f"{name}-{'[0-9a-f]' * 16}*"):
                shutil.rmtree(outdated)
            scratch = folder.with_suffix(".unfinished")
            scratch.mkdir()
            make(scratch)
            scratch.rename(folder)
    return folder


def _hash(made_from: Iterable[str | Path]) -> str:
    digest = sha256()
    for part in made_from:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        # With its length, so that nothing can pass from one part into the next.
        digest.update(b"%d:" % len(content) + content)
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
