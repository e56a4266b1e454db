import io
import math
import re
from dataclasses import dataclass, replace
from statistics import fmean

import pytest
from rich.console import Console

from r1train.config.evaluation import EvalConfig
from r1train.config.schema import ConfigError, RunError
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.distinct import hashed
from r1train.data.fewshot import few_shot_prompts
from r1train.data.problems import Problem, ProblemSet, load_problems
from r1train.engine.base import Sampling
from r1train.model.presets import word_tokenizer
from r1train.report.console import show_before_after, show_evaluation
from r1train.report.evaluation import EvalResult
from r1train.rewards.accuracy import extract_answer
from r1train.rewards.base import RewardBatch
from r1train.rewards.format import format_reward
from r1train.rewards.verifiers import Verifier
from r1train.run.runner import run
from r1train.stages.evaluate import (
    by_group,
    check_reached,
    evaluate,
    interval,
    per_problem,
    vote,
)


def answer(text):
    return f"<think>a</think><answer>{text}</answer>"


def majority(completions, accuracy, answer_type="auto"):
    return vote([*map(extract_answer, completions)], accuracy, answer_type)


COMPLETIONS = [
    *(answer("1"), answer("1"), answer("1"), answer("2")),  # 3 of 4 right, and by majority
    *(answer("1"), answer("2"), answer("2"), ""),  # 1 of 4 right, majority wrong
    *("", "", "", "12"),  # no answer at all
]


@dataclass
class Rollout:
    completion_ids: list
    finished: list

    @property
    def lengths(self):
        return [len(ids) for ids in self.completion_ids]


class Engine:
    def generate(self, requests, sampling):
        assert sampling == Sampling(8, temperature=0.6, top_p=0.95)
        assert [(request.prompt_ids, request.n) for request in requests] == [
            ([1], 4), ([2], 4), ([3], 4)
        ]  # fmt: skip
        assert len({request.seed for request in requests}) == 3
        return Rollout([[i] * (1 + i % 4) for i in range(12)], [i % 4 < 3 for i in range(12)])


class Tokenizer:
    pad_token_id = eos_token_id = bos_token_id = None
    all_special_ids = ()

    def convert_tokens_to_ids(self, token):
        return None

    def __call__(self, texts, add_special_tokens):
        assert texts[0] == "User: a Assistant:"
        return {"input_ids": [[i + 1] for i in range(len(texts))]}

    def batch_decode(self, ids, skip_special_tokens):
        return [COMPLETIONS[row[0]] for row in ids]


class Rewards:
    def answers(self, samples):
        return [extract_answer(sample.completion) for sample in samples]

    def score(self, samples, also):
        assert also == ("accuracy", "format")
        assert [s.problem.question for s in samples[::4]] == ["a", "b", "c"]
        texts = [sample.completion for sample in samples]
        by_name = {
            "brevity": [1.0 if text else None for text in texts],
            "accuracy": [
                float("<answer>1<" in s.completion) if s.problem.verifiable else None
                for s in samples
            ],
            "format": [float(text.startswith("<think>")) for text in texts],
        }
        counts = {"brevity": 3, "accuracy": 1, "format": 0}
        return RewardBatch([0.0] * len(samples), by_name, counts, {**counts, "accuracy": 2})


def evaluated(verifiable):
    """Problems, of which those of these letters have answers."""
    problems = [Problem("t", i, q, "1", verifiable=q in verifiable) for i, q in enumerate("abcd")]
    config = EvalConfig(k=4, limit=3, max_completion_length=8)
    sets = ProblemSet(problems, Verifier(()))
    return evaluate(Engine(), Tokenizer(), sets, Rewards(), config, "plain", 5)


@pytest.fixture
def result():
    return evaluated("abcd")


def test_only_what_can_be_verified_counts():
    some = evaluated("bc")
    assert (some.pass_at_1, some.cons_at_k) == (1 / 8, 0)
    assert (some.n, some.verifiable) == (3, 2)
    assert some.pass_at_1_ci == interval([0.25, 0], 0.95, 4)
    assert some.as_dict()["verifiable"] == 2
    assert some.samples[0]["rewards"]["accuracy"] is None
    console = Console(width=120, record=True, file=io.StringIO())
    show_evaluation(some, console)
    text = " ".join(console.export_text().split())
    assert "3 problems (2 of them verifiable) × 4 completions" in text


def test_figures_by_a_field_of_the_problems():
    problems = [
        Problem("t", 0, "a", "1", metadata={"level": 3}),
        Problem("t", 1, "b", "", columns={"level": 4}, verifiable=False),
        Problem("t", 2, "c", "1", metadata={"level": 3}),
        Problem("t", 3, "d", "1"),
    ]
    config = EvalConfig(k=2, by=("level",))
    accuracy = [1.0, 0.0, None, None, 1.0, 1.0, 0.0, 0.0]
    assert by_group(problems, config, accuracy, [1, 2, 3, 4, 5, 6, 7, 8]) == {
        "pass@1/level=3": 0.75,
        "mean_length/level=3": 3.5,
        "mean_length/level=4": 3.5,
    }
    assert replace(evaluated("abcd"), groups={"x/y=1": 0.5}).as_dict()["x/y=1"] == 0.5


def test_figures_of_each_problem_are_by_what_it_asks():
    problems = [Problem("t", i, q, "1", verifiable=q != "b") for i, q in enumerate("cba")]
    rewards = {
        "accuracy": [1.0, 0.0, None, None, 1.0, 1.0],
        "format": [1.0, 1.0, 0.0, 1.0, 0.0, 0.0],
        "quality": [None, None, 0.25, 0.75, None, None],
    }
    c, b, a = (f"{hashed(problem.key):x}" for problem in problems)
    assert per_problem(problems, 2, rewards, [0.0, 1.0]) == {
        "pass@1": {c: 0.5, a: 1.0},
        "format": {c: 1.0, b: 0.5, a: 0.0},
        "rewards/quality": {b: 0.5},
        "cons@2": {c: 0.0, a: 1.0},
    }
    result = evaluated("abcd")
    for figure, mean in (("pass@1", result.pass_at_1), ("cons@4", result.cons_at_k)):
        assert fmean(result.per_problem[figure].values()) == pytest.approx(mean)
    assert EvalResult.from_state(result.state_dict()).per_problem == result.per_problem
    assert "per_problem" not in result.as_dict()


def test_few_shot_prompts_are_solved_problems_and_then_the_question():
    datasets = (DatasetConfig(name="bilingual_sum"), DatasetConfig(name="bilingual_reply"))
    train, heldout = load_problems(TaskConfig(datasets=datasets, train_size=40, heldout_size=20), 0)
    tokenizer = word_tokenizer([])
    prompts = few_shot_prompts(heldout, train, 3, tokenizer, "plain", 5)
    known = {problem.question: problem for problem in train}
    for problem, prompt in zip(heldout, prompts, strict=True):
        *shots, last = prompt.split(tokenizer.eos_token)
        assert last == f"User: {problem.question} Assistant:"
        assert len({*shots}) == 3
        for shot in shots:
            question, solution = shot.removeprefix("User: ").split(" Assistant:")
            assert known[question].task == problem.task
            assert format_reward(solution) == 1.0
            if problem.verifiable:
                assert extract_answer(solution) == known[question].answer
    assert few_shot_prompts(heldout, train, 3, tokenizer, "plain", 5) == prompts
    with pytest.raises(ConfigError, match="num_fewshot = 3"):
        few_shot_prompts(heldout, train, 3, tokenizer, "chat", 5)


def test_a_figure_that_is_not_reached_is_an_error():
    result = evaluated("abcd")
    check_reached(result, EvalConfig(at_least={"pass@1": 0.33, "cons@4": 0.33}))
    with pytest.raises(RunError, match=r"pass@1 is 0\.333, and eval.at_least asks for 0\.34"):
        check_reached(result, EvalConfig(at_least={"pass@1": 0.34}))
    with pytest.raises(ConfigError, match="did you mean 'cons@4'"):
        check_reached(result, EvalConfig(at_least={"cons@16": 0.6}))


def test_a_figure_that_applies_to_no_problem_is_not_reached():
    result = replace(evaluated("abcd"), rewards={"judge": math.nan})
    with pytest.raises(RunError, match=r"at_least: rewards/judge has no value: it applies to no"):
        check_reached(result, EvalConfig(at_least={"rewards/judge": 0.5}))


def test_nothing_comes_after_a_stage_that_is_not_able(config, tmp_path):
    gated = config('stages=["sft", "rl"]', 'eval.at_least={"cons@2"=2.0}', "sft.max_steps=1")
    object.__setattr__(gated, "stages", (replace(gated.stages[0], evaluate=True), gated.stages[1]))
    with pytest.raises(RunError, match="cons@2"):
        run(gated)
    assert not list((tmp_path / "runs/tiny").glob("*/artifact.json"))


def test_where_nothing_can_be_verified_there_is_no_accuracy():
    none = evaluated("")
    assert not {"pass@1", "pass@1_ci", "cons@4", "cons@4_ci"} & none.as_dict().keys()
    assert none.as_dict()["format"] == pytest.approx(7 / 12)
    assert math.isnan(EvalResult.from_state(none.state_dict()).pass_at_1)
    console = Console(width=120, record=True, file=io.StringIO())
    show_before_after(none, none, [], console)
    text = console.export_text()
    assert "3 problems (0 of them verifiable)" in " ".join(text.split())
    assert "nan" not in text
    for name in ("pass@1", "cons@4"):
        assert re.search(rf"{name} *│ *– *│ *– *│ *– ", text)


def test_figures(result):
    assert result.pass_at_1 == pytest.approx(4 / 12)
    assert result.cons_at_k == pytest.approx(1 / 3)
    assert (result.k, result.n) == (4, 3)
    assert result.mean_length == 2.5
    assert result.truncated == 0.25
    assert result.format_rate == pytest.approx(7 / 12)
    assert (result.errors, result.timeouts) == (1, 2)


def test_summary_and_samples(result):
    summary = result.as_dict()
    assert summary["pass@1"] == result.pass_at_1
    assert summary["cons@4"] == result.cons_at_k
    assert len(summary["pass@1_ci"]) == 2
    assert summary["rewards/brevity"] == 1
    assert [sample["question"] for sample in result.samples] == ["a", "b", "c"]
    first, *_, last = result.samples
    assert (first["prompt"], first["completion"]) == ("User: a Assistant:", answer("1"))
    assert (first["finished"], first["reference"]) == (True, "1")
    assert last["rewards"] == {"brevity": None, "accuracy": 0, "format": 0}


def test_a_reward_that_never_applies_is_null_in_the_summary(result):
    summary = replace(result, rewards={"mine": math.nan}).as_dict()
    assert summary["rewards/mine"] is None


def test_majority_breaks_ties_by_the_first_seen():
    assert majority([answer("1"), answer("2"), answer("2"), answer("1")], [1, 0, 0, 1]) == 1
    assert majority([answer("2"), answer("1")], [0, 1]) == 0
    assert majority(["", answer("1")], [0, 1]) == 1  # no answer is no vote
    assert majority(["", ""], [0, 0]) == 0


def test_answers_that_cannot_be_seen_do_not_vote():
    assert vote(["\u200b", " ", None, "1"], [0, 0, 0, 1]) == 1
    assert vote(["\u200b", ""], [0, 0]) == 0


def test_votes_are_for_what_an_answer_says():
    halves = [answer("1/2"), answer("0.5"), answer(r"\frac{1}{2}"), answer("3"), answer("3")]
    assert majority(halves, [1, 1, 1, 0, 0]) == 1
    assert majority(halves, [0, 0, 0, 1, 1]) == 0
    lists = [answer("a, b"), answer("[b, a]"), answer("c"), answer("d")]
    assert majority(lists[1:] + lists[:1], [0, 0, 1, 0], "set") == 0
    assert majority(lists[1:] + lists[:1], [0, 1, 0, 0], "ordered") == 0
    assert majority([answer("c"), *lists], [1, 0, 0, 1, 0], "ordered") == 1


def test_a_vote_compares_a_bounded_number_of_characters(monkeypatch):
    compared = []
    monkeypatch.setattr("r1train.stages.evaluate.equivalent", lambda *texts: compared.append(texts))
    majority([answer("x" * 200 + str(i)) for i in range(64)], [0] * 64)
    assert 0 < sum(len(a) + len(b) for a, b, _ in compared) <= 4000
    texts = [
        answer("y"),
        *(answer("x" * 200 + str(i)) for i in range(64)),
        answer("z"),
        answer("z"),
    ]
    assert majority(texts, [0] * 65 + [0.5, 0.5]) == 0.5  # the same text is still one candidate


def test_right_answers_that_differ_are_one_candidate():
    texts = [answer("3 - 1"), answer("4 - 2"), answer("5"), answer("5"), answer("6 - 4")]
    assert majority(texts, [1, 1, 0, 0, 1]) == 1


def test_interval_is_wilsons_for_single_completions():
    low, high = interval([1.0] * 8 + [0.0] * 2, 0.95)  # Wilson 1927; any table: 49.0 % to 94.3 %
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    low, high = interval([1.0] * 10, 0.95)
    assert (low, high) == (pytest.approx(0.7225, abs=1e-4), 1.0)


def test_interval_knows_that_completions_of_a_problem_are_not_problems():
    def width(scores, k):
        low, high = interval(scores, 0.95, k)
        return high - low

    alike, mixed = [1.0, 0.0] * 20, [0.75, 0.25] * 20
    assert width(alike, 4) == pytest.approx(width(alike, 1))  # k times the same: nothing gained
    assert width([0.5, 0.5] * 20, 4) < width(mixed, 4) < width(alike, 4)
