import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from r1train.cli import main
from r1train.config.recipe import default_config
from r1train.config.schema import RunError
from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.run.export import save_checkpoint
from r1train.suite.harness.model import HarnessModel
from r1train.suite.sampling import Subject

TASKS = Path(__file__).parent / "tasks"
PAIRS = [
    ("User: What is 1 + 2?\nAssistant:", " 3"),
    ("User: What is 1 + 2?\nAssistant: ", "4 or 5"),
    ("What", " is 3?"),
    ("", "User: What is 7?"),
]
TEXTS = ["User: What is 1 + 2?\nAssistant: 3", "7" * 9]


@pytest.fixture
def ours(mini):
    model, tokenizer = mini
    config = default_config(["seed=3"])
    engine = BuiltinEngine(model, tokenizer)
    return HarnessModel(Subject(model, tokenizer, engine, config, "plain", None))


@pytest.fixture
def theirs(mini, ours):
    return HFLM(pretrained=mini[0], tokenizer=mini[1], batch_size=1, max_length=ours.max_length)


def asked(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_loglikelihoods_are_those_of_the_harness_own_backend(ours, theirs):
    for (found, greedy), (expected, likeliest) in zip(
        ours.loglikelihood(asked(*PAIRS)),
        theirs.loglikelihood(asked(*PAIRS), disable_tqdm=True),
        strict=True,
    ):
        assert found == pytest.approx(expected, abs=1e-3)
        assert greedy == likeliest


@pytest.mark.parametrize("length", [1024, 8])
def test_rolling_loglikelihoods_too(ours, theirs, length):
    ours.max_length = theirs._max_length = length
    requests = asked(*((text,) for text in TEXTS))
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3)


def test_what_the_engine_takes_for_likeliest_is_greedy(ours):
    prompt = ours.tok_encode("User: What is 1 + 2?\nAssistant:")
    rollout = ours.subject.engine.generate([Request(prompt)], Sampling(5, temperature=0))
    (said,) = rollout.completion_ids
    other = [*said[:-1], (said[-1] + 1) % 200]
    (found, greedy), (_, not_greedy) = ours._loglikelihood_tokens(
        [(None, prompt, said), (None, prompt, other)]
    )
    assert found == pytest.approx(rollout.logprobs.sum().item(), abs=1e-4)
    assert greedy
    assert not not_greedy


def test_completions_stop_before_a_stop_string(ours):
    prompt, options = "User: What is 1 + 2?\nAssistant:", {"max_gen_toks": 8}
    (whole,) = ours.generate_until(asked((prompt, options)))
    stop = whole[2]
    (cut,) = ours.generate_until(asked((prompt, {**options, "until": [stop]})))
    assert cut == whole[: whole.index(stop)]


def test_what_does_not_fit_is_said(ours):
    with pytest.raises(RunError, match="max_gen_toks = 5000: the model has 1024 positions"):
        ours.generate_until(asked(("a", {"max_gen_toks": 5000})))


def test_local_tasks_run_without_a_network(mini, tmp_path, monkeypatch, capsys):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, tasks = save_checkpoint(*mini, tmp_path / "tiny"), tmp_path / "tasks"
    tasks.mkdir()
    for file in TASKS.iterdir():
        (tasks / file.name).write_text(file.read_text().replace("DATA", str(tasks)))
    names = "sums_choice,sums_generate,sums_perplexity"
    command = ["eval", str(folder), "--data", str(tasks), "threads=1", "--harness"]
    assert main([*command, names]) == 0
    results = json.loads((folder / "harness/results.json").read_text())["results"]
    assert set(results) == set(names.split(","))
    assert results["sums_choice"]["acc,none"] in (0, 1 / 3, 2 / 3, 1)
    assert len((folder / "harness/sums_generate.jsonl").read_text().splitlines()) == 3
    assert "sums_perplexity word_perplexity" in capsys.readouterr().out


@pytest.mark.slow  # reads all tasks of lm-eval
def test_an_unknown_task_is_said(mini, tmp_path, capsys):
    folder = save_checkpoint(*mini, tmp_path / "tiny")
    assert main(["eval", str(folder), "--harness", "sums_of_none"]) == 2
    assert "no such task" in capsys.readouterr().err
