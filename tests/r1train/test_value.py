"""Values of steps: a scalar head on a policy's backbone, how it learns, and what it leaves."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import (
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from r1kernels.hf import patch
from r1train.config.process_reward import ProcessRewardConfig
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.learn.value import StepValues, ValueLearner
from r1train.model.load import load_process_reward
from r1train.model.policy import Policy
from r1train.model.scoring import with_score
from r1train.run.export import save_checkpoint
from r1train.seeds import deterministic

SOLUTIONS = [[5, 6, 7, 8, 9], [5, 6, 7], [9, 9, 4, 2], [7]]
ENDS = [[2, 5], [1, 2, 3], [4], [1]]
VALUES = [[0.25, 1.0], [0.5, 0.0, 0.75], [0.0], [1.0]]
SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture(params=["deepseek_v3", "llama", "qwen2"])
def model(request, mini):
    if request.param == "deepseek_v3":
        return mini[0]
    torch.manual_seed(0)
    if request.param == "llama":
        return patch(LlamaForCausalLM(LlamaConfig(**SMALL)).eval())
    return patch(Qwen2ForCausalLM(Qwen2Config(**SMALL)).eval())


def learner(model, tokenizer, steps=4, **options):
    config = ProcessRewardConfig(learning_rate=3e-3, **options)
    classifier = with_score(model, tokenizer, 0, "token")
    with torch.no_grad():
        classifier.score.weight.mul_(10)  # so that its values differ
        classifier.score.bias.fill_(0.3)
    return ValueLearner(Policy(model), classifier, config, steps)


def reference(classifier, prompts):
    """HuggingFace's own forward, a sequence at a time: the scalars of all steps."""
    logits = []
    for prompt, solution, ends in zip(prompts, SOLUTIONS, ENDS, strict=True):
        of_tokens = classifier(torch.tensor([[*prompt, *solution]]), use_cache=False).logits
        logits += [of_tokens[0, len(prompt) + end - 1, 0] for end in ends]
    return torch.stack(logits)


@pytest.mark.parametrize("budget", [1, 60, 1000])
def test_the_loss_is_that_of_the_steps(model, mini, prompts, budget):
    values = learner(model, mini[1], token_budget=budget)
    logits = reference(values.classifier, prompts)
    target = torch.tensor([value for own in VALUES for value in own])
    expected = binary_cross_entropy_with_logits(logits, target)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in values.classifier.named_parameters()
                 if p.grad is not None}  # fmt: skip
    values.classifier.zero_grad()
    loss, brier = values.accumulate(prompts, SOLUTIONS, ENDS, VALUES)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected = (logits.sigmoid() - target).square().mean()
    assert brier.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {"score.weight", "score.bias"} < gradients.keys()
    for name, parameter in values.classifier.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3)


def test_the_values_are_learnt_and_repeat_exactly(mini, prompts):
    model, tokenizer = mini
    start = {name: value.clone() for name, value in model.state_dict().items()}
    runs = []
    for _ in range(2):
        model.load_state_dict(start)
        classifier = with_score(model, tokenizer, 0, "token")
        config = ProcessRewardConfig(learning_rate=3e-3)
        values = ValueLearner(Policy(model), classifier, config, 30)
        with deterministic():
            figures = [values.step(prompts, SOLUTIONS, ENDS, VALUES) for _ in range(30)]
        runs.append([one["brier"] for one in figures])
    assert figures[0]["value"] == pytest.approx(0.5)
    assert runs[0][-1] < 0.01 < 0.1 < runs[0][0]
    assert runs[0] == runs[1]


def test_it_goes_on_from_a_state(mini, prompts):
    first = learner(*mini)
    parts = prompts, SOLUTIONS, ENDS, VALUES
    with deterministic():
        for _ in range(2):
            first.step(*parts)
        state = {
            "model": {name: value.clone() for name, value in first.classifier.state_dict().items()},
            "optimizer": first.optimizer.state_dict(),
        }
        parameters = state["optimizer"]["parameters"]
        state["optimizer"]["parameters"] = {
            name: {key: value.clone() for key, value in moments.items()}
            for name, moments in parameters.items()
        }
        expected = [first.step(*parts) for _ in range(2)]
        second = learner(*mini)
        second.load_state_dict(state)
        assert [second.step(*parts) for _ in range(2)] == expected


def test_what_is_saved_loads_in_huggingface_and_here(model, mini, prompts, tmp_path):
    """With the same values, whatever is judged beside a solution, and whole."""
    values = learner(model, mini[1])
    save_checkpoint(values.classifier, mini[1], tmp_path)
    loaded, info = AutoModelForTokenClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values())
    assert loaded.config.num_labels == 1
    expected = reference(loaded.eval(), prompts).sigmoid()
    classifier, shell, tokenizer = load_process_reward(tmp_path, Config())
    assert mini[1].get_vocab().items() <= tokenizer.get_vocab().items()
    for budget in (1, 1000):
        judge = StepValues(Policy(shell), classifier, token_budget=budget)
        found = judge(prompts, SOLUTIONS, ENDS)
        assert [len(own) for own in found] == [len(own) for own in ENDS]
        flat = torch.tensor([value for own in found for value in own])
        torch.testing.assert_close(flat, expected, atol=1e-5, rtol=1e-4)
        assert judge.last(prompts, SOLUTIONS) == [own[-1] for own in judge(
            prompts, SOLUTIONS, [[len(one)] for one in SOLUTIONS])]  # fmt: skip


def test_a_model_of_several_labels_has_no_value(mini, tmp_path):
    classifier = with_score(*mini, 0, "token")
    classifier.config.num_labels = 2
    classifier.score = torch.nn.Linear(classifier.config.hidden_size, 2)
    save_checkpoint(classifier, mini[1], tmp_path)
    with pytest.raises(ConfigError, match=r"has 2 labels: a process reward model has one"):
        load_process_reward(tmp_path, Config())
    save_checkpoint(*mini, tmp_path / "causal")
    with pytest.raises(ConfigError, match=r"is not whole: .* score\.(bias|weight)"):
        load_process_reward(tmp_path / "causal", Config())


def test_an_architecture_without_such_a_head_is_named(mini):
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=10))
    with pytest.raises(ConfigError, match="GPT2ForTokenClassification reads its score in another"):
        with_score(model, mini[1], 0, "token")
