import dataclasses
import typing

import pytest

from r1kernels.policy import group_advantage, losses
from r1kernels.policy.policy_loss_options import PolicyLossOptions
from r1train.config.grpo import GRPOConfig, LossType
from r1train.config.recipe import load_config, recipes, to_toml
from r1train.config.rewards import RewardConfig
from r1train.config.rollout import RolloutConfig
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.task import DatasetConfig, TaskConfig
from tests.r1train.sections import sections

TOML = """
stages = ["sft"]
[grpo]
max_steps = 7
[task]
datasets = [{name = "chain_sum", params = {max_terms = 3}}, {jsonl = "a.jsonl", weight = 2}]
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "my-run.toml"
    file.write_text(TOML)
    return file


def test_toml_fills_the_dataclasses(path):
    config = load_config(path)
    assert config.name == "my-run"  # the file's name unless it gives one
    assert [(stage.kind, stage.name) for stage in config.stages] == [("sft", "sft")]
    assert config.grpo == GRPOConfig(max_steps=7)
    assert config.task.datasets[0].params == {"max_terms": 3}
    assert config.task.datasets[1].weight == 2.0


def test_the_names_are_those_of_the_kernels():
    hints = typing.get_type_hints(GRPOConfig)

    def names(option):
        parts = [typing.get_args(part) or (part,) for part in typing.get_args(hints[option])]
        return {name for part in parts for name in part if isinstance(name, str)}

    assert names("loss_type") == set(losses.LOSSES) - {"clip_cov", "kl_cov"}
    assert names("kl_estimator") == set(losses.KL_ESTIMATORS)
    assert names("importance_sampling_level") == set(losses.LEVELS)
    assert names("scale_rewards") == set(group_advantage.SCALES)
    assert names("baseline") == set(group_advantage.BASELINES)


def test_overrides_win_and_have_types(path):
    overrides = ["grpo.max_steps=9", "grpo.learning_rate=1e-4", "grpo.epsilon_high=0.28", "seed=3"]
    config = load_config(path, [*overrides, "grpo.loss_type=dapo", "grpo.epsilon_high=none"])
    assert (config.grpo.max_steps, config.grpo.learning_rate, config.seed) == (9, 1e-4, 3)
    assert (config.grpo.loss_type, config.grpo.epsilon_high) == ("dapo", None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("grpo.max_step=3", r"unknown key 'max_step' in section \[grpo\].*'max_steps'"),
        ("gpro.max_steps=3", r"unknown key 'gpro' in the top level.*'grpo'"),
        ('task.datasets=[{nme="x"}]', r"unknown key 'nme' in section \[task.datasets\].*'name'"),
        ("task.datasets=[{weight=1}]", "exactly one of name and path"),
        ('task.datasets=[{name="a",params={seed=1}}]', "seed"),
        ("grpo.max_steps=many", "grpo.max_steps = 'many': expected an integer"),
        ("grpo.max_steps=1.5", "grpo.max_steps = 1.5: expected an integer"),
        ("grpo.max_steps=true", "grpo.max_steps = True: expected an integer"),
        ("grpo.learning_rate=0", "grpo.learning_rate = 0: expected a value > 0"),
        ("grpo.learning_rate=nan", "grpo.learning_rate = nan"),
        ("grpo.routing_replay=1", "grpo.routing_replay = 1: expected true or false"),
        ("sft.expert_bias_update_rate=-1", "sft.expert_bias_update_rate = -1"),
        ("grpo.loss_type=ppo", "'ppo': expected one of 'grpo', 'bnpo'"),
        ("grpo.num_generations=1", "num_generations = 1: a group needs at least 2"),
        ("rollout.top_p=0.9", "rollout.top_p = 0.9: training needs top_p = 1"),
        ("rewards.weights=[1]", "rewards.weights.*expected 2"),
        ('rewards.functions=["accuracy","accuracy"]', "at most once"),
        ("task.prompt_template=r1zero", "prompt_template.*r1-zero, plain, chat"),
        ("eval.confidence=1", "eval.confidence = 1.0"),
        ("stages=[]", "stages = "),
        ("processes=2", "processes = 2: set threads too"),
        ("grpo=3", "grpo = 3: expected a table"),
        ("a..c=1", "override 'a..c=1': expected section.key=value"),
        ("a.b.c=1", "unknown key 'a' in the top level"),
        ("grpo.max_steps", "expected section.key=value"),
        ("model.gguf_file=a.gguf", "model.gguf_file.*model.path"),
    ],
)
def test_a_wrong_setting_names_the_key_and_what_is_accepted(path, override, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(path, [override])


def test_python_is_checked_like_toml():
    with pytest.raises(ConfigError, match="top_p"):
        RolloutConfig(top_p=0.5)
    with pytest.raises(ConfigError, match="num_generations"):
        dataclasses.replace(GRPOConfig(), num_generations=1)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"loss_type": "cispo"}, "grpo.epsilon_high = None: expected a number for 'cispo'"),
        ({"loss_type": "sapo", "epsilon": 0.2}, "grpo.epsilon = 0.2: 'sapo' has no such option"),
        ({"loss_type": "gmpo", "delta": 2.0}, "grpo.delta = 2.0: 'gmpo' has no such option"),
        (
            {"loss_type": "gspo", "importance_sampling_level": "token"},
            "grpo.importance_sampling_level = 'token': 'gspo' has its own ratio",
        ),
    ],
)
def test_options_that_a_loss_has_not_are_found_before_anything_starts(wrong, expected):
    with pytest.raises(ConfigError, match=expected):
        GRPOConfig(**wrong)


@pytest.mark.parametrize("loss", typing.get_args(LossType))
def test_every_loss_can_be_asked_for(loss):
    needed = {"epsilon_high": 0.3} if loss == "cispo" else {}
    options = GRPOConfig(loss_type=loss, **needed).loss_options(max_completion_length=5)
    assert options.loss_type == ("dapo" if loss == "bnpo" else loss)


def test_the_loss_is_told_every_option_that_it_has():
    own = {
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "delta": 2.0,
        "importance_sampling_level": "sequence",
    }
    own |= {"beta": 0.5, "kl_estimator": "k1", "entropy_coef": 0.004}
    options = GRPOConfig(**own).loss_options(max_completion_length=5)
    assert options == PolicyLossOptions(**own, max_completion_length=5)


def test_a_written_config_reads_back_equal(path, tmp_path):
    config = load_config(path, ["grpo.delta=2", 'task.prompt_template="Q: {question}\\nA:"'])
    written = tmp_path / "config.toml"
    written.write_text(to_toml(config))
    assert load_config(written) == config


def test_evaluation_takes_its_length_from_the_rollout():
    assert Config(rollout=RolloutConfig(max_completion_length=9)).eval.max_completion_length == 9


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="the recipes are"):
        load_config("r1-zero-mni")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)


@pytest.mark.parametrize("recipe", recipes())
def test_recipes_load(recipe):
    assert load_config(recipe).name


def test_optional_fields_default_to_none():
    """TOML has no null: a None that is left out must come back as None."""
    for section in sections():
        hints = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            if type(None) in typing.get_args(hints[field.name]):
                assert field.default is None, (section, field.name)


def test_accuracy_needs_a_dataset_with_answers():
    poems, sums = (
        DatasetConfig(path="poems.jsonl", answer_field=""),
        DatasetConfig(name="chain_sum"),
    )
    Config(task=TaskConfig(datasets=(poems, sums)), rewards=RewardConfig(("accuracy",)))
    with pytest.raises(ConfigError, match=r"accuracy compares with an answer, and no dataset has"):
        Config(task=TaskConfig(datasets=(poems,)), rewards=RewardConfig(("accuracy",)))
