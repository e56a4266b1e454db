"""A build is kept exactly as long as nothing that it is made from changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build_cache import cached_build


class Build:
    def __init__(self, under: Path) -> None:
        self.under, self.times = under, 0
        self.source = under / "source.h"
        self.source.write_text("one")

    def __call__(self, *flags: str) -> Path:
        def make(folder: Path) -> None:
            self.times += 1
            (folder / "object").write_text(self.source.read_text())

        return cached_build("thing", [self.source, *flags], make, under=self.under / "cache")


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_it_is_made_once(build: Build) -> None:
    assert build() == build()
    assert build.times == 1


@pytest.mark.parametrize("flags", [("-O2",), ("-O", "3"), ("-O3", "")], ids=str)
def test_other_flags_make_it_again(build: Build, flags: tuple[str, ...]) -> None:
    before = build("-O3")
    assert build(*flags) != before
    assert build.times == 2


def test_a_changed_file_makes_it_again_and_the_old_build_goes(build: Build) -> None:
    before = build()
    build.source.write_text("two")
    after = build()
    assert (after / "object").read_text() == "two"
    assert not before.exists()


def test_a_build_that_fails_leaves_nothing_that_would_be_taken_for_one(build: Build) -> None:
    def fail(folder: Path) -> None:
        (folder / "object").write_text("half")
        raise RuntimeError("no compiler")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no compiler"):
            cached_build("thing", [build.source], fail, under=build.under / "cache")
    assert (build() / "object").read_text() == "one"


def test_names_that_begin_alike_are_kept_apart(build: Build) -> None:
    before = build()
    cached_build("thing-more", ["x"], lambda folder: None, under=build.under / "cache")
    cached_build("thing", ["x"], lambda folder: None, under=build.under / "cache")
    assert not before.exists()
    assert list((build.under / "cache").glob("thing-more-*"))
