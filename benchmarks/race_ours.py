"""r1train: its stage of reinforcement learning, from prompts to new weights."""

from __future__ import annotations

from pathlib import Path

from benchmarks.race_tasks import EPSILON, LOSS_TYPE, MAX_GRAD_NORM, Race, Turns
from r1train.config.grpo import GRPOConfig
from r1train.config.model import ModelConfig
from r1train.config.rewards import RewardConfig
from r1train.config.rollout import RolloutConfig
from r1train.config.sections import Config
from r1train.config.stages import StageConfig
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.engine.builtin import BuiltinEngine
from r1train.model.load import load_model
from r1train.model.policy import Policy
from r1train.rewards.manager import RewardManager
from r1train.seeds import deterministic
from r1train.stages.base import Context
from r1train.stages.rl import RL


def run(race: Race, folder: Path, seed: int, device: str, turns: Turns) -> None:
    config = Config(
        device=device,
        stages=(StageConfig("rl"),),
        model=ModelConfig(path=str(folder)),
        task=TaskConfig(prompt_template="{question}"),
        rewards=RewardConfig(functions=("benchmarks.race_tasks:digits",), weights=(1.0,)),
        rollout=RolloutConfig(max_completion_length=race.completion, temperature=1.0),
        grpo=GRPOConfig(
            max_steps=race.steps,
            prompts_per_step=race.prompts,
            num_generations=race.group,
            learning_rate=race.learning_rate,
            lr_scheduler_type="constant",
            adam_beta2=0.999,
            weight_decay=0.0,
            max_grad_norm=MAX_GRAD_NORM,
            loss_type=LOSS_TYPE,
            epsilon=EPSILON,
            beta=0.0,
        ),
    )
    model, tokenizer = load_model(config)
    problems = [Problem("race", i, text, "") for i, text in enumerate(race.texts(seed))]
    train = ProblemSet(problems, (DatasetConfig(jsonl="race"),))
    with RewardManager(config.rewards, train) as rewards, deterministic():  # as in a run
        stage = RL(
            Context(
                config=config,
                seed=seed,
                policy=Policy(model),
                tokenizer=tokenizer,
                engine=BuiltinEngine.from_config(model, tokenizer, config.rollout),
                rewards=rewards,
                train=train,
                heldout=train,
                reserved=ProblemSet([], ()),
            )
        )
        for _ in range(race.steps):
            turns.begin()
            figures = None
            while figures is None:
                stage.prepare()
                figures = stage.update()
            tokens = figures["completions/mean_length"] * race.prompts * race.group
            turns.end(round(tokens), figures["reward"])
