"""What the runner of the peers' tests says where there is nothing that it could run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.__main__ import PEERS, main
from tests.peers.choice import Choice


def test_without_checkouts_it_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["peers"])
    assert main() != 0
    said = capsys.readouterr().out
    for name, peer in PEERS.items():
        assert f"{name.upper()}=path" in said
        assert peer.source in said


def test_a_folder_that_is_no_checkout_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["peers", "--trl", str(tmp_path)])
    assert main() != 0
    said = capsys.readouterr().out
    assert f"{tmp_path}: expected a checkout of {PEERS['trl'].source}" in said
    assert "trl: FAILED" in said


class Item:
    def __init__(self, name: str) -> None:
        self.nodeid = f"tests/test_it.py::{name}"


class Config:
    hook = None

    def __init__(self) -> None:
        self.hook = self
        self.deselected: list[Item] = []

    def pytest_deselected(self, items: list[Item]) -> None:
        self.deselected = items


def test_every_test_left_out_has_a_reason() -> None:
    choice, config = Choice({r"image": "only text", r"\[True\]": "refused"}), Config()
    items = [Item(name) for name in ("test_a", "test_image[1]", "test_image[2]", "test_b[True]")]
    choice.pytest_collection_modifyitems(config, items)
    assert [item.nodeid for item in items] == ["tests/test_it.py::test_a"]
    assert len(config.deselected) == 3
    assert dict(choice.left_out) == {"only text": 2, "refused": 1}
