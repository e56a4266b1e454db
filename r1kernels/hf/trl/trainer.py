"""TRL's ``GRPOTrainer`` with r1kernels' loss: the trainer, its options and its logs are TRL's."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

try:
    import trl
except ImportError as error:
    raise ImportError(
        f"r1kernels.hf.trl: {error.name} is not installed; pip install 'r1kernels[train]' trl"
    ) from error

from r1kernels.head.fused_linear_loss import FusedLoss, through_head
from r1kernels.hf.grpo import router_aux_loss, router_inputs
from r1kernels.hf.head.float32_head import Float32Head
from r1kernels.hf.head.head import Head
from r1kernels.hf.logprobs import IGNORED, score_tokens
from r1kernels.hf.patched import patch, run_with_hidden
from r1kernels.hf.trl.entropy import Entropy
from r1kernels.hf.trl.metrics import log_metrics
from r1kernels.hf.trl.options import (
    NAME,
    check_arguments,
    check_text_only,
    logprobs,
    loss_options,
)
from r1kernels.hf.unwrap import unwrap
from r1kernels.policy.losses import LOSSES
from r1kernels.policy.policy_loss import policy_loss


class GRPOTrainer(trl.GRPOTrainer):
    """``trl.GRPOTrainer`` whose log-probabilities and loss are r1kernels'.

    Takes the same arguments and makes the same updates, the auxiliary loss of a mixture of experts
    (by default with the coefficient of the model's config), ``cast_lm_head_to_fp32``,
    ``top_entropy_quantile`` and ``use_adaptive_entropy`` included. Only completion tokens go
    through the head, tokens without a gradient are skipped, and it needs no GPU to be fast.

    Differences: differences of log-probabilities are bounded to ±20; "vespo/phi_seq_mean" is not
    logged.

    Raises:
        NotImplementedError: at construction, before a model is loaded, for
            ``use_liger_kernel=True`` and for processors of images; says what to set instead.
        ValueError: a loss type, or a level for it, that TRL does not have either.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        signature = inspect.signature(trl.GRPOTrainer.__init__)
        given = signature.bind_partial(self, *args, **kwargs).arguments
        check_arguments(given.get("args"), given.get("processing_class"))
        super().__init__(*args, **kwargs)
        check_arguments(self.args, self.processing_class)  # which TRL has loaded, where not given
        for model in (self.model, self.ref_model):
            if model is None:
                continue
            if self.args.cast_lm_head_to_fp32:
                Float32Head.become(unwrap(NAME, model).get_output_embeddings())
            patch(model)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        num_images: list[int] | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        num_tiles: list[int] | None = None,
        image_sizes: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        image_position_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[B, C] log-probabilities, entropies if asked for, and the mean auxiliary loss if so."""
        check_text_only(locals())
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
        labels[:, :-logits_to_keep] = IGNORED
        found, aux_losses = [], []
        size = batch_size or len(labels)
        for part in zip(*(x.split(size) for x in (input_ids, attention_mask, labels)), strict=True):
            with self.accelerator.autocast():
                output = score_tokens(
                    model,
                    *part[:2],
                    labels=part[2],
                    temperature=self.temperature,
                    entropy=compute_entropy,
                    **router_inputs(compute_aux_loss),
                )
            found.append(output["through_head"])
            if compute_aux_loss:
                aux_losses.append(router_aux_loss(NAME, model, output))
        aux_loss = torch.stack(aux_losses).mean() if compute_aux_loss else None
        logprob = torch.cat([part.logprob for part in found])[:, -logits_to_keep:]
        if not compute_entropy:
            return logprob, None, aux_loss
        entropy = torch.cat([part.entropy for part in found])[:, -logits_to_keep:]
        return logprob, entropy, aux_loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        check_text_only(inputs)
        mode = "train" if self.model.training else "eval"
        steps = self.current_gradient_accumulation_steps if mode == "train" else 1
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        entropy = Entropy(self, mode, mask, steps)

        def run(hidden: Tensor, head: Head) -> FusedLoss:
            return self._fused_loss(hidden, head, inputs, mask, entropy, mode, steps)

        with self.accelerator.autocast():
            output = run_with_hidden(
                model,
                run,
                input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
                **router_inputs(self.aux_loss_enabled),
            )
        fused: FusedLoss = output["through_head"]
        assert fused.entropy is not None  # by _fused_loss
        entropies = fused.entropy.view(mask.shape)
        fused = fused._replace(logprob=fused.logprob.view(mask.shape), entropy=entropies)
        entropy.update(entropies)
        loss = fused.loss
        if self.aux_loss_enabled:
            aux_loss = router_aux_loss(NAME, model, output)
            loss = loss + self.router_aux_loss_coef * aux_loss / steps
            gathered = self.accelerator.gather_for_metrics(aux_loss.detach())
            self._metrics[mode]["aux_loss"].append(gathered.mean().item())
        log_metrics(self, mode, fused, inputs, mask)
        return loss

    def _fused_loss(
        self,
        hidden: Tensor,
        head: Head,
        inputs: dict[str, Any],
        mask: Tensor,
        entropy: Entropy,
        mode: str,
        steps: int,
    ) -> FusedLoss:
        """The share of one micro-batch in the loss of its step, but for the auxiliary loss."""
        sequences, length = mask.shape
        advantages = inputs["advantages"].view(sequences, -1)
        by_tokens = LOSSES[self.loss_type].average == "tokens"
        # A loss of its own normaliser is a mean per micro-batch; TRL's Trainer sums those.
        share = 1 if by_tokens else 1 / steps

        def loss_fn(logprob: Tensor, entropies: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            entropies, given = entropies.view(mask.shape), advantages
            if entropy.choose(entropies):  # a token without advantage has its KL term alone
                given = advantages * entropy.tokens
            loss, metrics = policy_loss(
                logprob,
                given.flatten().to(logprob.dtype),  # [B], or one a token
                cu_seqlens=torch.arange(sequences + 1, device=mask.device) * length,
                mask=mask.bool().flatten(),
                num_active_tokens=self._step_tokens(inputs, mode, steps) if by_tokens else None,
                **logprobs(self, inputs),
                options=loss_options(self, inputs),
            )
            metrics["policy_loss"] = loss.detach()
            loss = loss * share
            if self._entropy_bonus_enabled:
                loss = loss + entropy.bonus(entropies)
            return loss, metrics

        keep = None
        if self.beta == 0 and entropy.coef == 0:
            keep = (advantages != 0).expand(mask.shape).flatten()
        return through_head(
            NAME,
            loss_fn,
            head.rows(hidden[:, -length - 1 : -1]).flatten(0, 1),
            head.weight,
            inputs["completion_ids"].flatten(),
            head.bias,
            self.temperature,
            head.map.logit_scale,
            head.map.softcap,
            mask.bool().flatten(),
            True,
            entropy_grad=entropy.coef != 0,
            keep=keep,
        )

    def _step_tokens(self, inputs: dict[str, Any], mode: str, steps: int) -> Tensor:
        """The tokens of one optimizer step, per process."""
        tokens: Tensor = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        # It counts the generation batch, which evaluation neither splits nor accumulates.
        return tokens * steps / self.args.steps_per_generation if mode == "train" else tokens
