"""Monte Carlo tree search over steps, for many problems at the same time.

A simulation of a problem selects a leaf, samples `width` next steps there and has a value model
judge them. Leaves of all problems are expanded in one batch. What a tree becomes depends on its
prompt, its seed and its budget alone, as far as the values of the model do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from r1train.engine.base import Engine, Request
from r1train.search.steps import Steps
from r1train.search.tree import Node, Range, back_up, select
from r1train.seeds import derive_seed

Value = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Sequence[float]]
"""Of prompts and of what follows each of them: how likely the right answer is from there."""


@dataclass
class Tree:
    """The search of one problem."""

    prompt: Sequence[int]
    budget: int
    """Tokens that may be generated."""
    seed: int
    roots: list[Node] = field(default_factory=lambda: [Node(())])
    """A new one for every time that nothing was left to be found below the last."""
    values: Range = field(default_factory=Range)
    expansions: int = 0
    tokens: int = 0
    """Generated so far."""
    judged: int = 0
    """Tokens of the prefixes that the value model has read."""

    def leaf(self, c_puct: float) -> list[Node]:
        """The path to the next node to expand. Ends on the way are visited: they cost no tokens."""
        while True:
            if self.roots[-1].closed:
                self.roots.append(Node(()))
            path = select(self.roots[-1], self.values, c_puct)
            if not path[-1].ended:
                return path
            path[-1].closed = True
            back_up(path)

    def solutions(self) -> list[Node]:
        """The whole solutions that were found, in the order of the tree."""
        return [solution for root in self.roots for solution in root.solutions()]


def mcts(
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    seeds: Sequence[int],
    *,
    engine: Engine,
    steps: Steps,
    value: Value,
    width: int,
    c_puct: float,
) -> list[Tree]:
    """A tree for each prompt, searched until an expansion would take it beyond its budget.

    Nothing of that last one is used, so that no tree has seen more tokens than its budget. A
    solution that the length limit cuts off is worth 0. A node is expanded once; where nothing is
    left to be found before the budget is spent, the search begins anew from the prompt.
    """
    trees = [
        Tree(prompt, budget, seed)
        for prompt, budget, seed in zip(prompts, budgets, seeds, strict=True)
    ]
    searching = trees
    while searching:
        paths = [(tree, tree.leaf(c_puct)) for tree in searching]
        searching = _expand(paths, engine, steps, value, width)
    return trees


def _expand(
    paths: Sequence[tuple[Tree, list[Node]]],
    engine: Engine,
    steps: Steps,
    value: Value,
    width: int,
) -> list[Tree]:
    """Next steps of the last node of each path; the trees that had the tokens for them."""
    rollout = engine.generate(
        [
            Request(
                [*tree.prompt, *path[-1].tokens],
                width,
                derive_seed(tree.seed, "expansion", tree.expansions),
            )
            for tree, path in paths
        ],
        steps.one,
    )
    within: list[Tree] = []
    fresh: list[tuple[Tree, Node]] = []
    for row, (tree, path) in enumerate(paths):
        sampled = rollout.completion_ids[row * width : (row + 1) * width]
        spent = sum(map(len, sampled))
        if tree.tokens + spent > tree.budget:
            continue
        tree.tokens += spent
        tree.expansions += 1
        within.append(tree)
        path[-1].children = _children(path[-1], sampled, steps)
        fresh += [(tree, child) for child in path[-1].children if child.whole or not child.ended]
    if fresh:
        judged = value([tree.prompt for tree, _ in fresh], [child.tokens for _, child in fresh])
        for (tree, child), worth in zip(fresh, judged, strict=True):
            child.value = worth
            tree.judged += len(child.tokens)
    for tree, path in paths:
        for child in path[-1].children:
            tree.values.add(child.value)
        if path[-1].children:
            back_up(path)
    return within


def _children(node: Node, sampled: Sequence[Sequence[int]], steps: Steps) -> list[Node]:
    """The distinct ones among the steps, as nodes below this one."""
    counts: dict[tuple[int, ...], int] = {}
    for step in sampled:
        counts[tuple(step)] = counts.get(tuple(step), 0) + 1
    children = []
    for step, count in counts.items():
        tokens = (*node.tokens, *step)
        whole = steps.is_whole(step) and len(tokens) <= steps.limit
        ended = whole or len(tokens) >= steps.limit
        children.append(Node(tokens, count / len(sampled), count, ended=ended, whole=whole))
    return children
