"""Checkpoints: whole or not there, and the newest that is whole is the one that counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from r1train.run.checkpoint import CheckpointStore

CPU = torch.device("cpu")


def state(value):
    shared = torch.full((3, 2), float(value))
    return {
        "model": {"weight": shared, "tied": shared, "half": torch.ones(5).bfloat16()},
        "optimizer": {"weight": {"exp_avg": torch.randn(4, 6).t(), "step": torch.tensor(2.0)}},
        "codes": torch.arange(4.0).to(torch.float8_e4m3fn),
        "empty": torch.empty(0, 3, dtype=torch.int16),
        "queue": [[1, 2], [3]],
        "said": {"a.b": "é", "none": None, "rate": 1 / 3, "yes": True},
    }


def export(folder):
    (folder / "config.json").write_text("{}")


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path / "stage", keep=0)
    for step in (1, 2, 3):
        store.save((step, 0), state(step), export)
    return store


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.float(), b.float())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_what_is_saved_is_restored(tmp_path):
    store, saved = CheckpointStore(tmp_path / "stage"), state(7)
    store.save((4, 1), saved, export)
    restored = store.restore(CPU)
    assert restored.place == (4, 1)
    assert equal(restored.state, saved)
    files = {path.suffix for path in restored.path.rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors"}  # nothing that would be unpickled


def test_the_newest_are_kept(tmp_path):
    store = CheckpointStore(tmp_path / "stage", keep=2)
    for place in ((1, 0), (2, 0), (2, 1), (9, 0), (10, 0)):
        store.save(place, {"place": list(place)}, export)
    assert [path.name for path in store.whole()] == ["checkpoint-9", "checkpoint-10"]
    assert store.restore(CPU).place == (10, 0)


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_passed_over_is_not_kept_in_the_place_of_what_is_whole(store, keep):
    store.keep = keep
    for step in (2, 3):
        damage_bit(store.folder / f"checkpoint-{step}" / "state" / "state.json")
    assert store.restore(CPU).place == (1, 0)
    assert store.save((1, 1), state(9), export).exists()
    assert store.restore(CPU).place == (1, 1)
    assert len(store.whole()) == keep


def test_what_a_killed_process_left_is_removed(store):
    for name in ("checkpoint-7.partial", "checkpoint-2.previous"):
        (store.folder / name).mkdir()
    CheckpointStore(store.folder)
    assert {path.name for path in store.folder.iterdir()} == {
        "checkpoint-1", "checkpoint-2", "checkpoint-3"
    }  # fmt: skip


def damage_tail(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)


def damage_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_tail, damage_bit, os.remove])
@pytest.mark.parametrize(
    "name",
    ["state/state.json", "state/model-00001-of-00001.safetensors", "state/manifest.json",
     "config.json"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over(store, caplog, damage, name):
    damage(store.folder / "checkpoint-3" / name)
    assert store.restore(CPU).place == (2, 0)
    if (damage, name) != (os.remove, "state/manifest.json"):  # then it never was whole
        (message,) = caplog.messages
        assert "checkpoint-3 cannot be gone on from: " in message
        assert os.path.basename(name) in message or "manifest" in name


def test_without_one_that_is_whole_there_is_none(store):
    for step in (1, 2, 3):
        damage_bit(store.folder / f"checkpoint-{step}" / "state" / "state.json")
    assert store.restore(CPU) is None


def test_a_place_that_was_damaged_is_written_again(store):
    damage_bit(store.folder / "checkpoint-3" / "state" / "state.json")
    store.save((3, 0), state(8), export)
    assert equal(store.restore(CPU).state["model"], state(8)["model"])


def test_a_model_alone_is_not_gone_on_from(store):
    store.save((4, 0), None, export)
    assert (store.folder / "checkpoint-4" / "config.json").exists()
    assert store.restore(CPU).place == (3, 0)


def test_a_save_that_is_broken_off_leaves_the_others(store):
    def stops(folder):
        export(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save((4, 0), state(4), stops)
    assert store.restore(CPU).place == (3, 0)
    store.save((4, 0), state(4), export)
    assert store.restore(CPU).place == (4, 0)
    assert not list(store.folder.glob("*.partial"))


def test_a_full_disk(tmp_path):
    """Of a process that may write files of 100 kB and no larger ones: the disk is full for it."""
    program = f"""
        import signal, resource, torch
        from pathlib import Path
        from r1train.config.schema import ConfigError
        from r1train.run.checkpoint import CheckpointStore

        store = CheckpointStore(Path({str(tmp_path)!r}))
        store.save((1, 0), {{"a": torch.zeros(10)}}, lambda folder: None)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            store.save((2, 0), {{"a": torch.zeros(100_000)}}, lambda folder: None)
        except ConfigError as error:
            print(error)
        print(sorted(path.name for path in Path({str(tmp_path)!r}).iterdir()))
        print(store.restore(torch.device("cpu")).place)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    message, names, place = result.stdout.splitlines()
    assert "checkpoint-2 cannot be written: " in message
    assert "File too large" in message
    assert "r1train resume goes on from the last" in message
    assert (names, place) == ("['checkpoint-1']", "(1, 0)")


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": {"b": {3}}}])
def test_only_tensors_and_plain_data_are_saved(tmp_path, value):
    with pytest.raises(TypeError, match=r"keys are strings|neither a tensor nor plain data"):
        CheckpointStore(tmp_path).save((1, 0), value, export)


def test_another_format_is_not_read(store):
    path = store.folder / "checkpoint-3" / "state" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert store.restore(CPU).place == (2, 0)
