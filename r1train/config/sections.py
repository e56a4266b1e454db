"""Every option of a run: frozen dataclasses, which `r1train.config.recipe` fills from a recipe.

GRPO options carry the names TRL gives them. "R1" in a docstring is DeepSeek-R1 (arXiv 2501.12948).
An optional field is None by default, so that leaving it out of a written TOML file loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from r1train.config.schema import (
    ConfigError,
    Count,
    CountOrZero,
    Decay,
    NonNegative,
    Positive,
    Seconds,
    Section,
    Seed,
    Share,
    Size,
    Workers,
    build,
    nearest,
    shown,
)
from r1train.verify import AnswerType

if TYPE_CHECKING:
    from r1kernels import PolicyLossOptions

MAX_COMPLETIONS = 1 << 20  # of a rollout, which is kept in memory
Schedule = Literal["constant", "linear", "cosine"]
OnBadRow = Literal["error", "skip"]
# Those of r1kernels.policy.losses whose update does not depend on how a batch is split.
LossType = Literal[
    "grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo", "gmpo", "cispo", "cispo_clip", "sapo",
    "vespo", "dppo_tv", "dppo_kl", "reinforce",
]  # fmt: skip


@dataclass(frozen=True)
class ModelConfig(Section, section="model"):
    """Where the model and its tokenizer come from: `path` or `preset`."""

    preset: str | None = None
    """Name of a built-in model, such as "deepseek-v3-mini" (made from the seed) or "smollm2"."""
    path: str | None = None
    """Folder of a HuggingFace checkpoint (config, safetensors, tokenizer)."""
    gguf_file: str | None = None
    """GGUF file inside `path`, for checkpoints that come in that format."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of each layer for the backward pass and compute the rest again: less
    memory, about a third more work."""
    lora_rank: CountOrZero = 0
    """Rank of low-rank adapters, trained in place of the weights (TRL's lora_r); 0: none."""
    lora_alpha: Positive = 32.0
    """Their products are scaled by lora_alpha / lora_rank (TRL: 32)."""
    lora_target_modules: tuple[str, ...] = ()
    """Names of the linear layers that have one, such as "q_proj"; empty: all but the head, and in a
    mixture of experts those of the attention."""

    def check(self) -> None:
        both = self.preset is not None and self.path is not None
        self.require(not both, "preset", "not both preset and path; the value none clears one")
        homeless = self.gguf_file is not None and self.path is None
        self.require(not homeless, "gguf_file", "names a file inside model.path: give that too")
        idle = bool(self.lora_target_modules) and self.lora_rank == 0
        self.require(not idle, "lora_target_modules", "means nothing without model.lora_rank")


@dataclass(frozen=True)
class DatasetConfig(Section, section="task.datasets"):
    """One source of problems: a reasoning-gym dataset (`name`), or a file or folder (`path`)."""

    name: str | None = None
    """reasoning-gym dataset, such as "chain_sum"; it brings its own verifier."""
    path: str | None = None
    """JSONL, Parquet or Arrow file, folder of such files or of `datasets`, or a pattern with *;
    its answers are verified by `r1train.verify`. Rows are read when they are drawn."""
    heldout_path: str | None = None
    """The held-out problems of `path`; unset: a random part of `path` is held out."""
    jsonl: str | None = None
    """Older name of `path`."""
    heldout_jsonl: str | None = None
    """Older name of `heldout_path`."""
    prompt_field: str | None = None
    """Key of the question, text or chat messages, such as "problem"; a path has dots, such as
    "extra.question" (unset: "prompt" or "question")."""
    answer_field: str | None = None
    """Key of the reference answer, such as "reward_model.ground_truth" (unset: "answer"); "" where
    there are none, to which "accuracy" does not apply."""
    answer_type: AnswerType = "auto"
    """How answers are compared on rows that give no "answer_type" of their own."""
    system_prompt: str | None = None
    """System message of this source's prompts (unset: task.system_prompt)."""
    on_bad_row: OnBadRow = "error"
    """What a row does that cannot be used, or whose prompt is too long for the model: "error" ends
    the run before it starts, naming all of them; "skip" leaves them out with a warning."""
    weight: Positive | None = None
    """Share of the problems that comes from this source, relative to the other weights (unset: 1;
    if train_size is unset too, files have a share by their size)."""
    params: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the reasoning-gym dataset's configuration (not size, not seed)."""

    def check(self) -> None:
        for older, name in (("jsonl", "path"), ("heldout_jsonl", "heldout_path")):
            both = getattr(self, older) is not None and getattr(self, name) is not None
            self.require(not both, older, f"is an older name of {name}: give only that")
            if getattr(self, older) is not None:
                object.__setattr__(self, name, getattr(self, older))
                object.__setattr__(self, older, None)
        one = (self.name is None) != (self.path is None)
        self.require(one, "name", "give exactly one of name and path")
        self.require(self.path is None or not self.params, "params", "a file takes none")
        unset = {"answer_type": "auto", "on_bad_row": "error"}
        for name in ("heldout_path", "prompt_field", "answer_field", *unset):
            given = getattr(self, name) != unset.get(name)
            self.require(not given or self.path is not None, name, "is for a file: give path")
        reserved = {"size", "seed"} & self.params.keys()
        self.require(not reserved, "params", "size and seed follow from task.train_size and seed")


@dataclass(frozen=True)
class TaskConfig(Section, section="task"):
    """Which problems are trained on and which are held out; the two never share a question."""

    datasets: tuple[DatasetConfig, ...] = (DatasetConfig(name="chain_sum"),)
    """Sources of problems, mixed by weight."""
    train_size: Size | None = None
    """Number of distinct training problems (unset: 4096, and of files all that is not held out)."""
    heldout_size: Size | None = None
    """Number of distinct held-out problems (unset: 256, but of a file at most a fifth, and all of
    a held-out file)."""
    prompt_template: str = "r1-zero"
    """"r1-zero" (R1, table 1), "plain", "chat" (the tokenizer's own), or text with {question}."""
    system_prompt: str | None = None
    """System message of "chat" prompts that bring none (unset: R1-Zero's instruction; "": none)."""

    def check(self) -> None:
        self.require(bool(self.datasets), "datasets", "give at least one dataset")
        given = [self.system_prompt, *(dataset.system_prompt for dataset in self.datasets)]
        unused = self.prompt_template != "chat" and given != [None] * len(given)
        reason = 'takes no system_prompt, but for "chat": it has an instruction of its own'
        self.require(not unused, "prompt_template", reason)
        known = ("r1-zero", "plain", "chat")
        valid = self.prompt_template in known or "{question}" in self.prompt_template
        accepted = f"expected one of {', '.join(known)}, or text that contains {{question}}"
        self.require(valid, "prompt_template", accepted)


@dataclass(frozen=True)
class RewardConfig(Section, section="rewards"):
    """Reward functions and the processes they run in."""

    functions: tuple[str, ...] = ("accuracy", "format")
    """Built-in rewards (R1 uses these two for R1-Zero), and functions of your own with TRL's
    signature, as "file.py:name" or "package.module:name"."""
    weights: tuple[NonNegative, ...] | None = None
    """Weight of each function in the sum (unset: 1; TRL's reward_weights; R1 weighs both alike)."""
    timeout: Seconds = 5.0
    """Seconds that a verifier may take for one answer, and a function of your own for a batch,
    before its process is killed and the time-out counted."""
    workers: Workers = 1
    """Number of verifier processes, and of processes for each function of your own."""

    def check(self) -> None:
        self.require(bool(self.functions), "functions", "give at least one reward function")
        unique = len(set(self.functions)) == len(self.functions)
        self.require(unique, "functions", "each function at most once")
        paired = self.weights is None or len(self.weights) == len(self.functions)
        self.require(paired, "weights", f"expected {len(self.functions)}, one for each function")


@dataclass(frozen=True)
class RolloutConfig(Section, section="rollout"):
    """Sampling of the completions that are trained on."""

    temperature: Positive = 1.0
    """Sampling temperature; the learner divides its logits by the same one (R1: 1)."""
    top_p: Share = 1.0
    """Must stay 1 in training."""
    max_completion_length: Count = 256
    """Tokens after which a completion is cut off (R1: 32,768, then 65,536)."""
    stop: tuple[str, ...] = ()
    """Strings after which a completion ends, beside the model's stop tokens (vLLM's stop; it keeps
    them); evaluation has the same."""
    batch_size: Count = 256
    """Completions decoded at the same time, at most."""
    max_memory_gib: Positive | None = None
    """What decoding may take beside the weights, by which batches become smaller (unset: a quarter
    of the device's memory, or the container's)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of a copy of the weights that rollouts are sampled from (unset: the trainer's own
    weights, and no copy)."""

    def check(self) -> None:
        empty = "an empty string would end every completion"
        self.require(all(self.stop), "stop", empty)
        reason = (
            "training needs top_p = 1: with less, completions come from another distribution than "
            "the one the policy gradient is taken of (evaluation has eval.top_p)"
        )
        self.require(self.top_p == 1.0, "top_p", reason)


@dataclass(frozen=True)
class DemonstrationsConfig(Section, section="sft.datasets"):
    """One source of demonstrations: prompts with completions, or conversations."""

    path: str
    """JSONL, Parquet or Arrow file, folder of such files or of `datasets`, or a pattern with *."""
    prompt_field: str | None = None
    """Key of the prompt, text or chat messages (unset: "prompt" or "question")."""
    completion_field: str | None = None
    """Key of what is to be said, text or one message of the assistant (unset: "completion")."""
    messages_field: str = "messages"
    """Key of a conversation; a row that has it needs no prompt and no completion."""
    learned_turns: Literal["last", "all"] = "last"
    """Which of the assistant's messages of a conversation the loss is of: the last, which must end
    it, or all of them (TRL's assistant_only_loss). Prompts have no loss."""
    system_prompt: str | None = None
    """System message of this source's "chat" prompts (unset: task.system_prompt)."""
    on_bad_row: OnBadRow = "error"
    """What a row does that cannot be used, or has more tokens than the model positions: "error"
    ends the run before it starts, naming them all; "skip" leaves them out with a warning."""
    weight: Positive | None = None
    """Share of the demonstrations, relative to the other weights (unset: 1; if none is given, all
    files are used whole)."""


@dataclass(frozen=True)
class SFTConfig(Section, section="sft"):
    """Supervised phase before RL: a cold start, or what stands in for pre-training."""

    datasets: tuple[DemonstrationsConfig, ...] = ()
    """Demonstrations to learn from (unset: worked solutions of task.datasets, by rule)."""
    max_steps: Count = 200
    """Optimizer steps."""
    batch_size: Count = 128
    """Examples a step (R1: 128)."""
    learning_rate: Positive = 5e-5
    """Peak learning rate (R1: 5e-5)."""
    lr_scheduler_type: Schedule = "cosine"
    """Shape of the learning rate after warm-up."""
    min_lr_rate: Share = 0.1
    """Where "linear" and "cosine" end, as a share of the peak (R1: 0.1)."""
    warmup_ratio: Share = 0.05
    """Share of the steps over which the rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled decay."""
    adam_beta1: Decay = 0.9
    """Decay of the first moment."""
    adam_beta2: Decay = 0.95
    """Decay of the second moment."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this 2-norm."""
    expert_bias_update_rate: NonNegative = 1e-3
    """What is added to or taken from each router bias an update, to even out the experts' load
    (DeepSeek-V3: 1e-3); routers without a bias, and dense models, have nothing to update."""
    token_budget: Count = 16384
    """Tokens of a micro-batch: each prompt once, its completions, no padding."""
    save_steps: CountOrZero | None = None
    """Steps between checkpoints that a run can be resumed from; 0: none (unset: as many as two
    minutes take)."""
    teacher_accuracy: Share = 1.0
    """Share of worked solutions whose answer is right; below 1 leaves RL something to improve."""
    teacher_format: Share = 1.0
    """Share of worked solutions with the right tags."""


@dataclass(frozen=True)
class GRPOConfig(Section, section="grpo"):
    """Group relative policy optimization (arXiv 2402.03300)."""

    max_steps: Count = 100
    """Rollout-and-update steps."""
    prompts_per_step: Count = 32
    """Distinct prompts in a rollout (R1: 32)."""
    num_generations: Count = 16
    """Completions of each prompt: the group (R1: 16)."""
    max_extra_rollouts: CountOrZero = 0
    """Rollouts that a step may add to replace groups whose rewards are all the same, by prompts
    that it has not drawn, while there are any (DAPO's dynamic sampling; verl's max_num_gen_batches
    less 1); 0: none."""
    num_iterations: Count = 1
    """Passes over each rollout, TRL's mu (R1: 1)."""
    num_minibatches: Count = 1
    """Optimizer steps a rollout is split into in each pass (TRL's steps_per_generation)."""
    learning_rate: Positive = 3e-6
    """Peak learning rate (R1: 3e-6)."""
    lr_scheduler_type: Schedule = "cosine"
    """Shape of the learning rate after warm-up."""
    min_lr_rate: Share = 0.0
    """Where "linear" and "cosine" end, as a share of the peak."""
    warmup_steps: CountOrZero = 0
    """Steps over which the rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled decay."""
    adam_beta1: Decay = 0.9
    """Decay of the first moment."""
    adam_beta2: Decay = 0.999
    """Decay of the second moment."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this 2-norm."""
    expert_bias_update_rate: NonNegative = 1e-3
    """What is added to or taken from each router bias an update, to even out the experts' load
    (DeepSeek-V3: 1e-3); routers without a bias, and dense models, have nothing to update."""
    routing_replay: bool = True
    """Train the experts that the rollout's tokens went to, not those that the trainer would choose
    (rollout routing replay, R3, arXiv 2510.11370; verl's router_replay)."""
    loss_type: LossType = "grpo"
    """Form of the policy loss and its normalisation."""
    importance_sampling_level: Literal["token", "sequence", "sequence_token"] | None = None
    """Whose ratio: the token's or the completion's; unset: what the loss type is made for."""
    epsilon: Positive | None = None
    """Clip range below 1, and above it unless epsilon_high is given (unset: 0.2; R1's second
    stage: 10)."""
    epsilon_high: Positive | None = None
    """Clip range above 1 (DAPO: 0.28)."""
    delta: Positive | None = None
    """Upper bound of the ratio where the advantage is negative (two-sided clipping)."""
    beta: NonNegative = 0.001
    """Coefficient of the KL divergence from the reference; 0 keeps no reference (R1: 0.001)."""
    kl_estimator: Literal["k1", "abs", "k2", "k3", "low_var", "k3+"] = "k3"
    """Schulman's estimator of the KL divergence (R1: k3)."""
    ref_model_sync_steps: CountOrZero = 400
    """Steps after which the reference becomes the current policy; 0: never (R1: 400)."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What a group's centred rewards are divided by (R1: the group's standard deviation)."""
    baseline: Literal["mean", "rloo", "opo"] = "mean"
    """The group's mean, the mean of the other completions, or the mean weighted by length."""
    token_budget: Count = 16384
    """Tokens of a micro-batch: each prompt once, its completions, no padding. Groups stay whole."""
    eval_steps: CountOrZero = 0
    """Steps between held-out evaluations; 0: only before and after."""
    save_steps: CountOrZero | None = None
    """Steps between checkpoints that a run can be resumed from; 0: none (unset: as many as two
    minutes take)."""
    log_completions_steps: CountOrZero = 0
    """Steps between printed tables of completions; 0: none."""

    def check(self) -> None:
        group = "a group needs at least 2 completions: its advantages are relative to its mean"
        self.require(self.num_generations >= 2, "num_generations", group)
        rollout = self.prompts_per_step * self.num_generations
        split = f"a rollout has {rollout} completions, fewer than the minibatches asked for"
        self.require(self.num_minibatches <= rollout, "num_minibatches", split)
        large = f"a rollout would have {rollout} completions, more than {MAX_COMPLETIONS}"
        self.require(rollout <= MAX_COMPLETIONS, "prompts_per_step", large)
        optional = self.importance_sampling_level, self.epsilon, self.epsilon_high, self.delta
        if self.loss_type != "grpo" or optional != (None,) * len(optional):
            self._check_loss()  # slow to load; the defaults go together

    def loss_options(self, max_completion_length: int) -> PolicyLossOptions:
        """What the loss is told, of completions of that many tokens at most."""
        from r1kernels import PolicyLossOptions

        return PolicyLossOptions(
            # bnpo is the mean over the tokens it is given: here those of the whole update.
            loss_type="dapo" if self.loss_type == "bnpo" else self.loss_type,
            importance_sampling_level=self.importance_sampling_level,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            delta=self.delta,
            beta=self.beta,
            kl_estimator=self.kl_estimator,
            entropy_coef=self.entropy_coef,
            max_completion_length=max_completion_length,
        )

    def _check_loss(self) -> None:
        """Which options a loss has, and which it needs, is known where it is."""
        try:
            self.loss_options(max_completion_length=1)
        except ValueError as error:
            _, name, reason = str(error).split(": ", 2)
            self.require(False, name, reason)


@dataclass(frozen=True)
class EvalConfig(Section, section="eval"):
    """Held-out evaluation (R1: temperature 0.6, top-p 0.95, k from 4 to 64)."""

    k: Count = 4
    """Completions of each problem: pass@1 is their mean, cons@k their majority."""
    temperature: NonNegative = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: Share = 0.95
    """Probability mass that is sampled from."""
    top_k: CountOrZero = 0
    """How many of the most probable tokens are sampled from; 0: all."""
    min_p: Share = 0.0
    """Least probability of a token, as a share of the most probable one's; 0: any."""
    max_completion_length: Count | None = None
    """Tokens after which a completion is cut off (unset: as in training)."""
    limit: Count | None = None
    """How many held-out problems are used (unset: all)."""
    confidence: Share = 0.95
    """Level of the confidence intervals."""

    def check(self) -> None:
        self.require(0 < self.confidence < 1, "confidence", "expected a value > 0 and < 1")
        self.require(self.top_p > 0, "top_p", "expected a value > 0")


OWN_SECTIONS = ("task", "rewards", "rollout", "sft", "grpo", "eval")
"""Sections that a stage can have of its own."""
KINDS = {"grpo": "rl"}
"""Older names of kinds of stages."""


@dataclass(frozen=True)
class StageConfig(Section, section="stages"):
    """One stage of a recipe. What it sets in sections of its own, as in [stages.grpo], overrides
    those of the recipe, key by key; the same kind may come many times."""

    kind: str
    """What it does: "sft", "rl" or "evaluate"; those of `r1train.stages`."""
    name: str | None = None
    """Its name in the log and of its folder (unset: the kind, and a number from the second on)."""
    init: str | None = None
    """Where its model comes from: the name of a stage before it, the path of a HuggingFace folder,
    or "preset:" and a name (unset: the stage before it, and for the first the section [model])."""
    seed: Seed | None = None
    """Its random draws follow from it (unset: from the run's seed and the stage's name)."""
    evaluate: bool | None = None
    """Whether held-out problems are evaluated before and after it (unset: of the last stage)."""
    sections: dict[str, Any] = field(default_factory=dict)
    """In Python, its own sections by name: {"grpo": {"learning_rate": 1e-6}}."""

    @classmethod
    def coerce(cls, value: Any, key: str) -> StageConfig:
        """From the table that a file has, whose own sections stand beside its keys; or a kind."""
        if isinstance(value, str):
            value = {"kind": KINDS.get(value, value), "name": value}
        if not isinstance(value, Mapping) or "kind" not in value:
            raise ConfigError(f"{key} = {shown(value)}: expected a table with a kind, or a kind")
        own = {f.name for f in fields(cls)}
        sections = dict(value.get("sections", {}))
        for name in value:
            if name in OWN_SECTIONS:
                sections[name] = value[name]
            elif name not in own:
                raise ConfigError(f"unknown key '{name}' in {key}: {nearest(name, own)}")
        values = {name: value[name] for name in value if name in own}
        return cls(**{**values, "sections": sections})

    def check(self) -> None:
        object.__setattr__(self, "kind", KINDS.get(self.kind, self.kind))
        for name, values in self.sections.items():
            self.require(name in OWN_SECTIONS, "sections", nearest(name, OWN_SECTIONS))
            self.require(isinstance(values, Mapping), "sections", f"expected a table as {name}")
        if self.name is not None:
            self.require(names_a_folder(self.name), "name", FOLDER_RULE)
            taken = self.name.startswith(("checkpoint", ".", "tensorboard")) or "." in self.name
            self.require(not taken, "name", "a file of the run folder may have that name")


FOLDER_RULE = "it names a folder: expected 1 to 200 printable characters, no slash, not only dots"


def names_a_folder(name: str) -> bool:
    plain = name.isprintable() and not {"/", "\\"} & {*name}
    return plain and name.strip(". ") != "" and len(name.encode()) <= 200


@dataclass(frozen=True)
class Config(Section):
    """A whole run."""

    name: str = "run"
    """Name of the run and of its folder."""
    seed: Seed = 0
    """Every random draw of the run follows from it."""
    output_dir: str = "runs"
    """Folder that run folders are made in."""
    device: str = "auto"
    """"auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1"."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations. Of bfloat16 weights the optimizer steps float32 copies, or
    most updates would be rounded away."""
    precision: Literal["dtype", "fp8"] = "dtype"
    """Of the products of linear layers and experts: that of `dtype`, or FP8 with block scales.

    A `model.path` whose weights are FP8, as DeepSeek-V3's own, needs "fp8"; they stay FP8, in the
    rollout and in the checkpoint, and the optimizer keeps a float32 copy.
    """
    fp8_layers: str = "auto"
    """Which layers `precision = "fp8"` takes: "auto", those of which a record of this processor
    says that they train faster than in `dtype`; "all"; or patterns of names, by commas, such as
    "model.layers.*.mlp.*".
    """
    elementwise: bool = False
    """Whether norms, rotary positions, gates and residual adds run as fused ops.

    Results are the same, but where a row's sum of squares is added up in another order.
    """
    threads: Workers | None = None
    """PyTorch's CPU threads (unset: its default)."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers that the figures of metrics.jsonl go to as well; their packages must be installed
    (TRL's report_to)."""
    keep_checkpoints: CountOrZero = 2
    """How many of a stage's checkpoints to resume from are kept, the newest; 0: all."""
    stages: tuple[StageConfig, ...] = (
        StageConfig("sft", name="sft"),
        StageConfig("rl", name="grpo"),
    )
    """What `r1train run` does, in order: tables [[stages]], or a list of kinds."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rewards: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    sft: SFTConfig = SFTConfig()
    grpo: GRPOConfig = GRPOConfig()
    eval: EvalConfig = EvalConfig()

    def check(self) -> None:
        self.require(bool(self.stages), "stages", "give at least one of sft, grpo")
        self.require(names_a_folder(self.name), "name", FOLDER_RULE)
        prompted = any(dataset.system_prompt is not None for dataset in self.sft.datasets)
        reason = 'a system_prompt needs task.prompt_template = "chat"'
        chat = self.task.prompt_template == "chat"
        self.sft.require(chat or not prompted, "datasets", reason)
        unanswered = all(dataset.answer_field == "" for dataset in self.task.datasets)
        accurate = unanswered and "accuracy" in self.rewards.functions
        reason = 'accuracy compares with an answer, and no dataset has any (answer_field = "")'
        self.rewards.require(not accurate, "functions", reason)
        layers = all(self.patterns())
        self.require(layers, "fp8_layers", "expected auto, all, or patterns of names by commas")
        chosen = self.precision == "fp8" or self.fp8_layers == "auto"
        self.require(chosen, "fp8_layers", "means nothing without precision = 'fp8'")
        known = re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device) is not None
        self.require(known, "device", "expected auto, cpu, cuda, or a number such as cuda:1")
        if self.eval.max_completion_length is None:
            length = self.rollout.max_completion_length
            object.__setattr__(self, "eval", replace(self.eval, max_completion_length=length))
        object.__setattr__(self, "stages", self._named_stages())
        for stage in self.stages:
            if stage.sections:
                self.of(stage)  # which says what is wrong with them

    def _named_stages(self) -> tuple[StageConfig, ...]:
        """The stages, each with a name of its own."""
        given = [stage.name for stage in self.stages if stage.name is not None]
        named: list[StageConfig] = []
        for stage in self.stages:
            names = [other.name for other in named]
            name = stage.name or stage.kind
            bare = not (stage.sections or stage.init or stage.seed is not None)
            if stage.name in names and not bare:
                raise ConfigError(f"stages: two are named {shown(name)}: give each its own name")
            number = 1
            while name in names or (name != stage.name and name in given):
                number += 1
                name = f"{stage.name or stage.kind}-{number}"
            named.append(replace(stage, name=name))
        return tuple(named)

    def of(self, stage: StageConfig) -> Config:
        """The options of one stage: those of the run, with its own sections laid over them."""
        own = {**stage.sections}
        if self.eval.max_completion_length == self.rollout.max_completion_length:
            own["eval"] = {"max_completion_length": None, **own.get("eval", {})}
        try:
            sections = {
                name: build(type(getattr(self, name)), {**asdict(getattr(self, name)), **values})
                for name, values in own.items()
            }
        except ConfigError as error:
            raise ConfigError(f"stage {shown(stage.name)}: {error}") from None
        return replace(self, stages=(replace(stage, sections={}),), **sections)

    def patterns(self) -> tuple[str, ...]:
        """`fp8_layers` as what it names, without the spaces around."""
        return tuple(part.strip() for part in self.fp8_layers.split(","))
