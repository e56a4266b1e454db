"""Steps of solutions, and what rollouts say that they are worth."""

from __future__ import annotations

import math

import pytest

from r1train.config.schema import ConfigError
from r1train.config.steps import StepsConfig
from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.engine.stopping import stop_tokens
from r1train.search.step_values import step_values
from r1train.search.steps import Steps
from tests.r1train.walks import LETTERS, Letters, Walks, prompts, right


def ids(text):
    return [LETTERS.index(letter) for letter in text]


def split(text, separators=(";",), max_tokens=64):
    steps = Steps(StepsConfig(separators, max_tokens), Letters(), Sampling(100), [])
    ends = steps.ends(ids(text))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [
        ("0;12;3$", {}, ["0;", "12;", "3$"]),
        ("0;12;", {}, ["0;", "12;"]),
        (";;1", {}, [";", ";", "1"]),
        ("0;;1;2;;3", {"separators": (";;",)}, ["0;;", "1;2;;", "3"]),
        ("0;1?2", {"separators": (";", "?")}, ["0;", "1?", "2"]),
        ("01234;5", {"max_tokens": 3}, ["012", "34;", "5"]),
        ("01234", {"separators": (), "max_tokens": 2}, ["01", "23", "4"]),
        ("0" * 40 + ";1", {}, ["0" * 40 + ";", "1"]),
    ],
)
def test_a_step_ends_with_a_separator_or_after_so_many_tokens(text, options, parts):
    assert split(text, **options) == parts


def test_an_empty_separator_is_refused():
    with pytest.raises(ConfigError, match=r"steps.separators = \(''.*would end every step"):
        StepsConfig(separators=("",))


def test_steps_that_were_sampled_one_by_one_are_those_of_the_whole(mini, prompts):
    """With the built-in engine and a byte-level tokenizer: some separators are within a token."""
    model, tokenizer = mini
    engine = BuiltinEngine(model, tokenizer)
    config = StepsConfig(("a", "1", "er"), max_tokens=5)
    steps = Steps(config, tokenizer, Sampling(40), stop_tokens(model, tokenizer))
    kinds = set()
    for start, prompt in enumerate(prompts[1:]):
        for seed in range(3):
            solution, ends = [], []
            while len(solution) < 30:
                request = Request([*prompt, *solution], 1, 100 * start + 10 * seed + len(ends))
                (step,) = engine.generate([request], steps.one).completion_ids
                solution += step
                ends.append(len(solution))
                kinds.add(len(step) == 5)
                if steps.is_whole(step):
                    break
            assert steps.ends(solution) == ends
    assert kinds == {True, False}  # some ended by a separator, some by their length


def test_a_solution_is_whole_with_a_stop_token_or_a_stop_string():
    sampling = Sampling(100, stop=("9?",))
    steps = Steps(StepsConfig((";",)), Letters(), sampling, [LETTERS.index("$")])
    assert [steps.is_whole(ids(text)) for text in ("1;", "1$", "9?", "12")] == [
        *(False, True, True, False)
    ]
    assert steps.one.stop == ("9?", ";")


def estimated(walks, count, rollouts=400, seed=0, n=6, chosen=None):
    """Solutions of `count` problems and the values of their steps."""
    asked = prompts(count)
    sampling = Sampling(2 * walks.depth)
    sampled = walks.generate([Request(p, n, seed=50 + i) for i, p in enumerate(asked)], sampling)
    rows = [row for row in range(len(sampled)) if chosen is None or chosen(row)]
    solutions = [sampled.completion_ids[row] for row in rows]
    steps = walks.steps()
    ends = [steps.ends(solution) for solution in solutions]
    values = step_values(
        asked,
        [sampled.prompt_index[row] for row in rows],
        solutions,
        [sampled.finished[row] for row in rows],
        ends,
        engine=walks,
        sampling=sampling,
        rollouts=rollouts,
        judge=right,
        seed=seed,
    )
    return rows, solutions, ends, values


def test_the_values_of_steps_are_their_expectations():
    """Within 4.5 standard deviations of a binomial share, of which there are about 60."""
    walks = Walks(depth=3, weights=(0.6, 0.3, 0.1))
    _, solutions, ends, values = estimated(walks, count=5)
    seen = set()
    for solution, own, found in zip(solutions, ends, values, strict=True):
        assert found[-1] == walks.value(solution)  # of the whole: no estimate
        for end, value in zip(own[:-1], found, strict=False):
            exact = walks.value(solution[:end])
            assert abs(value - exact) <= 4.5 * math.sqrt(exact * (1 - exact) / 400)
            seen.add(exact)
    assert {round(exact, 2) for exact in seen} == {0.0, 0.36, 0.6}


def test_a_prefix_has_one_value_whatever_else_is_estimated():
    walks = Walks(depth=3, weights=(0.6, 0.4))
    rows, solutions, ends, values = estimated(walks, count=3, rollouts=8)
    of_prefix = {}
    for row, solution, own, found in zip(rows, solutions, ends, values, strict=True):
        for end, value in zip(own[:-1], found, strict=False):
            assert of_prefix.setdefault((row // 6, *solution[:end]), value) == value
    assert len(of_prefix) == len({tuple(one.prompt_ids) for one in walks.requests[3:]})
    assert len(set(of_prefix.values())) > 3
    some, *_, again = estimated(walks, count=3, rollouts=8, chosen=lambda row: row % 2)
    assert again == [values[row] for row in some]
    *_, other = estimated(walks, count=3, rollouts=8, seed=1)
    assert other != values


def test_a_continuation_beyond_the_length_limit_is_wrong():
    walks = Walks(depth=3, weights=(1.0,))
    asked, solution = prompts(1), ids("0;0;0$")
    options = {"engine": walks, "rollouts": 2, "judge": right, "seed": 0}
    parts = (asked, [0], [solution], [True], [[2, 4, 6]])
    assert step_values(*parts, sampling=Sampling(6), **options) == [[1.0, 1.0, 1.0]]
    cut = (asked, [0], [solution[:5]], [False], [[2, 4, 5]])
    assert step_values(*cut, sampling=Sampling(5), **options) == [[0.0, 0.0, 0.0]]
