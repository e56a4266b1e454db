"""Reward models: the loss, the folder that other tools load, and a stage that trains one."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from r1kernels.hf import patch
from r1train.config.reward_model import RewardModelConfig
from r1train.config.schema import ConfigError
from r1train.data.encode import encode_scored
from r1train.data.preferences import Judgement
from r1train.learn.bradley_terry import RewardLearner
from r1train.model.policy import Policy
from r1train.model.scoring import HEADS, with_score
from r1train.run.export import write_model
from r1train.run.folder import RunFolder
from r1train.run.runner import resume, run
from r1train.stages.reward_model import RewardModel

SAID = [("User: What is 1 + 2?\nAssistant:", "<answer>3</answer>", "4"),
        ("7", "8", "a much longer response 123"),
        ("7", "9 9", "1")]  # fmt: skip


def dense(kind, config, tokenizer):
    torch.manual_seed(0)
    model = kind(
        config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,
        )
    )
    return patch(model.eval())


@pytest.fixture(params=["deepseek_v3", "llama", "qwen2"])
def model(request, mini):
    """A causal LM of each architecture, with the same tokenizer."""
    if request.param == "deepseek_v3":
        return mini
    kinds = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}
    return dense(*kinds[request.param], mini[1]), mini[1]


def judgements(tokenizer, responses=2):
    found = []
    for place, (prompt, *said) in enumerate(SAID):
        encoded = [encode_scored(tokenizer, prompt, text, "plain") for text in said]
        ids = tuple(ids for _, ids in encoded)[:responses]
        found.append(Judgement(encoded[0][0], ids, float(place % 2)))
    return found


def learner_of(model, tokenizer, **options):
    policy = Policy(model)
    classifier = with_score(model, tokenizer, seed=1)
    return RewardLearner(policy, classifier, RewardModelConfig(**options), 3)


def plain_scores(classifier, made):
    """Of every response by itself, through HuggingFace's forward."""
    rows = [[one.prompt + ids for ids in one.responses] for one in made]
    found = [[classifier(torch.tensor([row])).logits[0, 0] for row in rows_] for rows_ in rows]
    return torch.stack([torch.stack(row) for row in found])


@pytest.mark.parametrize("responses", [2, 1])
def test_loss_and_gradients_are_those_of_plain_passes(mini, responses):
    model, tokenizer = mini
    made = judgements(tokenizer, responses)
    learner = learner_of(model, tokenizer)
    scores = plain_scores(learner.classifier, made)
    if responses == 2:
        expected = -(torch.sigmoid(scores[:, 0] - scores[:, 1])).log().mean()
    else:
        labels = torch.tensor([one.good for one in made])
        expected = F.binary_cross_entropy(torch.sigmoid(scores[:, 0]), labels)
    expected.backward()
    named = dict(learner.classifier.named_parameters())
    gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    assert "score.weight" in gradients
    for budget in (1, 60, 4096):
        learner = learner_of(model, tokenizer, token_budget=budget)
        learner.classifier.zero_grad()
        loss, _, mean = learner.accumulate(made)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert mean.item() == pytest.approx(scores.mean().item(), abs=1e-5)
        torch.testing.assert_close(
            {n: p.grad for n, p in learner.classifier.named_parameters() if n in gradients},
            gradients,
            atol=1e-5,
            rtol=1e-3,
        )


@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_folder_gives_the_same_scores_to_padded_batches(model, tmp_path, padding):
    model, tokenizer = model
    learner, made = learner_of(model, tokenizer), judgements(tokenizer)
    write_model(learner.classifier, tokenizer, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.num_labels == 1
    tokenizer.padding_side = padding
    rows = [one.prompt + ids for one in made for ids in one.responses]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        found = loaded(**batch).logits.view(-1, 2)
    torch.testing.assert_close(found, learner.scores(made), atol=2e-5, rtol=1e-4)


def test_where_padding_is_the_end_the_score_is_that_of_the_last_word(mini):
    model, tokenizer = mini
    tokenizer.pad_token = tokenizer.eos_token
    learner, made = learner_of(model, tokenizer), judgements(tokenizer)
    assert all(ids[-1] != tokenizer.eos_token_id for one in made for ids in one.responses)
    rows = [one.prompt + ids for one in made for ids in one.responses]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        found = learner.classifier(**batch).logits.view(-1, 2)
    torch.testing.assert_close(found, learner.scores(made), atol=2e-5, rtol=1e-4)


def test_a_model_that_cannot_score_is_named(mini, monkeypatch):
    model, tokenizer = mini
    monkeypatch.setitem(HEADS, "sequence", {})
    with pytest.raises(ConfigError, match="no sequence classification for DeepseekV3ForCausalLM"):
        with_score(model, tokenizer, 0)


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    """They take longer than what they would show."""
    monkeypatch.setattr(RunFolder, "plot", lambda self: [])


@pytest.fixture
def pairs(tmp_path):
    """Forty pairs, in which the response that says "yes" is better."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"What is 2 + {i}?", "chosen": f"yes {i}", "rejected": f"no {i % 7}"}
            for i in range(40)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        'stages=["reward_model"]',
        f'reward_model.datasets=[{{path="{path}"}}]',
        *("reward_model.batch_size=12", "reward_model.learning_rate=3e-3"),
        *("reward_model.num_train_epochs=2", "reward_model.heldout_size=8"),
    )


def test_a_stage_learns_what_is_better_and_says_so_of_pairs_it_has_not_seen(
    config, pairs, tmp_path
):
    summary = run(config(*pairs))
    folder = tmp_path / "runs" / "tiny"
    table = json.loads((folder / "reward_model" / "table.json").read_text())
    assert (table["judgements"], table["heldout"], table["accuracy"]) == (32, 8, 1.0)
    assert table["per_problem"]["accuracy"] == [1.0] * 8
    assert table["margin"] > 0.5
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]  # 64 of 12, the last of 4
    assert steps[-1]["loss"] < steps[0]["loss"]
    loaded = AutoModelForSequenceClassification.from_pretrained(
        folder / "reward_model" / "checkpoint"
    )
    assert type(loaded).__name__ == "DeepseekV3ForSequenceClassification"
    assert not (folder / "checkpoint").exists()  # which leads to language models
    assert summary["checkpoint"] is None


def test_a_stage_that_is_broken_off_ends_the_same(config, pairs, tmp_path, monkeypatch):
    options = (*pairs, "reward_model.save_steps=1", "reward_model.num_train_epochs=1")
    run(config(*options, "name=unbroken"))
    folder, prepare = tmp_path / "runs" / "tiny", RewardModel.prepare
    for step in (1, 2):
        with monkeypatch.context() as patched:

            def interrupted(self, step=step):
                if self.step == step:
                    raise KeyboardInterrupt
                prepare(self)

            patched.setattr(RewardModel, "prepare", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(config(*options)) if step == 1 else resume(folder)
    resume(folder)
    other = folder.with_name("unbroken")
    for name in ("metrics.jsonl", "reward_model/table.json"):
        assert (folder / name).read_text() == (other / name).read_text()
    weights = (
        path / "reward_model" / "checkpoint" / "model.safetensors" for path in (folder, other)
    )
    assert next(weights).read_bytes() == next(weights).read_bytes()


def test_a_stage_without_judgements_is_refused(config):
    with pytest.raises(ConfigError, match=r"give \[\[reward_model\.datasets\]\]"):
        run(config('stages=["reward_model"]'))
