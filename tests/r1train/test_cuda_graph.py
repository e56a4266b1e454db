"""When a step is captured and replayed, without a GPU: in the place of PyTorch's graphs."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext

import pytest
import torch

from r1train.engine.cuda_graph import Graphs


class Graph:
    """Remembers the step that was run within `graph(self)`, and runs it when it is replayed."""

    def pool(self):
        return "pool"

    def replay(self):
        self.step()


class Steps:
    """A step that counts; while it is being captured it only says what it would do."""

    def __init__(self):
        self.done, self.capturing, self.refuses = 0, None, False

    def __call__(self):
        if self.capturing is None:
            self.done += 1
        elif self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        else:
            self.capturing.step = self


@pytest.fixture
def steps(monkeypatch):
    steps, stream = Steps(), type("Stream", (), {"wait_stream": lambda self, other: None})

    @contextmanager
    def graph(graph, pool):
        steps.capturing = graph
        try:
            yield
        finally:
            steps.capturing = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return steps


def test_every_call_does_the_step_once(steps):
    graphs = Graphs()
    for count in range(1, 6):
        graphs.run("shape", steps)
        assert steps.done == count
    assert isinstance(graphs.graphs["shape"], Graph)


def test_graphs_are_forgotten_when_what_they_read_has_moved(steps):
    graphs = Graphs()
    graphs.keep_for(1)
    for _ in range(2):
        graphs.run("shape", steps)
    graphs.keep_for(1)
    assert graphs.graphs
    graphs.keep_for(2)
    assert not graphs.graphs
    assert graphs.pool is None


def test_a_step_that_cannot_be_captured_runs_as_it_is(steps, caplog):
    graphs, steps.refuses = Graphs(), True
    with caplog.at_level(logging.WARNING, logger="r1train"):
        for count in range(1, 5):
            graphs.run("shape", steps)
            assert steps.done == count
    assert caplog.text.count("not captured in CUDA graphs") == 1
    assert "more" not in caplog.text
