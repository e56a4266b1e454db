"""``LigerFusedLinearGRPOLoss`` on ``fused_linear_grpo_loss``."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1kernels.core import check
from r1kernels.head.fused_linear_loss import through_head
from r1kernels.head.linear_logprob import linear_logprob
from r1kernels.nn.options import options_of
from r1kernels.policy.losses import LOSSES
from r1kernels.policy.policy_loss import policy_loss
from r1kernels.policy.policy_loss_options import LossOptions

NAME = "FusedLinearGRPOLoss"
LEVELS = ("token", "sequence")
BY_TOKEN = ("cispo", "sapo", "vespo")  # what Liger has by the token only
LEAST, MOST = math.log(1e-8), 20.0  # of the logarithm of a weight in VESPO's sum
# The difference of old and sampled log-probabilities as it is.
CORRECTED: LossOptions = {"rollout_correction": "token_truncate", "rollout_clip_max": math.inf}


class FusedLinearGRPOLoss(nn.Module):
    """Policy loss of a linear head, callable as ``LigerFusedLinearGRPOLoss`` is.

    Args:
        compiled, chunk_size: accepted, since in Liger too they decide how the result is computed
            and not what it is.
        use_ref_model: whether ``forward`` is given a reference. Without one the KL term is zero.
        epsilon_low: ``epsilon`` of ``policy_loss``.
        beta, epsilon_high, loss_type, max_completion_length, importance_sampling_level,
        temperature, delta: see ``policy_loss`` and ``linear_logprob``.
        sapo_temperature_pos, sapo_temperature_neg, use_bias_correction_kl, vespo_k_pos,
        vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg: as in Liger.

    Where the numbers differ from Liger's:

    - differences of log-probabilities are bounded to ±20, so that no ratio overflows;
    - "luspo" leaves padding out and sums the KL term over a sequence's tokens, as TRL does; Liger's
      agrees where no token is masked, or without a KL term at the level of the sequence;
    - the clip metric counts capped tokens of both signs of the advantage for "cispo", Liger's those
      of positive ones; with ``delta`` it counts the tokens that delta cuts off too.

    As in Liger, "cispo", "sapo" and "vespo" at importance_sampling_level="sequence" raise a
    ValueError when called (``policy_loss`` has both for the first two).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: str = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: str = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.use_ref_model = use_ref_model
        self.temperature = temperature
        self.loss_type = loss_type
        self.importance_sampling_level = importance_sampling_level
        check.choice(NAME, "importance_sampling_level", importance_sampling_level, LEVELS)
        self.options = options_of(
            NAME,
            loss_type,
            "token" if loss_type in BY_TOKEN else importance_sampling_level,
            epsilon=epsilon_low,
            epsilon_high=epsilon_high,
            delta=delta,
            sapo_temperature_pos=sapo_temperature_pos,
            sapo_temperature_neg=sapo_temperature_neg,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
            beta=beta,
            use_bias_correction_kl=bool(use_bias_correction_kl),
            max_completion_length=max_completion_length,
        )

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: float | Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss, and detached metrics: the mean KL (where ``beta`` is not 0), the clip fraction.

        Args:
            _input: [B, T, H], the hidden state that predicts each token.
            lin_weight, bias: [V, H] and [V]; taken in the dtype of ``_input``.
            selected_token_ids: [B, T] int64 or int32; anything where the mask is 0.
            attention_mask: [B, T], 1 (or True) where a token counts, else 0.
            advantages: [B].
            ref_per_token_logps, old_per_token_logps: [B, T].
            ref_input, ref_weight, ref_bias: to compute ``ref_per_token_logps`` from instead.
            vllm_is_ratio: [B, T], [B, 1] or [B], not negative: multiplies the policy term; for
                "vespo" its logarithms (of all T tokens) are added to those of the sequence's ratio.
            num_items_in_batch: tokens of the whole step over all processes, for "dapo" and
                "cispo" (default: those of this call over all processes).
        """
        if self.importance_sampling_level == "sequence" and self.loss_type in BY_TOKEN:
            raise ValueError(
                f"{NAME}: importance_sampling_level: Sequence-level importance sampling is not "
                f"supported for loss_type={self.loss_type!r}; expected 'token'"
            )
        shapes = check.Shapes(NAME)
        shapes("_input", _input, "B T H", check.FLOATS)
        shapes("selected_token_ids", selected_token_ids, "B T", check.INTS)
        shapes("attention_mask", attention_mask, "B T", (*check.FLOATS, *check.INTS, torch.bool))
        shapes("advantages", advantages, "B", check.FLOATS)
        mask, target = attention_mask.bool(), selected_token_ids.flatten()
        dtype = torch.float64 if _input.dtype == torch.float64 else torch.float32

        def per_token(argument: str, values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return shapes(argument, values, "B T", check.FLOATS).flatten().to(dtype)

        ref_logprob = None
        if self._has_reference(ref_per_token_logps, ref_input, ref_weight):
            ref_logprob = per_token("ref_per_token_logps", ref_per_token_logps)
            if ref_logprob is None:
                assert ref_input is not None  # by _has_reference
                assert ref_weight is not None
                shapes("ref_input", ref_input, "B T ref_H", check.FLOATS)
                ref_logprob = self._reference(ref_input, ref_weight, ref_bias, target, mask)
        old_logprob = per_token("old_per_token_logps", old_per_token_logps)
        correction = None
        advantages = advantages.to(dtype)
        if vllm_is_ratio is not None:
            ratio = self._ratio(vllm_is_ratio, mask.shape).to(dtype)
            if self.loss_type == "vespo":
                correction = self._log_correction(ratio, mask)
            else:  # every surrogate is positively homogeneous in the advantage
                advantages = (advantages[:, None] * ratio).expand(mask.shape).flatten()
        sequences, length = mask.shape
        options = self.options
        if ref_logprob is None:
            options = replace(options, beta=0.0, use_bias_correction_kl=False)
        if correction is not None:
            options = replace(options, **CORRECTED)

        def loss_fn(logprob: Tensor, _: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
            old, sampling = old_logprob, None
            if correction is not None:
                old = logprob.detach() if old is None else old
                sampling = old - correction
            return policy_loss(
                logprob,
                advantages,
                cu_seqlens=torch.arange(sequences + 1, device=mask.device) * length,
                mask=mask.flatten(),
                old_logprob=old,
                ref_logprob=ref_logprob,
                sampling_logprob=sampling,
                num_active_tokens=self._step_tokens(mask, num_items_in_batch),
                options=options,
            )

        keep = None
        if options.beta == 0:  # nothing else gives a row without an advantage a gradient
            keep = (advantages.view(sequences, -1) != 0).expand(mask.shape).flatten()
        fused = through_head(
            NAME,
            loss_fn,
            _input.flatten(0, 1),
            lin_weight.to(_input.dtype),
            target,
            None if bias is None else bias.to(_input.dtype),
            self.temperature,
            1.0,
            None,
            mask.flatten(),
            False,
            keep=keep,
        )
        metrics: tuple[Tensor, ...] = (fused.metrics["clip_fraction"],)
        if self.beta != 0:
            zero = torch.zeros_like(fused.loss).detach()
            metrics = (fused.metrics.get("kl", zero), *metrics)
        return fused.loss, metrics

    def _has_reference(
        self, logprob: Tensor | None, hidden: Tensor | None, weight: Tensor | None
    ) -> bool:
        """Whether there is a KL term; what was given must be what is used."""
        if self.beta == 0:
            return False
        if not self.use_ref_model:
            if logprob is not None or hidden is not None:
                raise ValueError(
                    f"{NAME}: use_ref_model: expected True with a reference, got False"
                )
            return False
        if (logprob is None) == (hidden is None):
            got = "neither" if logprob is None else "both"
            raise ValueError(
                f"{NAME}: ref_per_token_logps: expected it or ref_input, since use_ref_model is "
                f"True and beta = {self.beta}; got {got}"
            )
        if hidden is not None and weight is None:
            raise ValueError(f"{NAME}: ref_weight: expected a tensor with ref_input, got None")
        return True

    @torch.no_grad()
    def _reference(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, mask: Tensor
    ) -> Tensor:
        """[B·T] log-probabilities under the reference's head, zero where the mask is 0."""
        known = linear_logprob(
            hidden[mask],
            weight.to(hidden.dtype),
            target[mask.flatten()],
            bias=None if bias is None else bias.to(hidden.dtype),
            temperature=self.temperature,
        ).logprob
        return known.new_zeros(mask.numel()).masked_scatter(mask.flatten(), known)

    def _ratio(self, ratio: Tensor, shape: torch.Size) -> Tensor:
        """[B, T] or [B, 1]."""
        ratio = ratio[:, None] if ratio.dim() == 1 else ratio
        if ratio.dim() != 2 or ratio.shape[0] != shape[0] or ratio.shape[1] not in (1, shape[1]):
            raise ValueError(
                f"{NAME}: vllm_is_ratio: expected shape [B], [B, 1] or [B, T] with "
                f"B, T = {list(shape)}, got {list(ratio.shape)}"
            )
        return ratio

    def _log_correction(self, ratio: Tensor, mask: Tensor) -> Tensor:
        """[B·T]: the sum of the logarithms of each sequence's weights, spread over its tokens."""
        total = ratio.log().clamp(LEAST, MOST).sum(1, keepdim=True)
        return (total / mask.sum(1, keepdim=True).clamp(min=1)).expand(mask.shape).flatten()

    def _step_tokens(self, mask: Tensor, given: float | Tensor | None) -> Tensor | None:
        """Liger's and TRL's normaliser: the tokens of the step, per process."""
        if LOSSES[self.loss_type].average != "tokens":
            return None
        distributed = dist.is_available() and dist.is_initialized()
        if given is None:
            tokens = mask.sum().float()
            if distributed:
                dist.all_reduce(tokens)
        else:
            tokens = torch.as_tensor(given, dtype=torch.float32, device=mask.device)
        return (tokens / (dist.get_world_size() if distributed else 1)).clamp(min=1)
