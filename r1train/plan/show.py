"""A plan as text of at most 80 columns, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

from r1train.plan.memory import USABLE
from r1train.plan.recipe import RecipePlan
from r1train.plan.stages import ROLLED_OUT, SAMPLED, SUPERVISED, StagePlan
from r1train.plan.time import Phase

COLUMNS = 80
GIB = 2**30


def text(plan: RecipePlan) -> str:
    """What `r1train plan` prints."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: RecipePlan) -> Iterator[str]:
    config, cluster = plan.config, plan.cluster
    shape = plan.stages[0].shape
    active = f", {_short(shape.active)} a token" if shape.experts else ""
    yield f"{config.name}: {shape.name}, {_short(shape.parameters)} weights{active}"
    yield f"on {cluster}, ${plan.price:g} an hour and device"
    for stage in plan.stages:
        yield from ("", *_stage(plan, stage))
    yield ""
    yield from _wrapped(f"total      {_total(plan)}", indent=11)
    yield from _reference(plan)
    yield from ("", *_supposed(plan))


def _total(plan: RecipePlan) -> str:
    if plan.impossible:
        return f"none: no completion has a place in {', '.join(plan.impossible)}"
    hours = f"{plan.device_hours:,.0f}" if plan.device_hours >= 100 else f"{plan.device_hours:.3g}"
    cost = f"{plan.cost:,.0f}" if plan.cost >= 10 else f"{plan.cost:.2g}"
    whole = f"{_duration(plan.seconds)}, {hours} device hours, ${cost}"
    whole += ", if all of it fitted" if plan.remedies else ""
    if plan.seeds == 1:
        return whole
    shared = ""
    if plan.config.processes > 1:
        shared = f"; the {plan.config.processes} processes share what there is"
    each = _duration(plan.seconds / plan.seeds)
    return f"{whole} for {plan.seeds} seeds, {each} for each{shared}"


def _stage(plan: RecipePlan, stage: StagePlan) -> Iterator[str]:
    engine = stage.memory.engine
    per_second = stage.tokens / (stage.seconds / stage.steps) if stage.seconds else 0.0
    name, phase = stage.bottleneck
    steps = f"{stage.steps:,} steps of" if stage.steps > 1 else "once,"
    yield f"{stage.name} ({stage.kind}): {steps} {_short(stage.tokens)} tokens"
    line = f"  time     {_duration(stage.seconds)}; {_short(per_second)} tokens/s"
    if stage.share_of_peak:
        line += f"; updates at {stage.share_of_peak:.0%} of the peak"
    whole = stage.seconds / stage.steps
    if stage.possible:
        yield line
        for one, own in stage.phases.items():
            if own.seconds:
                yield _bar(one, own, whole)
        yield from _wrapped(f"  bound by {name}: {phase.bound}", indent=11)
    at, peak = stage.memory.peak
    fits = "fits" if peak <= plan.usable else "DOES NOT FIT"
    yield from _wrapped(
        f"  memory   {_gib(peak)} of {_gib(plan.usable)} usable GiB a device, in {at}: {fits}",
        indent=11,
    )
    parts = sorted(stage.memory.phases[at].items(), key=lambda item: -item[1])
    shown = [f"{part} {_gib(size)}" for part, size in parts if size > 0.005 * peak]
    yield from _wrapped(f"           {', '.join(shown)} GiB", indent=11)
    if engine is not None:
        yield from _wrapped(f"  engine   {_engine(plan, stage)}", indent=11)
    for note in stage.notes:
        yield from _wrapped(f"  note     {note}", indent=11)
    if stage.name in plan.remedies:
        found = plan.remedies[stage.name] or ("nothing that this plan knows of",)
        yield from _wrapped(f"  fits by  {'; or '.join(found)}", indent=11)


def _engine(plan: RecipePlan, stage: StagePlan) -> str:
    engine = stage.memory.engine
    assert engine is not None
    rows = f"{engine.rows:,.0f} completions at a time, {_gib(engine.per_token * 1024)} GiB of cache"
    if engine.own:
        return f"r1train's own, {rows} for 1,024 tokens"
    latent = "the latent" if engine.latent else "keys and values"
    line = (
        f"one that shards its weights over {engine.devices} devices and pages {latent}; {rows} for "
        f"1,024 tokens"
    )
    if engine.latent:
        own = stage.shape.kept / stage.shape.kept_latent
        line += f" (r1train's own keeps keys and values, {own:.0f} times as much)"
    return line


def _bar(name: str, phase: Phase, whole: float) -> str:
    share = phase.seconds / whole
    return f"    {name:<14} {_seconds(phase.seconds):>9} {share:>5.0%}  {'█' * round(24 * share)}"


def _reference(plan: RecipePlan) -> Iterator[str]:
    reference = plan.config.reference
    if reference.source is None:
        return
    yield f"reported   {reference.source}"
    if reference.device_hours is not None:
        hours = f"{reference.device_hours:,.0f} {reference.device or ''} hours"
        same = reference.device == plan.cluster.device.name
        ratio = plan.device_hours / reference.device_hours
        beside = f"; planned ÷ reported {ratio:.2f}" if same else "; planned on other devices"
        beside = "" if plan.impossible else beside
        cost = f", ${reference.cost:,.0f}" if reference.cost else ""
        yield from _wrapped(f"           {hours}{cost}{beside}", indent=11)
    if reference.figures:
        figures = [f"{name} {value:g}" for name, value in reference.figures.items()]
        yield from _wrapped(f"  to reach {', '.join(figures)}", indent=11)


def _supposed(plan: RecipePlan) -> Iterator[str]:
    """What the figures rest on."""
    device = plan.cluster.device
    stages = {stage.kind for stage in plan.stages}
    own = [plan.config.of(stage) for stage in plan.config.stages]
    lengths = sorted(
        {c.plan.completion_length or c.rollout.max_completion_length // 2 for c in own}
    )
    said = []
    if stages & {*ROLLED_OUT, *SAMPLED, "evaluate", "process_reward", "search"}:
        numbers = " and ".join(f"{length:,}" for length in lengths)
        said.append(
            f"completions of {numbers} tokens on average, lengths distributed exponentially and "
            "cut at the cap"
        )
    if stages & {*SUPERVISED, "reward_model"}:
        taught = sorted({one.plan.demonstration_length or 0 for one in own} - {0})
        numbers = " and ".join(f"{length:,}" for length in taught or lengths)
        said.append(f"demonstrations of {numbers} tokens")
    if "process_reward" in stages:
        said.append(f"{plan.config.plan.solution_steps} steps of a solution")
    yield from _wrapped(f"Supposed ([plan]): {'; '.join([*said, 'one phase after another'])}.")
    yield from _wrapped(
        f"Of a device's {device.memory_gib:.3g} GiB {USABLE:.0%} can be used: the rest is the "
        "driver's, and lost between the allocator's blocks."
    )
    if plan.rates.unrecorded:
        missing = ", ".join(what.replace("_", " in ") for what in plan.rates.unrecorded)
        yield from _wrapped(
            f"No record on {device.title} of: {missing}. There the share of the peak that an H100 "
            "reached is taken, and 45 % for attention."
        )
    if plan.cluster.count > 1:
        yield from _wrapped(
            "`r1train run` drives one device. For several this supposes FSDP2 (experts by expert "
            "parallelism), as Learner allows, and an engine behind r1train's interface."
        )


def as_dict(plan: RecipePlan) -> dict[str, Any]:
    """The same for machines: seconds, bytes on each device, dollars."""
    reference = plan.config.reference
    return {
        "recipe": plan.config.name,
        "cluster": {"device": plan.cluster.device.name, "count": plan.cluster.count},
        "seeds": plan.seeds,
        "seconds": None if plan.impossible else plan.seconds,
        "device_hours": None if plan.impossible else plan.device_hours,
        "dollars": None if plan.impossible else plan.cost,
        "usable_bytes": plan.usable,
        "unrecorded": list(plan.rates.unrecorded),
        "reference": {
            "source": reference.source,
            "device": reference.device,
            "device_hours": reference.device_hours,
            "dollars": reference.cost,
            "figures": reference.figures,
        },
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                "model": stage.shape.name,
                "parameters": stage.shape.parameters,
                "active_parameters": stage.shape.active,
                "steps": stage.steps,
                "tokens_per_step": stage.tokens,
                "seconds": stage.seconds if stage.possible else None,
                "share_of_peak": stage.share_of_peak,
                "phases": {
                    name: {"seconds": phase.seconds, "bound": phase.bound}
                    for name, phase in stage.phases.items()
                    if stage.possible
                },
                "memory": stage.memory.phases,
                "fits": stage.memory.peak[1] <= plan.usable,
                "remedies": list(plan.remedies.get(stage.name, ())),
            }
            for stage in plan.stages
        ],
    }


def _wrapped(text: str, indent: int = 0) -> Iterable[str]:
    lead = text[: len(text) - len(text.lstrip())]
    return wrap(text.lstrip(), COLUMNS, initial_indent=lead, subsequent_indent=" " * indent)


def _gib(size: float) -> str:
    value = size / GIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else "0"


def _short(count: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.3g} s"
