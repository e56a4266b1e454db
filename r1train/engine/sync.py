"""Whether an engine samples from the weights that the trainer has.

A wrong sync is silent: completions still look like completions. So after every load the names,
shapes and checksums of the weights are compared, where the engine can say what it holds, and the
log-probabilities of a probe, which it samples and the trainer scores. The probe sees what checksums
cannot: a value that was derived from an old weight, such as its FP8 codes, or a head that is not
tied.

Where the engine holds the trainer's own tensors nothing is sent, and a checksum would compare a
tensor with itself. What is derived from them is the trainer's own too (`nn.fp8_codes` makes codes
again when a weight was written) or made for every rollout (`Decoding`: the head, and graphs, which
are captured again when what they read lies elsewhere). That both compute the same function is seen
by the probe, once; from then on the learner compares the log-probabilities of every rollout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from r1kernels.hf import Head
from r1train.config.schema import RunError
from r1train.engine.base import Engine, Request, Rollout, Sampling
from r1train.model.packing import pack
from r1train.model.policy import Policy

PROBE = Sampling(max_new_tokens=8)
CHUNK = 1 << 22
"""Elements that a checksum widens at a time."""


class SyncError(RunError):
    """The rollout engine does not hold the trainer's weights; says which, and what to do."""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and kept buffers by name, tied ones under each of their names."""
    tensors: dict[str, Tensor] = model.state_dict()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def checksums(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, int]:
    """A number for each tensor, which follows from its bits and their order.

    Args:
        like: tensors by the same names, in whose dtypes they are compared.
    """
    if not weights:
        return {}
    sums = [_checksum(tensor.to(like[name].dtype)) for name, tensor in weights.items()]
    device = sums[0].device
    found = torch.stack([each.to(device) for each in sums]).tolist()  # one transfer
    return dict(zip(weights, found, strict=True))


def _checksum(tensor: Tensor) -> Tensor:
    bits = tensor.contiguous().flatten().view(torch.uint8)
    wide = next(size for size in (8, 4, 2, 1) if bits.numel() % size == 0)
    numbers = bits.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[wide])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(numbers), CHUNK):
        part = numbers[start : start + CHUNK].long()
        places = torch.arange(start, start + len(part), device=tensor.device)
        total += (part * (2 * places + 1)).sum()  # modulo 2^64; odd factors lose nothing
    return total


def check_names(sent: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
    """What was sent is all that an engine holds, and nothing else, in the same shapes.

    Raises:
        SyncError: naming the tensor.
    """
    for name in held.keys() - sent.keys():
        raise SyncError(
            f"the rollout engine holds {name} and was not sent it, so it would sample from an "
            "old one: send every name of the model's state_dict, tied weights under each of theirs"
        )
    for name in sent.keys() - held.keys():
        raise SyncError(f"the rollout engine was sent {name}, which its model does not have")
    for name, tensor in sent.items():
        if tensor.shape != held[name].shape:
            raise SyncError(
                f"the rollout engine was sent {name} of shape {[*tensor.shape]} and holds one of "
                f"{[*held[name].shape]}: is it of the same model?"
            )


class WeightSync:
    """Loads the trainer's weights into `engine`, and stops the run unless they have arrived.

    Args:
        prompts: what the probe continues: a few, of different lengths.
    """

    def __init__(self, engine: Engine, policy: Policy, prompts: Sequence[Sequence[int]]) -> None:
        self.engine, self.policy = engine, policy
        self.requests = [Request(prompt, n=2, seed=i) for i, prompt in enumerate(prompts)]
        self.probed = False

    def __call__(self, version: int) -> None:
        """Raises:
        SyncError: the engine says another version, holds other weights, or samples otherwise.
        """
        own, held = weights_of(self.policy.model), self.engine.weights()
        shared = held is not None and same_tensors(own, held)
        weights = own if shared else dict(self.policy.weights())
        self.engine.load(weights.items(), version)
        if self.engine.version != version:
            raise SyncError(
                f"the rollout engine has version {self.engine.version} of the weights after a load "
                f"of {version}: its load did not take effect"
            )
        held = self.engine.weights()
        if held is not None and not shared:
            check_names(weights, held)
            self._check_sums(weights, held)
        if not (shared and self.probed):
            self._check_probe(version)
            self.probed = True

    def _check_sums(self, weights: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
        wanted, found = checksums(weights, held), checksums(held, held)
        wrong = [name for name in wanted if wanted[name] != found[name]]
        if wrong:
            raise SyncError(
                f"{len(wrong)} of {len(wanted)} weights of the rollout engine are not the "
                f"trainer's after a load, {wrong[0]} first: it was skipped, or its engine keeps an "
                "older or another one"
            )

    def _check_probe(self, version: int) -> None:
        rollout = self.engine.generate(self.requests, PROBE)
        if rollout.version != version:
            raise SyncError(
                f"the rollout engine sampled with version {rollout.version} of the weights after a "
                f"load of {version}: it serves an old model"
            )
        delta = (rollout.logprobs - trainer_logprobs(self.policy, rollout)).abs().mean().item()
        if not delta <= self.engine.sampling_tolerance:
            raise SyncError(
                f"log-probabilities of a probe differ by {delta:.3g} on average between rollout "
                f"engine and trainer (limit {self.engine.sampling_tolerance:g}) after a load: the "
                "engine does not sample from these weights. Does it tie its head to its "
                "embeddings as the trainer does, and reload every layer?"
            )


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one."""
    return one.data_ptr() == other.data_ptr() and one.dtype == other.dtype


def same_tensors(own: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> bool:
    """Whether they are, by the same names."""
    return own.keys() == held.keys() and all(same_memory(own[name], held[name]) for name in own)


def trainer_logprobs(policy: Policy, rollout: Rollout) -> Tensor:
    """float32 [T]: log-probabilities of a rollout at temperature 1, as the learner has them."""
    batch = pack(rollout.prompt_ids, rollout.completion_ids, policy.device)

    def of_targets(hidden: Tensor, head: Head) -> Tensor:
        found = head.logits(hidden).log_softmax(-1).gather(1, batch.target[:, None])
        return found[:, 0]

    return policy.run(batch, of_targets)
