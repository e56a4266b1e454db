"""Every preset parses, is printed, and takes a step of each of its stages on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from r1train.cli import main
from r1train.config.model import ModelConfig
from r1train.config.recipe import listed, load_config, recipes, to_toml
from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.task import DatasetConfig
from r1train.model.load import load_model
from r1train.run.runner import run
from r1train.sandbox.isolation import require_isolation

PRESETS = [name for name in recipes() if load_config(name).reference.source is not None]
# What an algorithm is made of stays; sizes, and what is read from files, are a test's.
SMALL = [
    *("dtype=float32", "precision=dtype", "device=cpu", "threads=1", "elementwise=false"),
    *("model.gradient_checkpointing=false", "rewards.workers=1", "rollout.batch_size=8"),
    *("eval.k=1", "eval.limit=1", "eval.max_completion_length=4"),
    *("task.heldout_size=4", "task.prompt_template=plain", "task.system_prompt=none"),
    *("grpo.prompts_per_step=2", "grpo.num_generations=2", "grpo.num_minibatches=2"),
    *("sft.batch_size=2", "reward_model.batch_size=2", "reward_model.heldout_size=2"),
    *("rejection.num_prompts=4", "rejection.num_generations=2"),
]
REASONING = "<think> one and two are three </think> <answer> 3 </answer>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, and files of each kind."""
    folder = tmp_path_factory.mktemp("presets")
    config = Config(model=ModelConfig(preset="deepseek-v3-mini"))
    questions = [f"What is {a} + {b}?" for a in range(6) for b in range(6)]
    model, tokenizer = load_model(config, [f"User: {q} Assistant:" for q in questions])
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows: dict[str, list[dict[str, Any]]] = {
        "demonstrations": [{"prompt": q, "completion": REASONING} for q in questions],
        "pairs": [{"prompt": q, "chosen": REASONING, "rejected": "No."} for q in questions],
        "labels": [
            {"prompt": q, "completion": "No." if i % 2 else REASONING, "label": i % 2 == 0}
            for i, q in enumerate(questions)
        ],
    }
    for name, found in rows.items():
        write(folder / f"{name}.jsonl", found)
    return folder


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def small_sources(config: Config, folder: Path) -> str:
    """The sources of a recipe's problems as they are, of small files: one for each that it names,
    with questions of its own."""

    def problems(named: str, dataset: DatasetConfig) -> str:
        name = Path(named).name
        questions = [f"What is {a} + {b}, {name}?" for a in range(6) for b in range(6)]
        said: dict[str, Any] = {dataset.answer_field or "answer": "3"}
        if dataset.answer_field == "":
            said = {"input_output": {"inputs": ["1"], "outputs": ["1"]}}
        rows = [{dataset.prompt_field or "question": question, **said} for question in questions]
        return write(folder / name, rows)

    own = [
        replace(
            dataset,
            path=problems(dataset.path, dataset),
            heldout_path=dataset.heldout_path and problems(dataset.heldout_path, dataset),
        )
        for dataset in config.task.datasets
        if dataset.path is not None
    ]
    assert len(own) == len(config.task.datasets)
    given = [{k: v for k, v in asdict(one).items() if v not in (None, {})} for one in own]
    tables = [", ".join(f"{k} = {json.dumps(v)}" for k, v in one.items()) for one in given]
    return f"[{', '.join(f'{{{table}}}' for table in tables)}]"


def one_step(name: str, folder: Path) -> list[str]:
    """Overrides by which each stage of the preset takes one step, or samples a few times."""
    config = load_config(name)
    said = f'[{{path = "{folder}/demonstrations.jsonl"}}]'
    own: list[str] = []
    for stage in config.stages:
        at = f"stages.{stage.name}"
        sections = stage.sections
        if stage.kind == "rl":
            own.append(f"{at}.grpo.max_steps=1")
            own.append(f"{at}.rollout.max_completion_length=4")
            sizes = {"prompts_per_step", "num_generations"} & sections.get("grpo", {}).keys()
            own += [f"{at}.grpo.{size}=2" for size in sorted(sizes)]
        if stage.kind in ("sft", "distill"):
            reads = str(sections.get("sft", {}).get("datasets", ""))
            own.append(f"{at}.sft.num_train_epochs=0.05")
            if "stage:" not in reads:
                own.append(f"{at}.sft.datasets={said}")
        if stage.kind == "rejection":
            own += [
                f"{at}.rejection.mix={said}",
                f"{at}.rejection.min_rewards={{accuracy = 0, format = 0}}",
                f'{at}.rollout.stop=["a", "e", "i", "o", "s", "1", "2", " "]',  # they end
                f"{at}.rollout.max_completion_length=32",
            ]
        if stage.kind == "reward_model":
            kind = "pairs" if sections["reward_model"]["objective"] == "pairwise" else "labels"
            own.append(f'{at}.reward_model.datasets=[{{path = "{folder}/{kind}.jsonl"}}]')
            own.append(f"{at}.reward_model.num_train_epochs=0.1")
        if "datasets" in sections.get("task", {}):
            own.append(f"{at}.task.datasets={small_sources(config.of(stage), folder)}")
        if stage.init is not None and stage.init == config.model.path:
            own.append(f"{at}.init={folder}/base")
    many = config.grpo.num_minibatches
    own.append(f"grpo.num_minibatches={min(many, 2)}")
    return [
        *SMALL,
        f"model.path={folder}/base",
        f"task.datasets={small_sources(config, folder)}",
        "rollout.max_completion_length=4",
        *own,
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] if "extends" in recipes()[name].read_text() else []
        )
        for name in PRESETS  # what extends another takes the same steps
    ],
)
def test_a_preset_takes_a_step_of_each_stage(name: str, folder: Path, tmp_path: Path) -> None:
    if "code" in load_config(name).rewards.functions:
        skip_without_isolation()
    overrides = [*one_step(name, folder), f"output_dir={tmp_path}"]
    config = load_config(name, overrides)
    given = load_config(name)
    for option in ("loss_type", "epsilon", "beta", "kl_estimator", "learning_rate"):
        assert getattr(config.grpo, option) == getattr(given.grpo, option)
    summary = run(config)
    assert not summary["interrupted"]
    assert set(summary["stages"]) == {stage.name for stage in given.stages}


def skip_without_isolation() -> None:
    try:
        require_isolation("python")
    except ConfigError as error:
        pytest.skip(f"programs cannot be contained here: {error}")


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_is_printed_and_read_again(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", name, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f'name = "{name}"' in printed
    (tmp_path / f"{name}.toml").write_text(printed, encoding="utf-8")
    config = load_config(name)
    assert to_toml(load_config(tmp_path / f"{name}.toml")) == to_toml(config)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_is_made_for(name: str) -> None:
    reference = load_config(name).reference
    assert reference.figures
    assert reference.base is not None
    assert load_config(name).model.path == reference.base.partition("/")[2]


def test_distillation_has_the_rates_of_the_paper() -> None:
    rates = {name: load_config(f"distill-{name}").sft.learning_rate for name in students()}
    assert rates == {
        "qwen-1.5b": 1e-4, "qwen-7b": 8e-5, "qwen-14b": 7e-5, "qwen-32b": 6e-5, "llama-8b": 5e-5,
        "llama-70b": 2e-5,
    }  # fmt: skip


def students() -> Iterator[str]:
    for name in PRESETS:
        if name.startswith("distill-"):
            yield name.removeprefix("distill-")


def test_r1_zero_counts_updates_as_the_paper_does() -> None:
    config = load_config("r1-zero")
    short, long = (config.of(stage) for stage in config.stages)
    updates = short.grpo.num_minibatches
    assert short.grpo.max_steps * updates == 8192  # "8.2k"
    assert (short.grpo.max_steps + long.grpo.max_steps) * updates == 10400
    assert short.grpo.ref_model_sync_steps * updates == 400
    assert short.grpo.prompts_per_step * short.grpo.num_generations == 8192
    lengths = [one.rollout.max_completion_length for one in (short, long)]
    assert lengths == [32768, 65536]


def test_r1_mixes_the_demonstrations_of_table_5() -> None:
    config = load_config("r1")
    rejection = next(stage for stage in config.stages if stage.kind == "rejection")
    assert config.of(rejection).rejection.mix_share == pytest.approx(177_812 / 804_745, abs=0.005)
    assert config.plan.demonstration_length == round(5355.3)
    assert load_config("distill-qwen-7b").plan.demonstration_length == round(5355.3)


@pytest.mark.parametrize("name", ["r1", "distill-qwen-7b"])
def test_rates_of_supervised_training_start_at_their_peak(name: str) -> None:
    """As the paper has it."""
    assert load_config(name).sft.warmup_ratio == 0


@pytest.mark.parametrize("name", ["distill-qwen-7b", "open-r1-distill-7b", "deepscaler-1.5b"])
def test_a_student_of_r1_has_no_instruction_of_ours(name: str) -> None:
    assert load_config(name).task.system_prompt == ""


def test_answers_are_sought_where_a_preset_asks_for_them() -> None:
    """R1-Zero's instruction, and R1's cold start, have a block; the others were asked for a box."""
    blocks = {name for name in PRESETS if load_config(name).rewards.answer_in == "block"}
    assert blocks == {"r1-zero", "r1", "zero-qwen-32b"}


def test_the_dense_zero_has_no_logic() -> None:
    paths = [dataset.path for dataset in load_config("zero-qwen-32b").task.datasets]
    assert paths == ["data/mathematics.jsonl", "data/code.jsonl", "data/stem.jsonl"]


@pytest.mark.parametrize("name", ["simplerl-zoo-0.5b", "deepscaler-1.5b", "skywork-or1"])
def test_recipes_of_verl_have_its_defaults(name: str) -> None:
    config = load_config(name).grpo
    assert (config.loss_type, config.epsilon, config.weight_decay) == ("dapo", 0.2, 0.01)
    assert config.beta == 0 or config.kl_estimator == "low_var"


def test_skywork_has_the_stages_of_table_11() -> None:
    config = load_config("skywork-or1")
    stages = [config.of(stage) for stage in config.stages]
    rows = [
        (
            one.grpo.max_steps,
            one.rollout.max_completion_length,
            one.grpo.prompts_per_step,
            one.grpo.num_generations,
            one.grpo.num_minibatches,
        )
        for one in stages
    ]
    assert rows == [(660, 16384, 256, 16, 1), (660, 32768, 160, 32, 1)]


def test_recipes_are_listed_in_groups() -> None:
    demos, presets = listed().split("; ")
    assert "r1-zero-mini" in demos
    assert "deepscaler-1.5b" in presets
    assert "deepscaler-1.5b" not in demos


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "r1-zero"\n[grpo]\nlearning_rate = 1e-5\n', encoding="utf-8")
    config, base = load_config(path), load_config("r1-zero")
    assert config.grpo.learning_rate == 1e-5
    assert config.grpo.num_minibatches == base.grpo.num_minibatches
    assert config.stages == base.stages


@pytest.mark.parametrize("other", ["nothing", "mine"])
def test_a_recipe_that_extends_none_is_refused(other: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "{other}"\n', encoding="utf-8")
    assert main(["config", str(path)]) == 2
