"""A plan: shapes, records, and what follows from them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from r1train.cli import main
from r1train.config.recipe import load_config, recipes
from r1train.config.schema import ConfigError
from r1train.plan.activations import kept
from r1train.plan.hardware import Cluster, cluster_of, devices
from r1train.plan.recipe import plan
from r1train.plan.shapes import known, named
from r1train.plan.show import COLUMNS, text
from r1train.plan.stages import micro_batch, spread
from r1train.plan.time import decay, measured, rates
from r1train.stages import KINDS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RECORDS = {
    "H100": "nvidia-h100-80gb-hbm3.jsonl",
    "cpu": "amd-epyc-2-avx512bf16.jsonl",
}
SIZED = [name for name, config in known().items() if "like" not in config]


@pytest.mark.parametrize("name", SIZED)
def test_a_shape_has_as_many_weights_as_the_model(name: str) -> None:
    config = {key: value for key, value in known()[name].items() if key != "quantization_config"}
    kind = config.pop("model_type")
    if kind == "deepseek_v3":
        config["num_mtp_layers"] = 0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config))
    assert named(name).parameters == model.num_parameters()


def test_deepseek_v3_has_the_published_sizes() -> None:
    shape = named("DeepSeek-V3-Base")
    assert shape.parameters == pytest.approx(671e9, rel=0.001)
    assert shape.active == pytest.approx(37e9, rel=0.02)
    assert shape.kept_latent / shape.layers == 576  # arXiv 2405.04434: 512 of the latent and 64


@pytest.mark.parametrize(
    ("device", "what"), [(device, what) for device, own in measured().items() for what in own]
)
def test_a_measured_rate_is_that_of_its_record(device: str, what: str) -> None:
    values = dict(measured()[device][what])
    record = tuple(values.pop("record"))
    ((kind, value),) = values.items()
    lines = (RESULTS / RECORDS[device]).read_text(encoding="utf-8").splitlines()
    rows = [
        row
        for row in map(json.loads, lines)
        if (row["op"], row["case"], row["implementation"]) == record
    ]
    seconds = min(row["seconds"] for row in rows)
    found = rows[-1]["tflops"] * 1e12
    if kind == "bytes":  # of the weights of sixteen square layers in bfloat16
        found = 16 * 2 * rows[-1]["shape"][-1] ** 2 / seconds
    assert value == pytest.approx(found, rel=0.02)


def test_where_there_is_no_record_the_share_of_the_peak_is_an_h100s() -> None:
    found = rates(devices()["H200"], "bfloat16")
    own = rates(devices()["H100"], "bfloat16")
    assert found.dense == own.dense  # the same peak
    assert found.decode / own.decode == pytest.approx(4.8 / 3.35)
    assert set(found.unrecorded) > set(own.unrecorded)


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [("cpu", 1, "cpu"), ("8xH100", 8, "H100"), ("64x8xh800", 512, "H800")],
)
def test_clusters_by_name(text: str, count: int, name: str) -> None:
    assert cluster_of(text) == Cluster(devices()[name], count)


@pytest.mark.parametrize("text", ["H1000", "0xH100", "x", "-1xH100", ""])
def test_a_cluster_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a device, or so many"):
        cluster_of(text)


def test_lengths_that_are_cut_off_have_the_mean_that_was_asked_for() -> None:
    tau, cap = decay(300.0, 1000), 1000
    lengths = torch.empty(200_000).exponential_(1 / tau, generator=torch.Generator().manual_seed(0))
    lengths = lengths.clamp(max=cap)
    assert lengths.mean().item() == pytest.approx(300, rel=0.01)
    before = (lengths**2).mean() / 2 / lengths.mean()
    assert spread(300.0, cap) == pytest.approx(before.item(), rel=0.01)


def test_micro_batches_are_those_of_the_learner() -> None:
    from r1train.learn.batch import micro_batches

    for budget, prompt, length, group in (
        (2048, 64, 192, 8),
        (1024, 64, 192, 8),
        (4096, 10, 30, 4),
    ):
        prompts = [[i] * prompt for i in range(64) for _ in range(group)]
        completions = [[0] * length] * len(prompts)
        first = micro_batches(prompts, completions, budget)[0]
        distinct = {prompts[row][0] for row in first}
        tokens = len(distinct) * prompt + len(first) * (length - 1)
        expected = float(tokens), float(len(first) * length)
        assert micro_batch(budget, prompt, length, group) == expected


def test_activations_are_what_autograd_keeps() -> None:
    """Of a model of each kind, in both types: every tensor that is saved, once."""
    from r1kernels.hf import patch, patch_moe
    from r1train.model.packing import pack
    from r1train.model.policy import Policy

    config = {**known()["deepseek-v3-mini"], "num_mtp_layers": 0, "n_group": 4, "topk_group": 2}
    kind = config.pop("model_type")
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config))
    patch_moe(model)
    policy = Policy(patch(model.eval()))
    packed = pack([[1, 2, 3]] * 4, [[4] * 64] * 4)
    seen: dict[int, int] = {}
    alive = []
    known_storages = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
    }

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known_storages:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        hidden, _ = policy.accumulate(packed, lambda hidden, head: (hidden.sum(), None))
    del hidden
    planned = kept(named("deepseek-v3-mini"), 4).bytes(len(packed.ids), checkpointed=False)
    assert planned == pytest.approx(sum(seen.values()), rel=0.03)


def test_the_plan_of_r1_zero_beside_what_it_took() -> None:
    """Nothing is fitted to the reported hours: they are reached within a factor of two."""
    found = plan(load_config("r1-zero"), cluster_of("64x8xH800"))
    reported = found.config.reference.device_hours
    assert reported is not None
    assert 0.5 < found.device_hours / reported < 2
    assert [stage.bottleneck[0] for stage in found.stages] == ["rollout", "rollout"]


def test_what_does_not_fit_says_what_would() -> None:
    found = plan(load_config("distill-qwen-7b"), cluster_of("H100"))
    (remedies,) = found.remedies.values()
    assert any("devices" in remedy for remedy in remedies)
    wider = plan(load_config("distill-qwen-7b"), cluster_of("8xH100"))
    assert not wider.remedies
    option = next(remedy for remedy in remedies if "=" in remedy and "with" not in remedy)
    changed = plan(load_config("distill-qwen-7b", [option]), cluster_of("H100"))
    assert not changed.remedies


def test_more_devices_take_less_time_and_memory() -> None:
    config = load_config("distill-qwen-7b")
    one, eight = (plan(config, cluster_of(name)).stages[0] for name in ("H100", "8xH100"))
    assert eight.seconds < one.seconds
    assert eight.memory.peak[1] < one.memory.peak[1]


def test_stages_learn_from_what_others_leave() -> None:
    """Bounds of r1-mini, three seeds of which took 225 to 240, 87 and 320 steps."""
    stages = {stage.name: stage for stage in plan(load_config("r1-mini"), cluster_of("cpu")).stages}
    assert stages["rejection-sft"].steps == 240  # 3 × (2048 and a quarter as many others) / 32
    assert stages["helpful"].steps == 96  # 3 × 2048 pairs / 64
    assert stages["distilled"].steps == 640  # 2 × 5120 × 2 / 32, half of which repeat others
    found = plan(load_config("r1"), cluster_of("64x8xH800"))
    assert next(stage for stage in found.stages if stage.name == "cold-start").steps == 79


def test_a_stage_may_say_how_much_it_learns_from() -> None:
    config = load_config("r1-mini")
    taught = next(stage for stage in config.stages if stage.name == "distilled")
    own = replace(taught, sections={**taught.sections, "plan": {"demonstrations": 320}})
    stages = tuple(own if stage is taught else stage for stage in config.stages)
    found = plan(replace(config, stages=stages), cluster_of("cpu"))
    assert next(stage for stage in found.stages if stage.name == "distilled").steps == 20


def test_teachers_and_value_models_take_time_and_memory() -> None:
    found = plan(load_config("r1-mini"), cluster_of("cpu"))
    stages = {stage.name: stage for stage in found.stages}
    distilled, steps, search = (stages[name] for name in ("on-policy", "step-values", "search"))
    teacher = 4 * stages["r1"].shape.parameters
    assert distilled.shape.parameters < stages["r1"].shape.parameters
    assert distilled.memory.phases["update"]["teacher"] == teacher
    assert 0 < distilled.phases["teacher"].seconds < distilled.phases["update"].seconds
    assert steps.steps == 32  # 4 × 256 × 2 / 64, and so the run had
    longer = load_config("r1-mini", ["plan.solution_steps=12"])
    more = {stage.name: stage for stage in plan(longer, cluster_of("cpu")).stages}["step-values"]
    assert more.phases["rollout"].seconds > 1.5 * steps.phases["rollout"].seconds
    assert search.memory.phases["rollout"]["value model"] == teacher
    assert search.tokens == 64 * (8 + 8 + 1) * 24


def test_a_total_is_that_of_all_seeds() -> None:
    three = plan(load_config("r1-mini"), cluster_of("cpu"))
    one = plan(load_config("r1-mini", ["seeds=[0]"]), cluster_of("cpu"))
    assert three.seconds == pytest.approx(3 * one.seconds)
    assert "for 3 seeds" in text(three)
    assert "seeds" not in text(one)


def test_where_no_completion_has_a_place_there_is_no_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = text(plan(load_config("r1-zero"), cluster_of("H100")))
    assert "0 completions at a time" in shown
    assert "total      none: no completion has a place in short, long" in shown
    assert not re.search(r"\d s |tokens/s| days", shown)
    assert main(["plan", "r1-zero", "H100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] is found["dollars"] is found["stages"][0]["seconds"] is None


def test_what_is_usable_is_said() -> None:
    shown = " ".join(text(plan(load_config("r1-zero"), cluster_of("8xH100"))).split())
    assert "of 74.8 usable GiB a device, in update: DOES NOT FIT" in shown
    assert "Of a device's 79.6 GiB 94% can be used" in shown
    assert ", if all of it fitted" in shown


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_is_planned_in_eighty_columns(recipe: str) -> None:
    found = plan(load_config(recipe), cluster_of("64x8xH800"))
    assert found.seconds > 0
    assert max(map(len, text(found).splitlines())) <= COLUMNS


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smollm2", "cpu", "plan.price=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dollars"] == pytest.approx(2 * found["seconds"] / 3600)
    assert {stage["name"] for stage in found["stages"]} == {"sft", "grpo"}


def test_every_kind_of_stage_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    stages = ", ".join(f"{{kind='{kind}', name='{kind}'}}" for kind in KINDS)
    settings = [f"stages=[{stages}]", "distill.teacher=stage:rl", "search.value_model=stage:rl"]
    found = plan(load_config("r1-zero-mini", settings), cluster_of("cpu"))
    assert [stage.kind for stage in found.stages] == [*KINDS]
    assert all(stage.seconds > 0 for stage in found.stages)
    assert main(["plan", "r1-zero-mini", "cpu", "stages=[{kind='serch', name='a'}]"]) == 2
    assert "did you mean 'search'?" in capsys.readouterr().err


def test_a_model_of_unknown_shape_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "r1-zero", "model.path=DeepSeek-V3-Bass"]) == 2
    assert "did you mean 'DeepSeek-V3-Base'?" in capsys.readouterr().err
