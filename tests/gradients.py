"""Gradients of a model by the names of its parameters, and what counts as the same ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_near(
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    peer: dict[str, Tensor] | None = None,
) -> None:
    """Errors below 1e-5, or below twice that of ``peer``, gradients that may cancel as ours do."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():

        def error(of: dict[str, Tensor], name: str = name, gradient: Tensor = gradient) -> float:
            away = (of[name] - gradient).norm() / gradient.norm().clamp(min=1e-4)
            return float(away)

        assert error(found) < max(1e-5, 0.0 if peer is None else 2 * error(peer)), name
