import json
import re
from pathlib import Path

import pytest

from r1train.cli import main
from r1train.config.schema import ConfigError
from r1train.run.export import save_checkpoint
from r1train.suite.asking import tell_unjudged
from r1train.suite.metrics.base import Score
from r1train.suite.results import Result, compare
from r1train.suite.sampling import sampling_of
from r1train.suite.specs import benchmarks
from tests.r1train.chat_server import serving
from tests.r1train.suite.scripted import asking

DATA = Path(__file__).parent / "data"
SAID = [
    *("<think>x</think>\\boxed{\\frac34}", "\\boxed{0.75}", "\\boxed{1}", "<think>\\boxed{0.75}"),
    *("\\boxed{3}", "\\boxed{3}", "\\boxed{-3, 3}", "The answer is 3."),
    *("\\boxed{5\\sqrt2}", "\\boxed{\\sqrt{50}}", "so", "\\boxed{7.07}"),
]


@pytest.fixture
def math(tmp_path):
    def ask(*overrides, said=SAID):
        return asking(said, DATA, tmp_path, "suite.k=4", *overrides)

    return ask


def test_a_benchmark_is_asked_scored_and_kept(math, tmp_path):
    one = math()
    result = one.result(benchmarks()["math_500"])
    assert list(result.per_question.values()) == [0.5, 0.25, 0.5]
    assert result.mean == pytest.approx(5 / 12)
    assert result.cons == pytest.approx(2 / 3)  # of the second, the wrong answer is the majority
    assert result.pass_at == {"1": pytest.approx(5 / 12), "2": pytest.approx(13 / 18), "4": 1.0}
    assert (result.questions, result.k, result.tokens) == (3, 4, 60)
    assert result.unanswered == 2 / 12
    assert result.by_subject == {"1": 0.5, "2": 0.375}
    assert result.mean_ci[0] <= result.mean <= result.mean_ci[1]
    (first, *_) = map(json.loads, (tmp_path / "suite/math_500/samples.jsonl").open())
    assert first["answers"] == ["\\frac34", "0.75", "1", None]
    assert first["scores"] == [1, 1, 0, 0]
    assert first["reference"] == "\\frac{3}{4}"
    assert first["prompt"].startswith("User: Write $0.75$ as a fraction")


def test_what_is_finished_is_not_asked_again(math):
    first = math()
    result = first.result(benchmarks()["math_500"])
    again = math()
    assert again.result(benchmarks()["math_500"]) == result
    assert again.subject.engine.requests == []


def test_what_changes_the_figures_alone_needs_no_completions(math):
    first = math().result(benchmarks()["math_500"])
    again = math("suite.confidence=0.5")
    result = again.result(benchmarks()["math_500"])
    assert again.subject.engine.requests == []
    assert result.per_question == first.per_question
    assert result.mean_ci[1] - result.mean_ci[0] < first.mean_ci[1] - first.mean_ci[0]


@pytest.mark.parametrize("other", ["suite.temperature=0.5", "suite.limit=2", "seed=1"])
def test_other_settings_are_another_result(math, other):
    first = math()
    first.result(benchmarks()["math_500"])
    again = math(other)
    assert len(again.result(benchmarks()["math_500"]).per_question) == (
        2 if "limit" in other else 3
    )
    assert again.subject.engine.requests


def test_what_was_broken_off_goes_on_where_it_was(math, tmp_path):
    broken = math("rollout.batch_size=4")
    broken.subject.engine.breaks_after = 2
    with pytest.raises(KeyboardInterrupt):
        broken.result(benchmarks()["math_500"])
    with (tmp_path / "suite/math_500/samples.jsonl").open("a") as file:
        file.write('{"id": "test/prealg')  # torn by a crash
    rest = math("rollout.batch_size=4", said=SAID[8:])
    result = rest.result(benchmarks()["math_500"])
    assert len(rest.subject.engine.requests) == 1
    assert list(result.per_question.values()) == [0.5, 0.25, 0.5]


def test_completions_have_seeds_of_their_own(math):
    one = math()
    one.result(benchmarks()["math_500"])
    assert len({request.seed for request in one.subject.engine.requests}) == 3


def test_a_result_survives_its_file(math, tmp_path):
    result = math().result(benchmarks()["math_500"])
    assert Result.load(tmp_path / "suite/math_500/result.json") == result
    (tmp_path / "broken.json").write_text('{"k": 1}')
    assert Result.load(tmp_path / "broken.json") is None


def test_two_models_are_compared_on_the_questions_of_both(math, tmp_path):
    ours = math().result(benchmarks()["math_500"])
    other = asking(["\\boxed{1}"] * 12, DATA, tmp_path / "other", "suite.k=4")
    theirs = other.result(benchmarks()["math_500"])
    pair = compare(ours, theirs, 0.95)
    assert pair.questions == 3
    assert pair.difference == pytest.approx(ours.mean)
    assert pair.p_value == 2 / 8


def test_a_limit_that_does_not_fit_the_model_is_said(mini, tmp_path):
    one = asking([], DATA, tmp_path, "suite.max_tokens=1024")
    one.subject.model.config = mini[0].config
    with pytest.raises(ConfigError, match=r"1024 positions.*3 tokens: at most 1021"):
        sampling_of(benchmarks()["gsm8k"], one.subject, ["a"])
    one = asking([], DATA, tmp_path)
    one.subject.model.config = mini[0].config
    assert sampling_of(benchmarks()["gsm8k"], one.subject, ["a"]).max_new_tokens == 1021


EVAL = ("threads=1", "suite.k=2", "suite.max_tokens=4", "suite.limit=1")


@pytest.fixture
def checkpoint(mini, tmp_path):
    return save_checkpoint(*mini, tmp_path / "tiny")


def suite(folder, *arguments, data=DATA):
    return main(["eval", str(folder), "--suite", "r1", "--data", str(data), *EVAL, *arguments])


def test_the_command_writes_tables_in_three_forms(mini, checkpoint, capsys):
    assert suite(checkpoint, "--benchmarks", "aime_2024,drop") == 0
    shown = capsys.readouterr().out
    text = (checkpoint / "suite/tables.md").read_text()
    tables = json.loads((checkpoint / "suite/tables.json").read_text())
    assert [table["title"].partition(":")[0] for table in tables[1:]] == [
        "Table 4", "Table 5", "Table 6"
    ]  # fmt: skip
    (aime,) = [row for row in tables[1]["rows"] if row[""] == "AIME 2024 (Pass@1)"]
    assert (aime["R1"], aime["V3"], aime["Claude 3.5"]) == (79.8, 39.2, 16.0)
    assert (aime["ours"], aime["interval"][0]) == (0, 0)
    assert 50 < aime["interval"][1] < 100
    assert (tables[0]["rows"][0]["n"], tables[0]["rows"][0]["tokens"]) == (1, 4)
    assert [tables[1]["rows"][i]["o1 1217"] for i in range(3)] == [None] * 3
    ends = {row[""].strip(): row["AIME 2024 pass@1"] for row in tables[2]["rows"]}
    assert [ends["from"], ends["to"]] == aime["interval"]
    assert "| AIME 2024 (Pass@1) | 0.0 |" in text
    assert "| Architecture | MoE | – | MoE |" in text
    assert tables[1]["rows"][2]["ours"] == f"{mini[0].num_parameters() / 1e6:.3g}M"
    assert "| **tiny** | 0.0 | – | – |" in text
    for line in ("AIME 2024 (Pass@1)", "R1-Distill-Qwen-32B", "tiny "):
        assert line in shown
    assert max(len(line) for line in shown.split("\n") if str(checkpoint) not in line) <= 80
    # Later, another benchmark: the tables have both.
    assert suite(checkpoint, "--benchmarks", "gsm8k", "--against", str(checkpoint)) == 0
    tables = json.loads((checkpoint / "suite/tables.json").read_text())
    assert [row[""] for row in tables[0]["rows"]] == ["GSM8K", "AIME 2024", "DROP"]
    assert {row["difference"] for row in tables[-1]["rows"]} == {0}


def test_flags_of_eval_are_for_eval(capsys):
    assert main(["run", "r1-zero-mini", "--suite", "r1", "--dry-run"]) == 2
    assert "--suite is for r1train eval MODEL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "r1"], "give --data FOLDER"),
        (["--suite", "r1", "--data", "nowhere"], "no such folder"),
        (
            ["--suite", "r1", "--data", str(DATA), "--benchmarks", "aime"],
            "did you mean 'aime_2024'",
        ),
        (["--data", str(DATA)], "--data is for r1train eval MODEL --suite or --harness"),
        (["--suite", "r1", "--data", str(Path(__file__).parent)], "no file of any benchmark"),
    ],
)
def test_what_is_missing_is_said(tmp_path, capsys, arguments, said):
    (tmp_path / "config.json").write_text("{}")
    assert main(["eval", str(tmp_path), *arguments]) == 2
    message = capsys.readouterr().err
    assert re.search(said, message), message


def test_a_benchmark_that_cannot_be_asked_stops_no_other(checkpoint, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "gsm8k.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    (data / "amc.jsonl").write_text('{"problem": "1 + 1?"}\n')
    assert suite(checkpoint, data=data) == 0
    assert "AMC: left out: " in capsys.readouterr().out
    assert suite(checkpoint, "--benchmarks", "amc", data=data) == 2


JUDGED = ("--benchmarks", "simpleqa,alpaca_eval,arena_hard,gsm8k")


def judge(server):
    return f"suite.judge.url={server.url}", "suite.judge.model=m", "suite.judge.retries=0"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {}, b"no such model"), r"/chat/completions: HTTP 404: 'no such model'"),
        ("I like both.", "the judge's last line is no verdict: 'I like both.'"),
        ((200, {}, b"<html>"), "expected choices"),
    ],
)
def test_without_a_verdict_the_reason_is_said_and_the_others_go_on(
    checkpoint, capsys, answer, reason
):
    with serving(lambda request: answer) as server:
        assert suite(checkpoint, *JUDGED, *judge(server)) == 1
    said = capsys.readouterr()
    for title, count in (("SimpleQA", 2), ("AlpacaEval 2", 2), ("ArenaHard", 2)):
        told = f"{title}: left out: no verdict on {count} of {count} completions: {count} × "
        assert told in said.out
        assert told in said.err
    assert reason in said.err
    assert "see to suite.judge.url" in said.err
    (row,) = json.loads((checkpoint / "suite/tables.json").read_text())[0]["rows"]
    assert row[""] == "GSM8K"
    (line, *_) = map(json.loads, (checkpoint / "suite/simpleqa/samples.jsonl").open())
    assert reason in line["details"][0]["failure"]


def test_how_many_have_no_verdict_is_said(checkpoint, capsys):
    requests = []

    def flaky(request):
        requests.append(request)
        return "Winner: A" if len(requests) < 3 else (503, {}, b"")

    arguments = "--benchmarks", "alpaca_eval", "suite.judge.concurrency=1"
    with serving(flaky) as server:
        assert suite(checkpoint, *arguments, *judge(server), "suite.limit=2", "suite.k=1") == 0
    told = capsys.readouterr().out
    assert "AlpacaEval 2: no verdict on 1 of 2 completions: 1 × http://127.0.0.1" in told
    assert "HTTP 503" in told
    (row,) = json.loads((checkpoint / "suite/tables.json").read_text())[0]["rows"]
    assert (row["n"], row["no verdict"]) == (2, 1)


def test_many_reasons_are_told_in_few_words(capsys):
    scores = [Score(None, {"failure": f"reason {i}"}) for i in (0, 0, 1, 1, 2, 2, 3, 4)]
    tell_unjudged(benchmarks()["simpleqa"], [*scores, Score(1.0)])
    assert capsys.readouterr().out.strip() == (
        "SimpleQA: no verdict on 8 of 9 completions: 2 × reason 0; 2 × reason 1; 2 × reason 2; "
        "2 for other reasons"
    )


def test_a_benchmark_that_was_named_and_cannot_be_asked_stops_no_other(checkpoint, capsys):
    assert suite(checkpoint, "--benchmarks", "simpleqa,gsm8k") == 2  # there is no judge
    assert "SimpleQA: left out: suite.judge.url" in capsys.readouterr().err
    (row,) = json.loads((checkpoint / "suite/tables.json").read_text())[0]["rows"]
    assert row[""] == "GSM8K"


def test_of_a_run_it_is_said_which_stage_the_model_is_of(mini, tmp_path, capsys):
    run = tmp_path / "run"
    stage = save_checkpoint(*mini, run / "zero" / "checkpoint").resolve()
    (run / "checkpoint").symlink_to("zero/checkpoint")
    assert suite(run, "--benchmarks", "gsm8k") == 0
    assert f"model: {stage}\n" in capsys.readouterr().out
    table, *_ = json.loads((run / "suite/tables.json").read_text())
    assert table["title"].startswith(f"{stage}: ")
