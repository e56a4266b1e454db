"""The plan of one stage: what a step takes of memory and time, and how many steps there are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, exp, isinf

from r1train.config.sections import Config
from r1train.config.stages import StageConfig
from r1train.plan import memory, time
from r1train.plan.hardware import Cluster
from r1train.plan.memory import Engine, Memory
from r1train.plan.shapes import Shape
from r1train.plan.time import Phase, Rates

SUPERVISED, SAMPLED = ("sft", "distill"), ("rejection", "sample")
ROLLED_OUT = ("rl", "on_policy_distill")


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
    def possible(self) -> bool:
        """Whether a completion can be sampled at all; where not, no time says anything."""
        return self.memory.engine is None or self.memory.engine.rows >= 1

    @property
    def bottleneck(self) -> tuple[str, Phase]:
        """The phase that takes longest."""
        return max(self.phases.items(), key=lambda item: item[1].seconds)


def rates_of(config: Config, shape: Shape, cluster: Cluster) -> Rates:
    """What the kernels reach in the recipe's types."""
    fp8 = config.precision == "fp8" and (shape.fp8 or config.fp8_layers == "all")
    return time.rates(cluster.device, config.dtype, fp8=fp8)


def plan_stage(
    stage: StageConfig, config: Config, shape: Shape, cluster: Cluster, beside: Shape
) -> StagePlan:
    """The plan of one stage, whose options these are.

    `beside` is the shape of its teacher or of its value model, where it has one.
    """
    if stage.kind in ROLLED_OUT:
        return _rolled_out(stage, config, shape, cluster, beside)
    if stage.kind in SUPERVISED:
        return _supervised(stage, config, shape, cluster)
    if stage.kind in SAMPLED:
        prompts, each = sampled_of(stage, config)
        length = config.rollout.max_completion_length
        return _sampled(stage, config, shape, cluster, prompts, each, length)
    if stage.kind == "evaluate":
        return _sampled(stage, config, shape, cluster, *_asked(config, config.eval.k))
    if stage.kind == "reward_model":
        return _reward_model(stage, config, shape, cluster)
    if stage.kind == "process_reward":
        return _process_reward(stage, config, shape, cluster)
    return _search(stage, config, shape, cluster, beside)


def sampled_of(stage: StageConfig, config: Config) -> tuple[int, int]:
    """Problems that a stage samples, and completions of each."""
    section = getattr(config, stage.kind)
    prompts = section.num_prompts or config.task.train_size or config.plan.demonstrations
    return prompts, section.num_generations


def _asked(config: Config, each: int) -> tuple[int, int, int]:
    """Held-out problems, completions of each, and the tokens that these may have."""
    prompts = config.eval.limit or config.task.heldout_size or 256
    cap = config.eval.max_completion_length or config.rollout.max_completion_length
    return prompts, each, cap


def _rolled_out(
    stage: StageConfig, config: Config, shape: Shape, cluster: Cluster, teacher: Shape
) -> StagePlan:
    """Rollouts that are learnt from: by their rewards, or from a teacher."""
    grpo = config.grpo if stage.kind == "rl" else None
    section, supposed = grpo or config.distill, config.plan
    cap, prompt = config.rollout.max_completion_length, supposed.prompt_length
    mean = _mean(config, cap)
    completions = section.prompts_per_step * section.num_generations
    iterations = grpo.num_iterations if grpo else 1
    updates = iterations * section.num_minibatches
    every = grpo is None or grpo.beta != 0 or grpo.entropy_coef != 0
    learnt = (section.prompts_per_step * prompt + completions * mean) * (
        1.0 if every else supposed.active
    )
    at, (weight, width) = rates_of(config, shape, cluster), memory.width_of(config, shape)
    static = memory.optimizer(config, shape, cluster)
    if grpo is None:
        static["teacher"] = _weights(config, teacher, cluster)
    elif grpo.beta:
        static["reference"] = weight * memory.trained(config, shape) / cluster.count
    engine = memory.engine_of(config, shape, cluster, length=cap, rows=completions)
    resident = memory.rolling_out(engine, static)
    part = micro_batch(section.token_budget, prompt, cap, section.num_generations)
    worst = (section.prompts_per_step * prompt + completions * cap) / section.num_minibatches
    held = min(part[0], worst)
    parts = max(1.0, worst / cluster.count / held)
    phases = {"rollout": resident}
    kept = resident if engine.own else static  # others release what they have
    phases["update"] = kept | memory.training(
        config, shape, cluster, tokens=held, rows=min(part[1], held), parts=parts
    )
    if "reference" in static:
        phases["reference"] = kept | {"policy, set aside": static["reference"]}
    own = learnt / section.num_minibatches / cluster.count

    def passes(tokens: float, count: float, read: Shape = shape) -> Phase:
        return time.update_phase(
            read,
            at,
            cluster,
            tokens=tokens,
            context=prompt + spread(mean, cap),
            passes=count,
            traffic=memory.kept_by(config, read).layers,
            parts=max(1.0, own / section.token_budget),
            width=width,
            checkpointed=config.model.gradient_checkpointing,
        )

    update = passes(learnt / section.num_minibatches, 3)
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
            group=section.num_generations,
            width=weight,
        ),
        "rewards": _rewards(config, completions) if grpo else time.NOTHING,
        "old log-probs": passes(learnt * (1 - 1 / updates), 1)
        if grpo and updates > 1
        else time.NOTHING,
        "reference": passes(learnt, 1) if grpo and grpo.beta else time.NOTHING,
        "teacher": time.NOTHING if grpo else passes(learnt, 1, teacher),
        "update": update * updates,
        "optimizer": time.step_phase(shape, at, cluster, memory.trained(config, shape), weight)
        * updates,
        "weight sync": time.sync_phase(shape, cluster, engine, at, weight),
    }
    seconds = times["update"].seconds
    operations = 6.0 * shape.active * learnt * iterations
    return StagePlan(
        str(stage.name),
        stage.kind,
        shape,
        section.max_steps,
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
    steps = sft.steps(supposed.demonstrations)
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
    """A stage that samples once: `group` completions of so many prompts."""
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


def _process_reward(
    stage: StageConfig, config: Config, shape: Shape, cluster: Cluster
) -> StagePlan:
    """Solutions are sampled, then continuations of their steps, and the values of these learnt."""
    section, supposed = config.process_reward, config.plan
    prompt, cap = supposed.prompt_length, config.rollout.max_completion_length
    mean = _mean(config, cap)
    prompts = min(section.num_prompts, config.task.train_size or section.num_prompts)
    solutions = prompts * section.num_generations
    asked = prompts, section.num_generations, cap
    whole = _sampled(stage, config, shape, cluster, *asked)
    half = max(1, round(mean / 2))  # of a solution lies before a step, on average
    halved = replace(supposed, prompt_length=prompt + half, completion_length=half)
    prefixes = solutions * (supposed.solution_steps - 1)
    rest = _sampled(
        *(stage, replace(config, plan=halved), shape, cluster),
        *(prefixes, section.num_rollouts, cap),
    )
    steps = ceil(solutions * section.num_train_epochs / section.batch_size)
    learnt = section.batch_size * (prompt + mean)
    held = float(min(max(section.token_budget, prompt + cap), section.batch_size * (prompt + cap)))
    plan = _learnt(
        *(stage, config, shape, cluster, steps, learnt, held, section.batch_size, mean), head=False
    )
    sampled = {
        name: (phase + rest.phases[name]) * (1 / steps) for name, phase in whole.phases.items()
    }
    note = (
        f"{solutions:,} solutions and {prefixes * section.num_rollouts:,} continuations of their "
        "steps are sampled once; a step has its share of that time"
    )
    return replace(
        plan,
        phases={**sampled, **plan.phases},
        memory=Memory({**whole.memory.phases, **plan.memory.phases}, whole.memory.engine),
        notes=(note, *whole.notes),
    )


def _search(
    stage: StageConfig, config: Config, shape: Shape, cluster: Cluster, judge: Shape
) -> StagePlan:
    """Samples, trees of as many tokens, a greedy solution, and a value model that reads them."""
    section = config.search
    prompts, each, cap = _asked(config, section.num_generations)
    mean, prompt = _mean(config, cap), config.plan.prompt_length
    ways = ((each, 1.0), (section.width, each / section.width), (1, 1.0))
    found = [
        (_sampled(stage, config, shape, cluster, prompts, rows, cap), times) for rows, times in ways
    ]
    whole, read = found[0][0], prompts * 2 * each * (prompt + mean)
    value = time.update_phase(
        judge,
        rates_of(config, judge, cluster),
        cluster,
        tokens=read,
        context=prompt + mean / 2,
        passes=1,
        traffic=memory.kept_by(config, judge).layers,
        parts=1.0,
        width=memory.width_of(config, judge)[1],
        checkpointed=False,
    )
    sampled = {
        name: sum((one.phases[name] * times for one, times in found[1:]), phase)
        for name, phase in whole.phases.items()
    }
    kept = whole.memory.phases["rollout"] | {"value model": _weights(config, judge, cluster)}
    return replace(
        whole,
        tokens=sum(one.tokens * times for one, times in found),
        phases={**sampled, "value model": value},
        memory=Memory({"rollout": kept}, whole.memory.engine),
    )


def _weights(config: Config, shape: Shape, cluster: Cluster) -> float:
    """Bytes on each device of a model that does not learn."""
    return memory.width_of(config, shape)[0] * shape.parameters / cluster.count


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
