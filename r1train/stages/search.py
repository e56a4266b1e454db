"""Ways to spend the same tokens on a problem: votes, a process reward model's choice, tree search.

The paper tried the last two and reports little of them (R1, 4.2). Here all are asked the same
held-out problems, and no tree is given more tokens than the sampled solutions of its problem have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.data.encode import encode_prompts
from r1train.data.problems import ProblemSet
from r1train.data.samples import samples_of
from r1train.engine.base import Request, Sampling, requests
from r1train.engine.stopping import stop_tokens
from r1train.learn.value import StepValues
from r1train.model.load import load_process_reward
from r1train.model.policy import Policy
from r1train.report.evaluation import interval
from r1train.report.search import show_search
from r1train.search.mcts import Tree, mcts
from r1train.search.selection import aggregate, best, pair_accuracy
from r1train.search.steps import Steps
from r1train.seeds import derive_seed
from r1train.stages.base import Context, Stage
from r1train.stages.evaluate import vote
from r1train.stages.process_reward import judge
from r1train.stages.table import write_table
from r1train.verify import AnswerType

METHODS = {
    "greedy": "greedy",
    "pass@1": "one of the samples",
    "majority": "majority of the samples",
    "best_of_n": "best of the samples, by the value model",
    "weighted_majority": "majority, weighted by the value model",
    "mcts": "tree search: the best leaf",
    "mcts_majority": "tree search: majority of the leaves, weighted",
}
"""The name of each method's figures, and what it is."""


@dataclass(frozen=True)
class Candidates:
    """Solutions of a problem, and what a value model says of them."""

    answers: Sequence[str | None]
    right: Sequence[float]
    worth: Sequence[float]
    votes: Sequence[float]
    """Of each in a weighted majority."""
    answer_type: AnswerType

    def first(self, n: int) -> Candidates:
        cut = (self.answers[:n], self.right[:n], self.worth[:n], self.votes[:n])
        return Candidates(*cut, self.answer_type)


def best_of(found: Candidates) -> float:
    """Whether the one that is worth most is right; 0 where there is none."""
    return found.right[best(found.worth)] if found.right else 0.0


def voted(found: Candidates) -> float:
    """Whether the most frequent answer is right."""
    return vote(found.answers, found.right, found.answer_type)


def weighted(found: Candidates) -> float:
    """Whether the answer with the most votes is right."""
    return vote(found.answers, found.right, found.answer_type, found.votes)


@dataclass(frozen=True)
class Outcome:
    """What a method came to on each problem."""

    right: Sequence[float]
    tokens: Sequence[float]
    """Generated."""
    judged: Sequence[float] = ()
    """Of the solutions and prefixes that the value model has read; empty: none."""


def of_samples(
    samples: Sequence[Candidates], lengths: Sequence[Sequence[int]]
) -> dict[str, Outcome]:
    """The methods that choose among sampled solutions of these lengths."""
    tokens = [sum(own) for own in lengths]
    return {
        "pass@1": Outcome([fmean(one.right) for one in samples], [*map(fmean, lengths)]),
        "majority": Outcome([*map(voted, samples)], tokens),
        "best_of_n": Outcome([*map(best_of, samples)], tokens, tokens),
        "weighted_majority": Outcome([*map(weighted, samples)], tokens, tokens),
    }


def of_trees(leaves: Sequence[Candidates], trees: Sequence[Tree]) -> dict[str, Outcome]:
    """The methods that choose among the solutions that trees have found."""
    tokens, judged = [tree.tokens for tree in trees], [tree.judged for tree in trees]
    return {
        "mcts": Outcome([*map(best_of, leaves)], tokens, judged),
        "mcts_majority": Outcome([*map(weighted, leaves)], tokens, judged),
    }


class Search(Stage):
    """Held-out problems, by each of `METHODS`: a table of accuracies and tokens."""

    leaves = "table"
    uses = ("task", "rewards", "rollout", "eval", "steps", "search")
    judges_alone = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config
        self.config, asked = config.search, context.heldout[: config.eval.limit]
        self.problems = [problem for problem in asked if problem.verifiable]
        if not self.problems:
            raise ConfigError(f"search: none of {len(asked)} held-out problems has an answer")
        template = config.task.prompt_template
        self.prompts = encode_prompts(context.tokenizer, self.problems, template)
        self.judge = judge(context, self.problems)
        self.sampling = Sampling.evaluation(config.eval, config.rollout.stop)
        stop = stop_tokens(context.model, context.tokenizer)
        self.steps = Steps(config.steps, context.tokenizer, self.sampling, stop)
        self.values = self._values()

    @classmethod
    def draws(cls, config: Config) -> bool:
        """Held-out problems are searched."""
        return False

    @classmethod
    def check(cls, config: Config, train: ProblemSet) -> None:
        """There is a value model, and something to choose from."""
        config.search.require(
            config.search.value_model is not None,
            "value_model",
            'expected a process reward model: a folder, or "stage:NAME" of a process_reward stage',
        )
        reason = "expected > 0: at 0 all samples are the same, and so are the steps of a tree"
        config.eval.require(config.eval.temperature > 0, "temperature", reason)

    def _values(self) -> StepValues:
        context, path = self.context, self.config.value_model
        assert path is not None  # check
        classifier, model, tokenizer = load_process_reward(Path(path), context.config)
        if not context.tokenizer.get_vocab().items() <= tokenizer.get_vocab().items():
            raise ConfigError(
                f"search.value_model = {path!r}: its tokenizer is not the policy's, so its "
                "values are of other tokens: train it from this model"
            )
        return StepValues(Policy(model), classifier)

    def run(self, folder: Path) -> Path:
        self.context.sync(self.context.engine.version + 1)
        lengths, samples = self._samples()
        trees = self._trees([sum(own) for own in lengths])
        leaves = [*self._leaves(trees)]
        outcomes = {
            "greedy": self._greedy(),
            **of_samples(samples, lengths),
            **of_trees(leaves, trees),
        }
        table = self._table(outcomes)
        table |= self._by_number(samples)
        table |= self._diagnosis(samples, trees, leaves)
        show_search(table, METHODS)
        table["per_problem"] = {name: outcome.right for name, outcome in outcomes.items()}
        return write_table(folder, table)

    def _samples(self) -> tuple[list[list[int]], list[Candidates]]:
        """Of each problem the lengths of its solutions, and these."""
        n = self.config.num_generations
        asked = requests(self.prompts, n, self.context.seed, "samples")
        rollout = self.context.engine.generate(asked, self.sampling)
        ids, owners = rollout.completion_ids, rollout.prompt_index
        answers = self._answers(owners, ids, rollout.finished)
        right = self.judge(owners, ids, rollout.finished)
        ends = [self.steps.ends(solution) for solution in ids]
        values = self.values(rollout.prompt_ids, ids, ends)
        worth = [aggregate(own, self.config.aggregate) for own in values]
        groups = [slice(i * n, (i + 1) * n) for i in range(len(self.problems))]
        return [rollout.lengths[g] for g in groups], [
            Candidates(answers[g], right[g], worth[g], worth[g], problem.answer_type)
            for g, problem in zip(groups, self.problems, strict=True)
        ]

    def _answers(
        self, owners: Sequence[int], solutions: Sequence[list[int]], finished: Sequence[bool]
    ) -> list[str | None]:
        asked = [self.problems[owner] for owner in owners]
        context, template = self.context, self.context.config.task.prompt_template
        samples = samples_of(asked, solutions, finished, context.tokenizer, template)
        return context.rewards.answers(samples)

    def _trees(self, budgets: Sequence[int]) -> list[Tree]:
        config, seed = self.config, self.context.seed
        return mcts(
            self.prompts,
            budgets,
            [derive_seed(seed, "tree", i) for i in range(len(self.prompts))],
            engine=self.context.engine,
            steps=self.steps,
            value=self.values.last,
            width=config.width,
            c_puct=config.c_puct,
        )

    def _leaves(self, trees: Sequence[Tree]) -> Iterator[Candidates]:
        """The solutions that each tree has found; one has as many votes as samples led to it."""
        leaves = [(i, leaf) for i, tree in enumerate(trees) for leaf in tree.solutions()]
        ids = [list(leaf.tokens) for _, leaf in leaves]
        owners = [i for i, _ in leaves]
        ended = [True] * len(ids)
        answers = self._answers(owners, ids, ended) if ids else []
        right = self.judge(owners, ids, ended) if ids else []
        rows = {i: [*own] for i, own in groupby(range(len(owners)), key=owners.__getitem__)}
        for i, problem in enumerate(self.problems):
            own = rows.get(i, [])
            yield Candidates(
                [answers[row] for row in own],
                [right[row] for row in own],
                [leaves[row][1].value for row in own],
                [leaves[row][1].value * leaves[row][1].count for row in own],
                problem.answer_type,
            )

    def _greedy(self) -> Outcome:
        asked = [Request(prompt) for prompt in self.prompts]
        rollout = self.context.engine.generate(asked, replace(self.sampling, temperature=0.0))
        right = self.judge(rollout.prompt_index, rollout.completion_ids, rollout.finished)
        return Outcome([*right], rollout.lengths)

    def _table(self, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
        confidence, n = self.context.config.eval.confidence, self.config.num_generations
        table: dict[str, Any] = {"problems": len(self.problems), "samples_per_problem": n}
        for name, found in outcomes.items():
            k = n if name == "pass@1" else 1
            table |= {
                name: fmean(found.right),
                f"{name}_ci": list(interval(found.right, confidence, k)),
                f"{name}/tokens": fmean(found.tokens),
                f"{name}/judged_tokens": fmean(found.judged) if found.judged else 0.0,
            }
        return table

    def _by_number(self, samples: Sequence[Candidates]) -> dict[str, float]:
        """Choices among the first n samples, for every power of two below their number."""
        ways: dict[str, Callable[[Candidates], float]] = {
            "majority": voted,
            "best_of_n": best_of,
            "weighted_majority": weighted,
        }
        numbers = [2**i for i in range(31) if 2**i < self.config.num_generations]
        return {
            f"{name}/n={n}": fmean(way(one.first(n)) for one in samples)
            for name, way in ways.items()
            for n in numbers
        }

    def _diagnosis(
        self, samples: Sequence[Candidates], trees: Sequence[Tree], leaves: Sequence[Candidates]
    ) -> dict[str, float | None]:
        """What could have been chosen, and how well the value model orders what there is."""
        pairs = [pair_accuracy(one.worth, one.right) for one in samples]
        ordered, count = (sum(values) for values in zip(*pairs, strict=True))
        return {
            f"pass@{self.config.num_generations}": fmean(max(one.right) for one in samples),
            "mcts/found": fmean(max(one.right, default=0.0) for one in leaves),
            "mcts/solutions": fmean(len(one.right) for one in leaves),
            "mcts/expansions": fmean(tree.expansions for tree in trees),
            "value/pair_accuracy": ordered / count if count else None,
        }
