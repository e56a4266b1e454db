"""Tree search over steps: what it finds, what it costs, and that it can be repeated."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from r1train.engine.base import Request, Sampling
from r1train.search.mcts import mcts
from r1train.search.selection import aggregate, best, pair_accuracy
from r1train.search.tree import Node, Range, back_up, select
from tests.r1train.walks import END, SEPARATOR, Walks, prompts

COUNT = 40


def searched(walks, budget, value, width=6, count=COUNT, limit=None, seed=7, c_puct=0.5):
    """A tree for each of `count` problems, with as many tokens."""
    return mcts(
        prompts(count),
        [budget] * count,
        [seed + 1000 * i for i in range(count)],
        engine=walks,
        steps=walks.steps(limit),
        value=value,
        width=width,
        c_puct=c_puct,
    )


def perfect(walks):
    return lambda prompts, prefixes: [walks.value(tokens) for tokens in prefixes]


def noise(prompts, prefixes):
    """Values that say nothing, the same for the same prefix of the same prompt."""
    return [
        random.Random(f"{list(prompt)}{list(prefix)}").random()
        for prompt, prefix in zip(prompts, prefixes, strict=True)
    ]


def chosen(tree):
    """The solution that is worth most; None where there is none."""
    solutions = tree.solutions()
    return max(solutions, key=lambda leaf: leaf.value).tokens if solutions else None


def solved(walks, solutions):
    return sum(tokens is not None and walks.value(tokens) == 1 for tokens in solutions)


def sampled(walks, n, count=COUNT):
    """n whole solutions of each problem."""
    requests = [Request(p, n, seed=i) for i, p in enumerate(prompts(count))]
    ids = walks.generate(requests, Sampling(2 * walks.depth)).completion_ids
    return [[tuple(one) for one in ids[i * n : (i + 1) * n]] for i in range(count)]


def test_a_perfect_value_finds_what_sampling_does_not():
    walks = Walks(depth=5, weights=(0.4, 0.3, 0.3))  # one solution in a hundred is right
    n = 10
    budget = n * 2 * walks.depth
    trees = searched(walks, budget, perfect(walks))
    found = solved(walks, map(chosen, trees))
    with_luck = sum(any(walks.value(one) == 1 for one in own) for own in sampled(walks, n))
    assert found >= 0.7 * COUNT
    assert with_luck <= 0.3 * COUNT


def test_values_that_say_nothing_do_not_beat_a_majority():
    walks = Walks(depth=3, weights=(0.6, 0.2, 0.2))  # right with .216, others with at most .072
    n = 16
    trees = searched(walks, n * 2 * walks.depth, noise)
    votes = [Counter(own).most_common(1)[0][0] for own in sampled(walks, n)]
    assert solved(walks, votes) > solved(walks, map(chosen, trees)) + 5


def test_no_tree_uses_more_than_its_budget():
    walks = Walks(depth=4, weights=(0.5, 0.5))
    budgets = [0, 7, 8, 30, 61]
    trees = mcts(
        prompts(5),
        budgets,
        [1] * 5,
        engine=walks,
        steps=walks.steps(),
        value=noise,
        width=4,
        c_puct=0.5,
    )
    assert [tree.tokens <= budget for tree, budget in zip(trees, budgets, strict=True)] == [
        True
    ] * 5
    assert [tree.tokens for tree in trees[:3]] == [0, 0, 8]  # an expansion is four steps of two
    assert [tree.expansions for tree in trees[:3]] == [0, 0, 1]
    assert walks.generated == sum(tree.tokens for tree in trees) + 5 * 8  # the last is not used
    for tree in trees:
        nodes = [node for root in tree.roots for node in everything(root)]
        assert sum(node.count * 2 for node in nodes if node.tokens) == tree.tokens
        assert sum(len(node.tokens) for node in nodes) == tree.judged


def everything(node):
    return [node, *itertools.chain(*map(everything, node.children))]


def shape(node):
    return (node.tokens, node.count, node.value, node.visits, node.total, node.closed,
            [shape(child) for child in node.children])  # fmt: skip


def shapes(tree):
    return [shape(root) for root in tree.roots]


def test_a_tree_is_that_of_its_problem_and_seed():
    walks = Walks(depth=4, weights=(0.5, 0.3, 0.2))
    together = searched(walks, 60, noise, count=5)
    again = searched(walks, 60, noise, count=5)
    assert [shapes(tree) for tree in together] == [shapes(tree) for tree in again]
    for i, tree in enumerate(together):
        (alone,) = mcts(
            prompts(5)[i : i + 1],
            [60],
            [7 + 1000 * i],
            engine=walks,
            steps=walks.steps(),
            value=noise,
            width=6,
            c_puct=0.5,
        )
        assert shapes(alone) == shapes(tree)
    other = searched(walks, 60, noise, count=5, seed=8)
    assert [shapes(tree) for tree in other] != [shapes(tree) for tree in together]


def test_where_everything_is_found_the_search_begins_anew():
    walks = Walks(depth=2, weights=(0.5, 0.5))
    (tree,) = searched(walks, 100, noise, count=1)  # an expansion is six steps of two
    first, second, third = tree.roots
    assert {leaf.tokens for leaf in first.solutions()} == {
        (a, SEPARATOR, b, END) for a in (0, 1) for b in (0, 1)
    }
    assert (first.closed, second.closed, third.closed) == (True, True, False)
    assert (tree.expansions, tree.tokens) == (8, 96)
    assert len(tree.solutions()) == 10


def test_a_solution_that_is_cut_off_is_worth_nothing():
    walks = Walks(depth=3, weights=(0.5, 0.5))
    (tree,) = searched(walks, 36, lambda p, prefixes: [1.0] * len(prefixes), count=1, limit=4)
    ends = [node for node in everything(tree.roots[0]) if node.ended]
    assert ends
    assert not any(node.whole or node.value for node in ends)
    assert tree.solutions() == []
    assert tree.roots[0].children[0].mean < 1  # as these were visited


def test_the_child_that_puct_takes():
    """By hand: √N = 2; scores .2 + 1.2 / 1, 1.2 / 3 + .8 / 4, .9 + 0 and, closed, none."""
    children = [
        Node((1,), prior=0.6, value=0.2),
        Node((2,), prior=0.4, visits=3, total=1.2),
        Node((3,), prior=0.0, value=0.9),
        Node((4,), prior=0.9, value=0.99, closed=True),
    ]
    root = Node((), visits=4, children=children)
    assert select(root, Range(0, 1), c_puct=1.0)[-1] is children[0]
    assert select(root, Range(0, 1), c_puct=0.1)[-1] is children[2]  # .32, .42, .9
    children[2].closed = True
    assert select(root, Range(0, 1), c_puct=0.1)[-1] is children[1]
    assert select(root, Range(0.2, 0.4), c_puct=0.9)[-1] is children[1]  # 0 + 1.08, 1 + .18
    assert select(root, Range(0, 0.4), c_puct=0.9)[-1] is children[0]  # .5 + 1.08, 1 + .18


def test_values_are_scaled_by_those_of_the_tree():
    values = Range()
    values.add(0.3)
    assert values.scaled(0.3) == 0.3
    values.add(0.1)
    assert [values.scaled(v) for v in (0.1, 0.2, 0.3)] == pytest.approx([0, 0.5, 1])


def test_a_visit_counts_along_its_path():
    leaf = Node((1, 2), value=0.25, ended=True, closed=True)
    middle = Node((1,), value=0.75, visits=1, total=0.75, children=[leaf])
    root = Node((), visits=2, total=0.75, children=[middle, Node((2,))])
    back_up([root, middle, leaf])
    assert (leaf.visits, leaf.mean) == (1, 0.25)
    assert (middle.visits, middle.mean) == (2, 0.5)
    assert (root.visits, root.total) == (3, 1.0)
    assert middle.closed
    assert not root.closed


@pytest.mark.parametrize(("how", "score"), [("min", 0.5), ("prod", 0.36), ("last", 0.8)])
def test_the_score_of_a_solution(how, score):
    assert aggregate([0.9, 0.5, 0.8], how) == pytest.approx(score)


def test_the_best_is_the_first_of_equals():
    assert best([0.1, 0.7, 0.7]) == 1


def test_pairs_in_order_are_counted():
    rng = random.Random(0)
    for _ in range(20):
        scores = [rng.randrange(4) for _ in range(6)]
        right = [float(rng.random() < 0.5) for _ in scores]
        pairs = [(i, j) for i in range(6) for j in range(6) if right[i] and not right[j]]
        ordered = sum(1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j])
                      for i, j in pairs)  # fmt: skip
        assert pair_accuracy(scores, right) == (ordered, len(pairs))
