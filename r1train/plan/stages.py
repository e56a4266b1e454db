"""The plan of one stage: what a step takes of memory and time, and how many steps there are."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isinf

from r1train.config.sections import Config
from r1train.config.stages import StageConfig
from r1train.plan import memory, time
from r1train.plan.hardware import Cluster
from r1train.plan.memory import Engine, Memory
from r1train.plan.shapes import Shape
from r1train.plan.time import Phase, Rates

SUPERVISED, SAMPLED = ("sft", "distill"), ("rejection", "sample")


@dataclass(frozen=True)
class StagePlan:
    """One stage: what a step takes, and how many there are."""

    name: str
    kind: str
    shape: Shape
    steps: int
    tokens: float
    """Of a step: sampled ones, or those that are learnt."""
    phases: dict[str, Phase]
    """Seconds of a step by phase."""
    memory: Memory
    share_of_peak: float
    """Model FLOPs utilisation of updates, 6 operations a weight and token; 0: there are none."""
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.steps * time.summed(self.phases)

    @property
    def bottleneck(self) -> tuple[str, Phase]:
        """The phase that takes longest."""
        return max(self.phases.items(), key=lambda item: item[1].seconds)


def rates_of(config: Config, shape: Shape, cluster: Cluster) -> Rates:
    """What the kernels reach in the recipe's types."""
    fp8 = config.precision == "fp8" and (shape.fp8 or config.fp8_layers == "all")
    return time.rates(cluster.device, config.dtype, fp8=fp8)


def plan_stage(stage: StageConfig, config: Config, shape: Shape, cluster: Cluster) -> StagePlan:
    """The plan of one stage, whose options these are. NotImplementedError: of an unknown kind."""
    if stage.kind == "rl":
        return _rl(stage, config, shape, cluster)
    if stage.kind in SUPERVISED:
        return _supervised(stage, config, shape, cluster)
    if stage.kind in SAMPLED:
        section = getattr(config, stage.kind)
        prompts = section.num_prompts or config.task.train_size or config.plan.demonstrations
        length = config.rollout.max_completion_length
        return _sampled(stage, config, shape, cluster, prompts, section.num_generations, length)
    if stage.kind == "evaluate":
        prompts = config.eval.limit or config.task.heldout_size or 256
        cap = config.eval.max_completion_length or config.rollout.max_completion_length
        return _sampled(stage, config, shape, cluster, prompts, config.eval.k, cap)
    if stage.kind == "reward_model":
        return _reward_model(stage, config, shape, cluster)
    raise NotImplementedError(stage.kind)


def _rl(stage: StageConfig, config: Config, shape: Shape, cluster: Cluster) -> StagePlan:
    grpo, supposed = config.grpo, config.plan
    cap, prompt = config.rollout.max_completion_length, supposed.prompt_length
    mean = _mean(config, cap)
    completions = grpo.prompts_per_step * grpo.num_generations
    updates = grpo.num_iterations * grpo.num_minibatches
    every = grpo.beta != 0 or grpo.entropy_coef != 0
    learnt = (grpo.prompts_per_step * prompt + completions * mean) * (
        1.0 if every else supposed.active
    )
    at, (weight, width) = rates_of(config, shape, cluster), memory.width_of(config, shape)
    static = memory.optimizer(config, shape, cluster)
    if grpo.beta:
        static["reference"] = weight * memory.trained(config, shape) / cluster.count
    engine = memory.engine_of(config, shape, cluster, length=cap, rows=completions)
    resident = memory.rolling_out(engine, static)
    part = micro_batch(grpo.token_budget, prompt, cap, grpo.num_generations)
    worst = (grpo.prompts_per_step * prompt + completions * cap) / grpo.num_minibatches
    held = min(part[0], worst)
    parts = max(1.0, worst / cluster.count / held)
    phases = {"rollout": resident}
    kept = resident if engine.own else static  # others release what they have
    phases["update"] = kept | memory.training(
        config, shape, cluster, tokens=held, rows=min(part[1], held), parts=parts
    )
    if grpo.beta:
        phases["reference"] = kept | {"policy, set aside": static["reference"]}
    traffic = memory.kept_by(config, shape)
    own = learnt / grpo.num_minibatches / cluster.count

    def passes(tokens: float, count: float) -> Phase:
        return time.update_phase(
            shape,
            at,
            cluster,
            tokens=tokens,
            context=prompt + spread(mean, cap),
            passes=count,
            traffic=traffic.layers,
            parts=max(1.0, own / grpo.token_budget),
            width=width,
            checkpointed=config.model.gradient_checkpointing,
        )

    update = passes(learnt / grpo.num_minibatches, 3)
    times = {
        "rollout": time.rollout_phase(
            shape,
            at,
            cluster,
            engine,
            completions=completions,
            mean=mean,
            cap=cap,
            prompt=prompt,
            group=grpo.num_generations,
            width=weight,
        ),
        "rewards": _rewards(config, completions),
        "old log-probs": passes(learnt * (1 - 1 / updates), 1) if updates > 1 else time.NOTHING,
        "reference": passes(learnt, 1) if grpo.beta else time.NOTHING,
        "update": update * updates,
        "optimizer": time.step_phase(shape, at, cluster, memory.trained(config, shape), weight)
        * updates,
        "weight sync": time.sync_phase(shape, cluster, engine, at, weight),
    }
    seconds = times["update"].seconds
    operations = 6.0 * shape.active * learnt * grpo.num_iterations
    return StagePlan(
        str(stage.name),
        stage.kind,
        shape,
        grpo.max_steps,
        completions * mean,
        times,
        Memory(phases, engine),
        time.share_of_peak(operations, seconds, cluster, config.dtype),
        _cache_notes(engine, cap, prompt, cluster, config),
    )


def _supervised(stage: StageConfig, config: Config, shape: Shape, cluster: Cluster) -> StagePlan:
    sft, supposed = config.sft, config.plan
    prompt, cap = supposed.prompt_length, config.rollout.max_completion_length
    mean = float(supposed.demonstration_length or _mean(config, cap))
    epochs = getattr(sft, "num_train_epochs", None)
    steps = sft.max_steps or 200
    if epochs is not None:
        steps = -(-int(epochs * supposed.demonstrations) // sft.batch_size)
    learnt = sft.batch_size * (prompt + mean)
    longest = max(cap, round(mean))
    held = min(max(sft.token_budget, prompt + longest), sft.batch_size * (prompt + longest))
    return _learnt(
        stage,
        config,
        shape,
        cluster,
        steps,
        learnt,
        held,
        held * longest / (prompt + longest),
        mean,
    )


def _reward_model(stage: StageConfig, config: Config, shape: Shape, cluster: Cluster) -> StagePlan:
    section, supposed = config.reward_model, config.plan
    prompt, cap = supposed.prompt_length, config.rollout.max_completion_length
    mean = float(supposed.demonstration_length or _mean(config, cap))
    each = 2 if section.objective == "pairwise" else 1
    steps = -(-int(section.num_train_epochs * supposed.demonstrations) // section.batch_size)
    learnt = section.batch_size * (prompt + each * mean)
    most = min(float(section.token_budget), section.batch_size * each * float(section.max_length))
    held = max(most, float(section.max_length))
    return _learnt(
        stage, config, shape, cluster, steps, learnt, held, section.batch_size, mean, head=False
    )


def _learnt(
    stage: StageConfig,
    config: Config,
    shape: Shape,
    cluster: Cluster,
    steps: int,
    learnt: float,
    held: float,
    rows: float,
    mean: float,
    *,
    head: bool = True,
) -> StagePlan:
    """A stage of supervised updates on `learnt` tokens each."""
    at, (weight, width) = rates_of(config, shape, cluster), memory.width_of(config, shape)
    static = memory.optimizer(config, shape, cluster)
    parts = max(1.0, learnt / cluster.count / held)
    training = memory.training(
        config, shape, cluster, tokens=held, rows=rows, parts=parts, head=head
    )
    update = time.update_phase(
        shape,
        at,
        cluster,
        tokens=learnt,
        context=config.plan.prompt_length + mean / 2,
        passes=3,
        traffic=memory.kept_by(config, shape).layers,
        parts=parts,
        width=width,
        checkpointed=config.model.gradient_checkpointing,
    )
    moved = time.step_phase(shape, at, cluster, memory.trained(config, shape), weight)
    return StagePlan(
        str(stage.name),
        stage.kind,
        shape,
        steps,
        learnt,
        {"update": update, "optimizer": moved},
        Memory({"update": static | training}, None),
        time.share_of_peak(6.0 * shape.active * learnt, update.seconds, cluster, config.dtype),
    )


def _sampled(
    stage: StageConfig,
    config: Config,
    shape: Shape,
    cluster: Cluster,
    prompts: int,
    group: int,
    cap: int,
) -> StagePlan:
    """A stage that samples once."""
    mean, prompt = _mean(config, cap), config.plan.prompt_length
    at, (weight, _) = rates_of(config, shape, cluster), memory.width_of(config, shape)
    rows = prompts * group
    engine = memory.engine_of(config, shape, cluster, length=cap, rows=rows)
    static = {"weights": weight * shape.parameters / cluster.count}
    rollout = time.rollout_phase(
        shape,
        at,
        cluster,
        engine,
        completions=rows,
        mean=mean,
        cap=cap,
        prompt=prompt,
        group=group,
        width=weight,
    )
    return StagePlan(
        str(stage.name),
        stage.kind,
        shape,
        1,
        rows * mean,
        {"rollout": rollout, "rewards": _rewards(config, rows)},
        Memory({"rollout": memory.rolling_out(engine, static)}, engine),
        0.0,
        _cache_notes(engine, cap, prompt, cluster, config),
    )


def _rewards(config: Config, completions: int) -> Phase:
    seconds = completions * config.plan.reward_seconds / config.rewards.workers
    return Phase(seconds, "rewards.workers")


def _mean(config: Config, cap: int) -> float:
    """Tokens of a completion, on average."""
    return float(min(config.plan.completion_length or cap / 2, cap))


def spread(mean: float, cap: int) -> float:
    """Tokens before one of a completion, on average over tokens: long ones have most of them."""
    tau = time.decay(mean, cap)
    if isinf(tau):
        return cap / 2
    squared = 2 * tau**2 * (1 - exp(-cap / tau) * (1 + cap / tau))
    return squared / (2 * mean)


def micro_batch(budget: int, prompt: int, length: int, group: int) -> tuple[float, float]:
    """Tokens of a micro-batch whose completions all have that length, and those that are learnt.

    As `learn/batch.py` makes them: whole groups where one fits, else a part of one.
    """
    whole = prompt + group * length
    if whole <= budget:
        groups = budget // whole
        return float(groups * (whole - group)), float(groups * group * length)
    rows = max(1, (budget - prompt) // length)
    return float(prompt + rows * (length - 1)), float(rows * length)


def _cache_notes(
    engine: Engine, cap: int, prompt: int, cluster: Cluster, config: Config
) -> tuple[str, ...]:
    if engine.rows >= 1:
        return ()
    needed = (cap + prompt) * engine.per_token / engine.devices / 2**30
    return (
        f"one completion of {cap:,} tokens needs {needed:.3g} GiB of cache on each device: raise "
        "rollout.max_memory_gib, lower rollout.max_completion_length, or let more devices share "
        "an engine",
    )
