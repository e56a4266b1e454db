import random
from pathlib import Path

import pytest

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.suite.metrics import metric_of
from r1train.suite.metrics.base import Response
from r1train.suite.questions import Question, load
from r1train.suite.specs import benchmarks

DATA = Path(__file__).parent / "data"


def metric():
    pytest.importorskip("lm_eval")
    return metric_of(benchmarks()["ifeval"], Config())


def test_a_response_that_follows_all_instructions_counts():
    rivers, rain = load(benchmarks()["ifeval"], DATA)
    said = [
        (rivers, "the glomma and the otra"),
        (rivers, "the Glomma and the Otra"),
        (rain, "A puddle, another puddle."),
        (rain, "One puddle."),
        (rain, ""),
    ]
    responses = [Response(question, text, text or None) for question, text in said]
    judge = metric()
    scores = judge(responses)
    assert [score.value for score in scores] == [1, 0, 1, 0, 0]
    assert scores[1].detail == {"followed": [True, False], "loose": [True, False]}
    assert judge.figures(responses, scores) == {
        "instruction_strict": pytest.approx(4 / 7),
        "prompt_loose": pytest.approx(2 / 5),
        "instruction_loose": pytest.approx(4 / 7),
    }


def test_loosely_a_response_may_begin_with_a_line_of_its_own():
    (rivers, _) = load(benchmarks()["ifeval"], DATA)
    text = "Sure, here they are:\nthe glomma and the otra"
    response = Response(rivers, text, text)
    judge = metric()
    scores = judge([response])
    assert scores[0].value == 0
    assert judge.figures([response], scores)["prompt_loose"] == 1


def test_what_the_checkers_draw_is_the_same_each_time():
    asked = {
        "instruction_id_list": ["keywords:letter_frequency"],
        "kwargs": [{"let_relation": "at least", "letter": "#", "let_frequency": 1}],
    }
    text = "abcdefghijklm"
    judge, details = metric(), []
    for seed in range(20):
        random.seed(seed)
        before = random.getstate()
        details += [
            score.detail for score in judge([Response(Question("1", "?", asked), text, text)])
        ]
        assert random.getstate() == before
    assert details == details[:1] * 20
    assert details[0]["followed"] == details[0]["loose"]


def test_sentences_need_data_that_is_not_downloaded(monkeypatch):
    judge = metric()
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    asked = {
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 2}],
    }
    with pytest.raises(ConfigError, match="downloader punkt_tab"):
        judge([Response(Question("1", "Write.", asked), "One. Two.", "One. Two.")])
