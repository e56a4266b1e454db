"""Judgements of files: which forms are read, what is left out, what is kept apart."""

from __future__ import annotations

import json

import pytest

from r1train.config.reward_model import PreferencesConfig, RewardModelConfig
from r1train.config.schema import ConfigError
from r1train.config.task import TaskConfig
from r1train.data.preferences import Preferences
from r1train.data.problems import Problem, ProblemSet
from r1train.model.presets import mini_tokenizer
from tests.r1train.conftest import TEXTS

NONE = ProblemSet([], ())


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def tokenizer():
    return mini_tokenizer(TEXTS)


@pytest.fixture
def load(tmp_path, tokenizer):
    """Preferences of rows, one more that is kept out; options of both sections by name."""

    def of(*rows, heldout=NONE, positions=None, template="plain", other=True, **options):
        path = tmp_path / "rows.jsonl"
        extra = [{options.get("prompt_field", "prompt"): "other", "chosen": "x", "rejected": "y",
                  "score_chosen": 9, "score_rejected": 1}] * other  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *extra)))
        names = PreferencesConfig.__dataclass_fields__
        dataset = PreferencesConfig(
            path=str(path), **{k: v for k, v in options.items() if k in names}
        )
        own = {k: v for k, v in options.items() if k not in names}
        return Preferences(
            RewardModelConfig(datasets=(dataset,), **{"heldout_size": 1, **own}),
            TaskConfig(prompt_template=template),
            tokenizer,
            heldout=heldout,
            positions=positions,
            seed=0,
        )

    def texts(found):
        """Every judgement as texts, those kept apart too."""
        return {
            (tokenizer.decode(one.prompt), *map(tokenizer.decode, one.responses), one.good)
            for one in (*found.train, *found.heldout)
        } - {("User: other Assistant:", "x<eos>", "y<eos>", 1.0)}

    of.texts = texts
    return of


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {}),
        ({"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, {}),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, {}),
        ({"prompt": "q", "chosen": [user("q"), assistant("a")],
          "rejected": [user("q"), assistant("b")]}, {}),
        ({"text": "q", "chosen": "a", "rejected": "b"}, {"prompt_field": "text"}),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": [7, 9, 8, 8],
          "score_rejected": 6.5}, {"min_margin": 1.0}),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_rejected": None}, {}),
        ({"prompt": "q", "chosen": "<think>x</think><answer>a</answer>",
          "rejected": "<think>y</think>b"}, {}),
    ],
)  # fmt: skip
def test_forms_of_pairs(load, row, options):
    assert load.texts(load(row, **options)) == {("User: q Assistant:", "a<eos>", "b<eos>", 1.0)}


def test_all_that_is_said_is_judged_where_that_is_asked_for(load):
    row = {"prompt": "q", "chosen": "<think>x</think>a", "rejected": "<think>x</think>b"}
    ((_, better, *_),) = load.texts(load(row, part="response"))
    assert better == "<think>x</think>a<eos>"


def test_labels(load):
    rows = [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "r", "completion": "b", "label": 0},
    ]
    found = load.texts(load(*rows, objective="pointwise", other=False))
    assert found == {("User: q Assistant:", "a<eos>", 1.0), ("User: r Assistant:", "b<eos>", 0.0)}


def test_the_best_and_the_worst_sample_of_a_prompt_are_a_pair(load):
    rows = [
        {"prompt": prompt, "completion": f"{prompt}{reward}", "reward": reward}
        for prompt, rewards in (("q", (1, 3, 0.5)), ("r", (2, 2)), ("s", (1, 1.5)), ("t", (4,)))
        for reward in rewards
    ]
    found = load(*rows, score_field="reward", min_margin=1.0)
    assert load.texts(found) == {("User: q Assistant:", "q3<eos>", "q0.5<eos>", 1.0)}
    assert found.dropped == {"equal_scores": 2, "margin": 1}  # "t" is as good as itself


def test_every_filter_leaves_out_what_it_names(load):
    scored = {"score_chosen": 8, "score_rejected": 6}
    rows = [
        {"prompt": "kept", "chosen": "a b", "rejected": "b", **scored},
        {"prompt": "close", "chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 7},
        {"prompt": "turned", "chosen": "a", "rejected": "b", "score_chosen": [3, 5],
         "score_rejected": [6, 5]},
        {"prompt": "same", "chosen": "<think>x</think>a", "rejected": "a", **scored},
        {"prompt": "equal", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1},
        {"prompt": "uneven", "chosen": "a " * 20, "rejected": "b", **scored},
        {"prompt": "long", "chosen": "1" * 90, "rejected": "2" * 90, **scored},
    ]  # fmt: skip
    found = load(*rows, min_margin=1.0, max_length_ratio=3.0, max_length=80)
    once = dict.fromkeys(("same_response", "equal_scores", "too_long", "length_ratio"), 1)
    assert found.dropped == {**once, "margin": 2}
    assert {prompt for prompt, *_ in load.texts(found)} == {"User: kept Assistant:"}
    assert load(*rows, positions=60).dropped["too_long"] == 1


def test_no_prompt_is_on_both_sides_and_the_seed_decides(load):
    rows = [{"prompt": f"q{i // 3}", "chosen": f"a{i}", "rejected": "b"} for i in range(30)]
    found = load(*rows, heldout_size=7, other=False)
    inside = {tuple(one.prompt) for one in found.train}
    outside = {tuple(one.prompt) for one in found.heldout}
    assert inside.isdisjoint(outside)
    assert (len(found.train), len(found.heldout)) == (21, 9)  # three prompts whole
    train, apart = list(found.train), list(found.heldout)
    again = load(*rows, heldout_size=7, other=False)
    assert (list(again.train), list(again.heldout)) == (train, apart)


def test_questions_that_are_held_out_are_not_judged(load, caplog):
    heldout = ProblemSet([Problem("a", 0, "q", "4")], ())
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in (" q ", "r")]
    found = load.texts(load(*rows, heldout=heldout))
    assert {prompt for prompt, *_ in found} == {"User: r Assistant:"}
    assert "line 1: questions that are held out are left out of training" in caplog.text


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({"prompt": "q", "completion": "a"}, {}, 'no "chosen": pairs need it, or score_field'),
        ({"prompt": "q", "chosen": "a"}, {}, 'no "rejected"'),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"min_margin": 1.0},
         'no "score_chosen" and "score_rejected", which min_margin compares'),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"objective": "pointwise"},
         "a pair, and pointwise learning needs one response with a label"),
        ({"prompt": "q", "completion": "a", "label": 2}, {"objective": "pointwise"},
         r"the label is 2\.0: expected true, false, 1 or 0"),
        ({"prompt": "q", "completion": "a", "r": "high"}, {"score_field": "r"},
         'the score is "high": expected a number'),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]}, {},
         "the two conversations differ before their last message"),
        ({"prompt": [user("q"), assistant("x"), user("r")], "chosen": "a", "rejected": "b"}, {},
         "several turns needs task.prompt_template = 'chat'"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_judgement_is_named(load, row, options, reason):
    with pytest.raises(ConfigError, match=rf"rows\.jsonl, line 1: .*{reason}"):
        load(row, **options)


def test_where_nothing_is_left_the_reasons_are_said(load):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1}
    with pytest.raises(ConfigError, match=r"0 judgements can be used \(left out: {'equal_scores'"):
        load(row, other=False)
