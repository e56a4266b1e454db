"""A tree of steps, and how a search walks it: PUCT, with finished parts closed.

A node is a prefix of a solution that whole steps make up. Its prior is the share of the steps
sampled at its parent that were this one, and its value what a value model says of it; W / N of
the visits below it is Q. Among children PUCT takes the largest

    Q(s, a) + c P(s, a) √N(s) / (1 + N(s, a))        (AlphaZero, arXiv 1712.01815)

where Q of a child that was not visited is its own value, and all Q are scaled so that the values
in the tree go from 0 to 1 (MuZero, arXiv 1911.08265, equation 5): on a hard problem all are near 0,
and exploration would drown them. An end is visited once and closed, and so is a node whose children
are: nothing is left to be found there (MCTS-Solver, Winands 2008).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(eq=False)
class Node:
    """A prefix of a solution."""

    tokens: tuple[int, ...]
    """All of its steps, without the prompt."""
    prior: float = 1.0
    count: int = 1
    """How many of the steps that were sampled at its parent were this one."""
    value: float = 0.0
    """Of the value model, in [0, 1]."""
    ended: bool = False
    """Nothing follows: it is a solution, or as long as one may be."""
    whole: bool = False
    """It is a solution that has ended by itself."""
    closed: bool = False
    """Nothing is left to be found below it."""
    visits: int = 0
    total: float = 0.0
    """Sum of the values that came up from its visits."""
    children: list[Node] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Q."""
        return self.total / self.visits if self.visits else self.value

    def solutions(self) -> Iterator[Node]:
        """The whole solutions below it, in the order of the tree."""
        if self.whole:
            yield self
        for child in self.children:
            yield from child.solutions()


@dataclass
class Range:
    """The least and the largest value in a tree."""

    low: float = 1.0
    high: float = 0.0

    def add(self, value: float) -> None:
        self.low, self.high = min(self.low, value), max(self.high, value)

    def scaled(self, value: float) -> float:
        """Where it lies between them, from 0 to 1; as it is where they are the same."""
        width = self.high - self.low
        return (value - self.low) / width if width > 0 else value


def select(root: Node, values: Range, c_puct: float) -> list[Node]:
    """The path from the root to an open leaf; of equals the child that was sampled first."""

    def score(child: Node, visits: int) -> float:
        exploration = child.prior * visits**0.5 / (1 + child.visits)
        return values.scaled(child.mean) + c_puct * exploration

    path = [root]
    while path[-1].children:
        node = path[-1]
        open_children = (child for child in node.children if not child.closed)
        path.append(max(open_children, key=lambda child: score(child, node.visits)))
    return path


def back_up(path: list[Node]) -> None:
    """A visit of the last node: its value counts for all of the path, and what has no open child is
    closed."""
    leaf = path[-1]
    for node in reversed(path):
        node.visits += 1
        node.total += leaf.value
        if node.children:
            node.closed = all(child.closed for child in node.children)
