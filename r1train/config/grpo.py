"""Group relative policy optimization: names are TRL's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from r1train.config.schema import Count, CountOrZero, NonNegative, Positive
from r1train.config.training import TrainingConfig

if TYPE_CHECKING:
    from r1kernels import PolicyLossOptions

MAX_COMPLETIONS = 1 << 20  # of a rollout, which is kept in memory
# Those of r1kernels.policy.losses whose update does not depend on how a batch is split.
LossType = Literal[
    "grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo", "gmpo", "cispo", "cispo_clip", "sapo",
    "vespo", "dppo_tv", "dppo_kl", "reinforce",
]  # fmt: skip


@dataclass(frozen=True)
class GRPOConfig(TrainingConfig, section="grpo"):
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
    warmup_steps: CountOrZero = 0
    """Steps over which the rate rises from 0."""
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
    """Weight of the entropy bonus; where there is a target_entropy, the one to begin with."""
    target_entropy: Positive | None = None
    """Entropy of a token, in nats, that the bonus keeps up: its weight rises while the policy has
    less and falls while it has more, which it then does not act on (Skywork-OR1: 0.2)."""
    entropy_coef_step: Positive = 1e-4
    """What the weight rises or falls by in an update, with a target_entropy (Skywork-OR1: 1e-4)."""
    max_entropy_coef: Positive = 5e-3
    """The weight at most, with a target_entropy (Skywork-OR1: 5e-3)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What a group's centred rewards are divided by (R1: the group's standard deviation)."""
    baseline: Literal["mean", "rloo", "opo"] = "mean"
    """The group's mean, the mean of the other completions, or the mean weighted by length."""
    eval_steps: CountOrZero = 0
    """Steps between held-out evaluations; 0: only before and after."""
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
        within = self.target_entropy is None or self.entropy_coef <= self.max_entropy_coef
        self.require(within, "entropy_coef", f"max_entropy_coef is {self.max_entropy_coef:g}")
        optional = self.importance_sampling_level, self.epsilon, self.epsilon_high, self.delta
        if self.loss_type != "grpo" or optional != (None,) * len(optional):
            self._check_loss()  # slow to load; the defaults go together

    def loss_options(self, max_completion_length: int) -> PolicyLossOptions:
        """What the loss is told, of completions of that many tokens at most: the options here that
        it has by the same names."""
        from r1kernels import PolicyLossOptions

        known = {option.name for option in fields(PolicyLossOptions)}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name in known}
        if self.loss_type == "bnpo":
            own["loss_type"] = "dapo"  # the mean over the tokens given: here the whole update's
        return PolicyLossOptions(**own, max_completion_length=max_completion_length)

    def _check_loss(self) -> None:
        """Which options a loss has, and which it needs, is known where it is."""
        try:
            self.loss_options(max_completion_length=1)
        except ValueError as error:
            _, name, reason = str(error).split(": ", 2)
            self.require(False, name, reason)
