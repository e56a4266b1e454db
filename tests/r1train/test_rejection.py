"""Sampling and rejection: what is dropped for which reason, counts, mixtures, going on."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from r1train.config.recipe import load_config
from r1train.config.rejection import RejectionConfig
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.data.problems import Problem
from r1train.data.row_file import RowFile
from r1train.data.samples import Sample
from r1train.data.similarity import jaccard, shingles
from r1train.rewards.base import RewardBatch
from r1train.rewards.manager import RewardManager
from r1train.run.folder import RunFolder
from r1train.run.runner import resume, run
from r1train.stages.rejection import Rejection
from r1train.stages.sample import SampleStage, row_of
from tests.r1train.samples import ONE, sample, wrap

RIGHT = {"accuracy": 1.0, "format": 1.0}


def rejection(**options):
    """The stage without a model: it judges."""
    config = Config(rejection=RejectionConfig(**options))
    return Rejection(SimpleNamespace(config=config, train=[ONE], seed=3))


def reasons(stage, *completions):
    """Why each is dropped; a completion is its text, and what differs from a right one."""
    group, rows = [], []
    for number, (text, changes) in enumerate(completions):
        ids = changes.pop("ids", [number] * 9)
        one = Sample(ONE, "User: a Assistant:", text, ids, changes.pop("finished", True))
        group.append(one)
        rows.append(row_of(one, 1.0, {**RIGHT, **changes}))
    stage.drop(group, rows, 0)
    return [row.get("dropped") for row in rows]


GOOD = wrap("2", "a\nb")


@pytest.mark.parametrize(
    ("text", "changes", "reason"),
    [
        (GOOD, {}, None),
        (GOOD, {"finished": False, "accuracy": 0.0}, "truncated"),
        (GOOD, {"accuracy": 0.0, "format": 0.0}, "accuracy"),
        (GOOD, {"format": 0.0, "language": 0.5}, "format"),
        (GOOD, {"language": 0.89}, "language"),
        (GOOD, {"language": 0.9}, None),
        (GOOD, {"language": None}, None),
        (GOOD, {"accuracy": None}, "unjudged"),
        (GOOD, {"accuracy": None, "judge": 0.4}, "judge"),
        (GOOD, {"accuracy": None, "judge": 0.6}, None),
        (wrap("2", "b" * 51), {}, "long_paragraphs"),
        (wrap("2" * 60, "b" * 50 + "\n" + "c" * 50), {}, None),
        (wrap("2", "a\n```python\nx\n```"), {}, "code_blocks"),
        (wrap("```python\nx\n```"), {}, None),
    ],
)
def test_every_filter_fires_in_its_turn(text, changes, reason):
    least = {"language": 0.9, "judge": 0.5}
    stage = rejection(min_rewards=least, max_paragraph_length=50)
    assert reasons(stage, (text, {"language": 1.0, "judge": None, **changes})) == [reason]
    assert stage.reasons == ("truncated", "accuracy", "format", "language", "judge", "unjudged",
                             "long_paragraphs", "code_blocks", "duplicate", "surplus")  # fmt: skip


def test_programs_pass_the_filters_of_r1_by_their_tests_alone():
    recipe = load_config("r1")
    (own,) = (recipe.of(stage) for stage in recipe.stages if stage.kind == "rejection")
    stage = Rejection(SimpleNamespace(config=own, train=[ONE], seed=3))
    rewards = {"accuracy": None, "language": 1.0}
    said = [
        (wrap("```python\nprint(1)\n```"), {**rewards, "code": 1.0, "ids": [*range(9)]}),
        (wrap("```python\nprint(2)\n```"), {**rewards, "code": 0.0, "ids": [*range(9, 18)]}),
    ]
    assert reasons(stage, *said) == [None, "code"]


def test_of_near_duplicates_one_is_kept_and_of_others_as_many_as_are_asked_for():
    one, near, other = [*range(40)], [*range(39), 99], [*range(50, 90)]
    group = [(GOOD, {"ids": ids}) for ids in (one, near, one, other, [7] * 30)]
    dropped = reasons(rejection(max_similarity=0.9), *copied(group))
    assert Counter(dropped) == {None: 3, "duplicate": 2}
    assert dropped[3:] == [None, None]
    exact = reasons(rejection(max_similarity=1.0), *copied(group))
    assert exact[1] is None
    assert Counter(exact) == {None: 4, "duplicate": 1}
    few = Counter(reasons(rejection(keep=1, max_similarity=0.9), *copied(group)))
    assert few[None] == 1
    assert few["surplus"] + few["duplicate"] == 4


def copied(group):
    return [(text, dict(changes)) for text, changes in group]


def test_similarity_is_the_share_of_runs_of_five():
    one, other = shingles([1, 2, 3, 4, 5, 6, 7]), shingles([0, 2, 3, 4, 5, 6, 7])
    assert (len(one), jaccard(one, one), jaccard(one, other)) == (3, 1.0, 0.5)
    assert jaccard(shingles([1, 2]), shingles([1, 2])) == 1.0
    assert jaccard(shingles([1, 2]), shingles([2, 1])) == 0.0


def test_a_row_says_what_a_problem_is_and_closes_what_the_prompt_opened():
    columns = {"question": "x", "dropped": "y", "chosen": "z"}
    problem = Problem("a", 0, "q", "2", {"level": 3, "terms": [1]}, columns=columns,
                      messages=(("system", "s"), ("user", "q")))  # fmt: skip
    one = sample(problem, "t</think><answer>2</answer>", "q<think>\n")
    row = row_of(one, 2.0, {"accuracy": 1.0, "format": 1.0})
    assert row["completion"] == "<think>t</think><answer>2</answer>"
    assert row["prompt"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert (row["level"], row["accuracy"], row["reward"]) == (3, 1.0, 2.0)
    assert {"terms", *columns}.isdisjoint(row)


def test_a_file_of_rows_is_cut_where_a_crash_has_torn_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    file = RowFile(path, 2)
    assert file.whole_batches() == 0
    rows = [{"a": i} for i in range(6)]
    file.append(rows)
    assert file.whole_batches() == 3
    for torn in (b'{"a": 6', b"\0\0\0\n", b""):
        path.write_bytes(path.read_bytes()[: path.read_bytes().index(b'{"a": 5')] + torn)
        assert file.whole_batches() == 2
        assert list(file) == rows[:4]
        file.append(rows[4:])


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    """They take longer than what they would show."""
    monkeypatch.setattr(RunFolder, "plot", lambda self: [])


@pytest.fixture
def rewarded(monkeypatch):
    """Rewards that differ: an untrained model is right nowhere."""

    def score(self, samples, also=()):
        values = [float(sum(one.completion.encode()) % 3 > 0) for one in samples]
        names = dict.fromkeys((*self.weights, *also))
        none = dict.fromkeys(names, 0)
        return RewardBatch(values, dict.fromkeys(names, values), none, none)

    monkeypatch.setattr(RewardManager, "score", score)


OPTIONS = (
    'stages=["rejection"]',
    *("rejection.num_generations=4", "rollout.batch_size=16", "rollout.max_completion_length=6"),
    *("rejection.keep=2", "rejection.num_prompts=10", "rollout.temperature=2.0"),
)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def lenient(monkeypatch):
    """Completions count as finished: an untrained model ends none."""
    fault = Rejection._fault

    def judged(self, sample, row):
        whole = Sample(
            sample.problem, sample.prompt, sample.completion, sample.completion_ids, True
        )
        return fault(self, whole, row)

    monkeypatch.setattr(Rejection, "_fault", judged)


def test_counts_add_up_and_what_is_left_is_learnt_from(config, rewarded, lenient, tmp_path, capsys):
    general = tmp_path / "general.jsonl"
    lines = [{"prompt": f"Say {i}", "completion": str(i)} for i in range(30)]
    general.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ('stages=["rejection", {kind = "distill", name = "student"}]', *OPTIONS[1:])
    student = ('sft.datasets=[{path="stage:rejection"}]', "sft.num_train_epochs=1")
    mix = f'rejection.mix=[{{path="{general}"}}]'
    run(config(*options, *student, mix, "sft.max_steps=none", "eval.limit=1"))
    folder = tmp_path / "runs" / "tiny"
    table = json.loads((folder / "rejection" / "table.json").read_text())
    everything = rows(folder / "rejection" / "sampled.jsonl")
    left = rows(folder / "rejection" / "completions.jsonl")
    assert (table["prompts"], table["completions"], len(everything)) == (10, 40, 40)
    dropped = {key: count for key, count in table.items() if key.startswith("dropped/")}
    assert sum(dropped.values()) + table["kept"] == 40
    assert Counter(row["dropped"] for row in everything if "dropped" in row) == {
        key.removeprefix("dropped/"): count for key, count in dropped.items() if count
    }
    assert table["dropped/accuracy"] > 0
    assert len({row["prompt"] for row in everything}) == 10
    kept = [row for row in left if "completion" in row]
    assert len(kept) == table["kept"]
    assert max(Counter(row["prompt"] for row in kept).values()) <= 2
    assert table["general"] == round(table["kept"] / 3)
    assert table["samples"] == len(left) == table["kept"] + table["general"]
    assert table["prompts_kept"] == len({row["prompt"] for row in kept})
    assert "dropped/accuracy" in capsys.readouterr().out
    held = {row["question"] for row in rows(folder / "samples.jsonl")}
    assert held.isdisjoint(row["prompt"] for row in everything)
    learnt = [row for row in rows(folder / "metrics.jsonl") if "loss" in row]
    assert len(learnt) == -(-len(left) // 16)


def test_a_stage_that_is_broken_off_goes_on_after_the_last_whole_batch(
    config, rewarded, lenient, tmp_path, monkeypatch
):
    run(config(*OPTIONS, "name=unbroken"))
    batch, made = SampleStage._batch, []

    def counted(self, number):
        made.append(number)
        if made == [0, 1]:
            raise KeyboardInterrupt
        return batch(self, number)

    monkeypatch.setattr(SampleStage, "_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        run(config(*OPTIONS))
    folder = tmp_path / "runs" / "tiny"
    with open(folder / "rejection" / "sampled.jsonl", "a") as file:
        file.write('{"prompt": "torn')
    resume(folder)
    assert made == [0, 1, 1, 2]
    for name in ("sampled.jsonl", "completions.jsonl", "table.json"):
        paths = (path / "rejection" / name for path in (folder, folder.with_name("unbroken")))
        assert next(paths).read_text() == next(paths).read_text()


def test_where_nothing_is_kept_the_reasons_are_said(config, rewarded):
    reason = r"none of 8 completions is kept, for these reasons: {'truncated': \d"
    with pytest.raises(ConfigError, match=reason):
        run(config(*OPTIONS, "rejection.num_prompts=2", "rollout.max_completion_length=1"))


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("rejection.num_prompts=33", r"num_prompts = 33: there are 32 training problems"),
        ("rejection.min_rewards.langage=1", r"langage is none of rewards\.functions: add it"),
        ('rejection.min_rewards.format="x"', r"format = 'x': expected a number"),
        ('rejection.mix=[{path="nowhere.jsonl"}]', r"nowhere\.jsonl"),
        ("rejection.mix_share=1.0", r"mix_share = 1\.0: expected a value < 1"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(config, option, reason):
    with pytest.raises(ConfigError, match=reason):
        run(config(*OPTIONS, option))


def test_all_samples_are_left_where_none_is_to_be_dropped(config, rewarded, tmp_path):
    options = (
        "sample.num_prompts=3",
        "sample.num_generations=2",
        "rollout.max_completion_length=4",
    )
    run(config('stages=["sample"]', *options))
    folder = tmp_path / "runs" / "tiny" / "sample"
    assert (folder / "completions.jsonl").read_text() == (folder / "sampled.jsonl").read_text()
    table = json.loads((folder / "table.json").read_text())
    assert (table["completions"], table["kept"], table["samples"]) == (6, 6, 6)
