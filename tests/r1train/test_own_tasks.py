"""Tasks of our own: right by brute force, distinct, in the languages and levels that they name."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from statistics import fmean

import pytest

from r1train.config.schema import ConfigError
from r1train.config.sft import SFTConfig
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.problems import load_problems
from r1train.data.tasks import TASKS, make
from r1train.data.tasks.bilingual_reply import POLITE, TOPICS
from r1train.data.tasks.bilingual_sum import NUMBERS, SIGNS
from r1train.data.worked_solutions import check_solutions, worked_solution
from r1train.rewards.accuracy import extract_answer
from r1train.rewards.format import format_reward
from r1train.rewards.probing import nonsense
from r1train.rewards.verifiers import Verifier

SPOKEN = {word: n for words in NUMBERS.values() for n, word in enumerate(words)}
SIGN = {SIGNS[language][sign]: sign for language in SIGNS for sign in "+-"}
ENGLISH = {*NUMBERS["en"], *SIGNS["en"].values()}


def problems(name, train=200, **params):
    dataset = DatasetConfig(name=name, params=params)
    return load_problems(TaskConfig(datasets=(dataset,), train_size=train, heldout_size=50), 0)


@pytest.fixture(scope="module")
def sums():
    return problems("bilingual_sum")[0]


@pytest.fixture(scope="module")
def replies():
    return problems("bilingual_reply")[0]


def worth(text):
    """What a sum in words of either language comes to."""
    first, *rest = text.split()
    total = SPOKEN[first]
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        total += SPOKEN[term] if SIGN[sign] == "+" else -SPOKEN[term]
    return total


def test_answers_of_sums_are_right(sums):
    for problem in sums:
        assert worth(problem.question) == int(problem.answer)
        assert Verifier(sums.sources)(problem.answer, problem) == 1.0
        assert Verifier(sums.sources)(str(int(problem.answer) + 1), problem) == 0.0


def test_partial_sums_stay_in_range():
    for problem in problems("bilingual_sum", top=12)[0]:
        totals = list(itertools.accumulate(problem.metadata["terms"]))
        assert all(0 <= total <= 12 for total in totals)


def test_no_nonsense_is_credited(sums):
    for problem in sums[:20]:
        assert not any(Verifier(sums.sources)(text, problem) for text in nonsense(problem))


@pytest.mark.parametrize("name", TASKS)
def test_questions_are_distinct_and_of_the_language_they_name(name):
    train, heldout = problems(name)
    questions = [problem.question for problem in (*train, *heldout)]
    assert len({*questions}) == len(questions)
    for problem in train:
        latin = re.fullmatch("[a-z -]+", problem.question) is not None
        assert latin == (problem.metadata["language"] == "en")
    share = fmean(problem.metadata["language"] == "en" for problem in train)
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_makes_the_same_problems(name):
    first, second = (itertools.islice(make(name, {}).entries("7"), 20) for _ in range(2))
    assert list(first) == list(second)
    assert next(make(name, {}).entries("8")) != next(make(name, {}).entries("7"))


def test_the_level_is_the_number_of_terms(sums):
    levels = Counter(problem.metadata["level"] for problem in sums)
    assert set(levels) == {3, 4, 5, 6}
    assert min(levels.values()) > 25
    for problem in sums:
        assert len(problem.question.split()) == 2 * problem.metadata["level"] - 1


@pytest.mark.parametrize("name", TASKS)
def test_all_words_are_in_the_vocabulary(name):
    train, _ = problems(name)
    params = {"bilingual_sum": {"wait": 0.5, "merge": 0.5}, "bilingual_reply": {"polite": 0.5}}
    teacher = SFTConfig(teacher_accuracy=0.5, teacher_format=0.5, teacher_params=params)
    rng = random.Random(0)
    said = {
        word
        for problem in train
        for text in (problem.question, worked_solution(problem, teacher, rng))
        for word in re.sub("</?(think|answer)>", " ", text).split()
    }
    assert said <= {*TASKS[name].words}
    assert len({*TASKS[name].words}) == len(TASKS[name].words)


def test_clean_solutions_are_right_and_of_one_language(sums):
    for problem in sums:
        text = worked_solution(problem, SFTConfig(), random.Random(0))
        assert extract_answer(text) == problem.answer
        assert format_reward(text) == 1.0
        thoughts = text.split("</think>")[0].removeprefix("<think>").split()
        assert {word in ENGLISH for word in thoughts} == {problem.metadata["language"] == "en"}


def test_solutions_have_the_statistics_that_are_asked_for(sums):
    """Bounds are three standard deviations of the counts or more."""
    params = {"english_in_en": 0.85, "english_in_zh": 0.45, "merge": 0.25, "wait": 0.3}
    teacher = SFTConfig(teacher_accuracy=0.65, teacher_params={"bilingual_sum": params})
    rng = random.Random(0)
    right, waits, english = [], [], {"en": [], "zh": []}
    for _ in range(10):
        for problem in sums:
            text = worked_solution(problem, teacher, rng)
            right.append(extract_answer(text) == problem.answer)
            words = text.split("</think>")[0].removeprefix("<think>").split()
            waits.append(any(sign["wait"] in words for sign in SIGNS.values()))
            equals = [word for word in words if word in {s["="] for s in SIGNS.values()}]
            english[problem.metadata["language"]] += [word == "equals" for word in equals]
    assert fmean(right) == pytest.approx(0.65 + 0.35 * 0.3, abs=0.03)
    assert fmean(waits) == pytest.approx(0.35 * 0.3, abs=0.025)
    assert fmean(english["en"]) == pytest.approx(0.85, abs=0.02)
    assert fmean(english["zh"]) == pytest.approx(0.45, abs=0.025)


def test_a_clean_reply_says_what_is_asked_for_and_no_more(replies):
    for problem in replies:
        text = worked_solution(problem, SFTConfig(), random.Random(0))
        words = set(extract_answer(text).split())
        assert words & {*TOPICS["en"], *TOPICS["zh"]} == {*problem.metadata["required"]}
        assert not words & {*POLITE["en"], *POLITE["zh"]}
        assert not problem.verifiable


def test_without_weight_a_task_leaves_the_others_as_they_are_beside_it():
    def split(*weights, train, heldout):
        names = ("bilingual_sum", "bilingual_reply")
        datasets = [DatasetConfig(name=n, weight=w) for n, w in zip(names, weights, strict=True)]
        config = TaskConfig(datasets=tuple(datasets), train_size=train, heldout_size=heldout)
        return [{problem.question for problem in part} for part in load_problems(config, 0)]

    both = split(3, 1, train=80, heldout=40)
    first, second = split(1, 0, train=60, heldout=30), split(0, 1, train=20, heldout=10)
    for together, one, other in zip(both, first, second, strict=True):
        assert (len(one), len(other)) == (0.75 * len(together), 0.25 * len(together))
        assert one | other == together
    with pytest.raises(ConfigError, match="weight above 0"):
        split(0, 0, train=60, heldout=30)


def test_what_a_task_refuses():
    with pytest.raises(ConfigError, match=r"bilingual_sum.*min_terms = 7"):
        make("bilingual_sum", {"min_terms": 7})
    with pytest.raises(ConfigError, match=r"bilingual_sum.*digits"):
        make("bilingual_sum", {"digits": 2})


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"bilingual_sums": {}}, "did you mean 'bilingual_sum'"),
        ({"bilingual_sum": {"waits": 0.1}}, "did you mean 'wait'"),
        ({"bilingual_sum": {"wait": 2}}, r"bilingual_sum\.wait = 2"),
        ({"chain_sum": {"wait": 0.1}}, r"chain_sum\.wait"),
    ],
)
def test_what_a_teacher_refuses(sums, params, reason):
    with pytest.raises(ConfigError, match=reason):
        check_solutions(sums.sources, SFTConfig(teacher_params=params))
