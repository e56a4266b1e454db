"""A reward model's scores: of which completions, of which part, and the same in any batch."""

import json
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from r1train.config.judgements import PreferenceRewardConfig, SafetyRewardConfig
from r1train.config.recipe import load_config
from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError
from r1train.data.problems import ProblemSet
from r1train.rewards.preference import PreferenceReward, SafetyReward
from r1train.run import supplies
from r1train.run.artifacts import plan
from r1train.run.runner import run
from tests.r1train.samples import ONE, sample

POEM = replace(ONE, question="poem", answer="", verifiable=False)
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "User", ":", "Assistant", "poem", "roses", "violets"]
WORDS += ["<think>", "</think>", "<answer>", "</answer>", "a", "<s>", "</s>"]
CHAT = "{% for m in messages %}<s> {{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"


def save(folder, labels=1, chat=None, **special):
    """A reward model with random weights."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", **special}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.add_special_tokens({"additional_special_tokens": tags})
    fast.chat_template = chat
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, intermediate_size=32,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
        initializer_range=0.5, num_labels=labels, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("reward-model"))


def preference(path, **options):
    config = PreferenceRewardConfig(path=path, device="cpu", **options)
    return PreferenceReward(RewardConfig(preference=config), ProblemSet([ONE, POEM], ()))


def score(path, text):
    """What the model says of a text of words, by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
    with torch.no_grad():
        return model(input_ids=ids).logits.item()


def said(text):
    return f"<think> a </think> <answer> {text} </answer>"


def test_the_summary_is_judged_where_no_rule_decides(folder):
    reward = preference(folder)
    asked = {"prompt": "User : poem Assistant :"}
    samples = [sample(POEM, said("roses"), **asked), sample(ONE, said("roses"), **asked)]
    expected = score(folder, "User : poem Assistant : roses <eos>")
    assert reward(samples).values == [pytest.approx(expected, abs=1e-5), None]
    assert (
        preference(folder, applies="all")(samples).values == [pytest.approx(expected, abs=1e-5)] * 2
    )


def test_the_response_is_judged_with_its_thoughts(folder):
    config = RewardConfig(safety=SafetyRewardConfig(path=folder, device="cpu"))
    reward = SafetyReward(config, ProblemSet([POEM], ()))
    (value,) = reward([sample(POEM, said("roses"), prompt="poem")]).values
    assert value == pytest.approx(score(folder, f"poem {said('roses')} <eos>"), abs=1e-5)


def test_a_score_is_the_same_in_any_batch(folder):
    texts = ["roses", "violets " * 40, "", "roses violets", said("a"), "violets", "a a a"]
    samples = [sample(POEM, text) for text in texts]
    alone = [preference(folder)([one]).values[0] for one in samples]
    for size in (1, 2, 16):
        values = preference(folder, batch_size=size)(samples).values
        assert values == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == len(texts)
    assert preference(folder)([]).values == []


def test_no_more_is_read_than_the_length_allows(folder):
    reward = preference(folder, max_length=4)
    values = reward(
        [sample(POEM, f"roses {end}", prompt="poem") for end in ("a a", "a a a")]
    ).values
    assert values[0] == values[1] == pytest.approx(score(folder, "poem roses a a"), abs=1e-5)


def test_published_models_have_a_chat_template(tmp_path):
    path = save(tmp_path, chat=CHAT)
    (value,) = preference(path, template="chat")([sample(POEM, said("roses"))]).values
    text = "<s> <unk> : poem </s> <s> <unk> : roses </s>"  # user, assistant
    assert value == pytest.approx(score(path, text), abs=1e-5)


def test_a_prompt_that_begins_with_the_mark_has_it_once(tmp_path):
    path = save(tmp_path, bos_token="<bos>")
    reward = preference(path)
    (value,) = reward([sample(POEM, "roses", prompt="<bos> poem")]).values
    assert value == pytest.approx(score(path, "<bos> poem roses <eos>"), abs=1e-5)


def test_where_padding_is_the_end_the_last_word_is_read(tmp_path):
    path = save(tmp_path, pad_token="<eos>")
    values = preference(path)([sample(POEM, "roses", prompt="poem"), sample(POEM, "a " * 9)]).values
    assert values[0] == pytest.approx(score(path, "poem roses"), abs=1e-5)


def test_it_has_no_gradient(folder):
    model = preference(folder).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_no_reward_model_is_refused(tmp_path, folder):
    with pytest.raises(
        ConfigError, match=r"rewards.preference.path = None: give the folder.*stage"
    ):
        preference(None)
    with pytest.raises(
        ConfigError, match=r"rewards\.preference\.path = '.*nowhere'.*no such folder"
    ):
        preference(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"template = 'chat': the tokenizer .* no chat template"):
        preference(folder, template="chat")
    two = save(tmp_path / "two", labels=2)
    with pytest.raises(ConfigError, match="expected a model with one label, and it has 2"):
        preference(two)
    with pytest.raises(ConfigError, match=r"rewards\.safety\.device = 'gpu'"):
        SafetyRewardConfig(device="gpu")
    (tmp_path / "two" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        preference(two)


def test_two_reward_models_are_two_tables():
    config = RewardConfig(
        functions=("preference", "safety"),
        preference={"path": "helpful"},
        safety={"path": "stage:safe", "part": "summary"},
    )
    assert (config.preference.part, config.safety.part) == ("summary", "summary")
    assert RewardConfig().safety.part == "response"


def test_reward_models_are_on_the_device_of_the_run_unless_they_name_one(config, monkeypatch):
    given = []
    made = lambda rewards, problems: given.append(rewards) or nullcontext()  # noqa: E731
    monkeypatch.setattr(supplies, "RewardManager", made)
    (one,) = plan(config("stages=['grpo']", "device=cpu", "rewards.safety.device=cuda:1"))
    with ExitStack() as closing:
        supplies.Supplies(0, {}, closing).rewards(one)
    assert [(found.preference.device, found.safety.device) for found in given] == [
        ("cpu", "cuda:1")
    ]


def test_a_recipe_trains_its_reward_model_and_is_rewarded_by_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [f"User: say {word} Assistant:" for word in ("one", "two", "three", "four", "five")]
    rows = [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
        name = "liked"
        threads = 1
        [[stages]]
        kind = "reward_model"
        name = "taste"
        [[stages]]
        kind = "rl"
        name = "rl"
        [model]
        preset = "deepseek-v3-mini"
        [task]
        prompt_template = "{question}"
        heldout_size = 1
        train_size = 4
        datasets = [{ path = "rows.jsonl", answer_field = "" }]
        [reward_model]
        datasets = [{ path = "rows.jsonl" }]
        batch_size = 2
        heldout_size = 1
        [rollout]
        max_completion_length = 6
        [rewards]
        functions = ["preference", "language"]
        [rewards.preference]
        path = "stage:taste"
        part = "response"
        device = "cpu"
        [grpo]
        max_steps = 1
        prompts_per_step = 2
        num_generations = 4
        [eval]
        k = 1
        """
    )
    run(load_config(path))
    log = tmp_path / "runs" / "liked" / "rl" / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    (step,) = (record for record in records if "rewards/preference" in record)
    assert step["rewards/preference/none"] == 0
    assert step["rewards/preference/std"] > 0
