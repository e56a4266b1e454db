"""One batch of completions, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1kernels.hf import head_of
from r1kernels.hf.fp8.layers import fp8_codes
from r1train.engine.base import NotANumber, Sampling
from r1train.engine.clock import Clock
from r1train.engine.cuda_graph import Graphs
from r1train.engine.grid import Grid, arrange
from r1train.engine.growing import Growing
from r1train.engine.noise import uniform
from r1train.engine.routing_log import RoutingLog
from r1train.engine.sampling import sample
from r1train.engine.shared_prefix import SharedPrefix
from r1train.engine.stopping import StopStrings
from r1train.engine.workspace import Workspace

LOOK_EVERY = 8
"""Steps between two looks of the host where they cost something: a wait for a GPU, or texts."""


@dataclass(frozen=True)
class Work:
    """What is to be sampled, in rows; those of one prompt are adjacent."""

    prompts: list[tuple[int, ...]]  # [P]
    prompt_of: list[int]  # [B]
    keys: Tensor  # [B] of `r1train.engine.noise`
    sampling: Sampling
    stop: Tensor  # tokens that end a completion
    strings: StopStrings | None
    prompts_at_once: int  # that go through the model together


@dataclass
class Slots:
    """The state of every slot, written in place."""

    last: Tensor  # [B] the token that goes into the model next
    places: Tensor  # [B] tokens of the prompt
    keys: Tensor  # [B]
    done: Tensor  # [B] bool, True in empty slots
    tokens: Tensor  # [B, N]
    logprobs: Tensor  # [B, N]
    routing: Tensor  # [B, N, L, k]; L is 0 where there are no routers


TYPES = {
    **dict.fromkeys(("last", "places", "keys", "tokens"), torch.int64),
    "done": torch.bool,
    "logprobs": torch.float32,
    "routing": torch.int16,
}
KEPT = ("tokens", "logprobs", "routing")
"""What is kept of a row that has ended."""


@dataclass(frozen=True)
class Sampled:
    """What became of the rows."""

    tokens: Tensor  # int64 [T], packed
    logprobs: Tensor  # float32 [T]
    lengths: list[int]  # [B]
    finished: list[bool]  # [B]
    routing: list[Tensor]  # [B] of [tokens, L, k] int16; empty where there are no routers


class Decoding:
    """A batch in the slots of a grid, from which rows that have ended are removed by halves."""

    def __init__(
        self,
        model: PreTrainedModel,
        prefix: SharedPrefix | Growing,
        workspace: Workspace,
        work: Work,
        graphs: Graphs | None,
    ) -> None:
        self.model, self.prefix, self.workspace = model, prefix, workspace
        self.work, self.graphs = work, graphs
        self.device, self.room = model.device, work.sampling.max_new_tokens
        self.head, self.log = head_of(model), RoutingLog(model)
        # A clock of the device only where graphs need one.
        self.now = None if graphs is None else workspace.take("now", (1,), torch.int64).zero_()
        self.failed = workspace.take("failed", (1,), torch.bool).zero_()

    @staticmethod
    def bytes_per_token(model: PreTrainedModel) -> int:
        """Of tokens, log-probabilities and routing, for each token of a completion."""
        layers, choices = RoutingLog(model).shape
        return 2 * (8 + 4 + 2 * layers * choices)  # in slots and in rows

    def run(self) -> Sampled:
        """Decodes until every row has ended or has all its tokens.

        Raises:
            NotANumber: a log-probability is NaN, so the next token would mean nothing.
        """
        with self.log.listening(), self.prefix.attending():
            hidden = self._start()
            self._sample(hidden, Clock(0, self.now))
            looked = 0
            for step in range(1, self.room):
                if self._due(step):
                    if not self._look(looked, step):
                        break
                    looked = step
                self._advance(step)
            else:
                self._look(looked, self.room)
        self._keep(self.grid.rows)
        return self._packed()

    def _start(self) -> Tensor:
        work, rows = self.work, len(self.work.prompt_of)
        self.grid = self._arranged(range(rows))
        hidden = self.prefix.start(work.prompts, self.grid, self.room, work.prompts_at_once)
        lengths = torch.tensor([len(prompt) for prompt in work.prompts])
        valid = self.prefix.valid
        routing = self.log.take(valid.numel(), self.device).unflatten(0, valid.shape)
        self.prompt_routing = routing[valid].split(lengths.tolist())
        shapes = self._shapes(len(work.prompt_of))
        self.rows = {
            name: torch.zeros(shapes[name], dtype=TYPES[name], device=self.device) for name in KEPT
        }
        self.cut: dict[int, int] = {}  # tokens of the rows that a string ended
        self.read: set[int] = set()  # rows in whose text no string is looked for any more
        shapes = self._shapes(len(self.grid.rows))
        self.slots = Slots(**{name: self._take(name, shapes[name]) for name in TYPES})
        row_of = torch.tensor(self.grid.rows)
        prompt_of = torch.tensor(self.grid.prompts).repeat_interleave(self.grid.group)
        self.slots.places.copy_(lengths[prompt_of])
        self.slots.keys.copy_(work.keys[row_of.clamp(min=0)])
        self.slots.done.copy_(row_of < 0)
        self._keep_graphs()
        return hidden

    def _keep_graphs(self) -> None:
        """Those that still read and write where everything lies.

        What is made from weights is made again when they change, and then lies elsewhere: codes in
        FP8, at the latest by the prompts' pass, and the head, where it is no weight of the model.
        """
        if self.graphs is not None:
            read = [*self.model.parameters(), *self.model.buffers(), self.work.stop]
            read += [self.head.weight, *fp8_codes(self.model)]
            addresses = tuple(tensor.data_ptr() for tensor in read)
            self.graphs.keep_for((self.workspace.moves, addresses))

    def _shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        """Of the fields of `Slots`."""
        each, tokens = (count,), (count, self.room)
        return {
            **dict.fromkeys(("last", "places", "keys", "done"), each),
            **dict.fromkeys(("tokens", "logprobs"), tokens),
            "routing": (*tokens, *self.log.shape),
        }

    def _due(self, step: int) -> bool:
        cheap = self.device.type == "cpu" and self.work.strings is None
        return cheap or step == 1 or step % LOOK_EVERY == 0

    def _advance(self, step: int) -> None:
        """Token `step` of every slot."""
        before, clock = Clock(step - 1, self.now), Clock(step, self.now)
        if self.graphs is None:
            self._step(before, clock)
            return
        grid = len(self.grid.prompts), self.grid.group
        shape = (*grid, self.prefix.valid.shape[1], self.room, before.reach(self.room))
        self.graphs.run((shape, self.work.sampling), lambda: self._step(before, clock))

    def _step(self, before: Clock, clock: Clock) -> None:
        """Through the model and the sampler, without a look at any value."""
        slots = self.slots
        hidden = self.prefix.forward(slots.last, slots.places + before.value, before)
        if self.log.routers:
            before.put(slots.routing, 1, self.log.take(len(hidden), self.device))
        if clock.now is not None:
            clock.now.add_(1)
        self._sample(hidden, clock)

    def _sample(self, hidden: Tensor, clock: Clock) -> None:
        slots = self.slots
        noise = uniform(slots.keys, clock.value)
        token, logprob = sample(self.head, hidden, noise, self.work.sampling)
        clock.put(slots.tokens, 1, token)
        clock.put(slots.logprobs, 1, logprob)
        slots.last.copy_(token)
        self.failed.logical_or_((logprob.isnan() & ~slots.done).any())
        slots.done.logical_or_((token[:, None] == self.work.stop).any(1))

    def _look(self, looked: int, step: int) -> bool:
        """Whether any row goes on after `step` tokens, of which `looked` were seen before."""
        if self.work.strings is not None:
            self._stop_at_strings(self.work.strings, looked, step)
        done = self.slots.done
        ended, failed = torch.stack([done.sum(), self.failed[0].long()]).tolist()
        if failed:
            self._fail(step)
        going = len(done) - ended
        if 0 < 2 * going <= len(done):
            self._compact(step, done.tolist())
        return going > 0

    def _stop_at_strings(self, strings: StopStrings, looked: int, step: int) -> None:
        first = max(looked - strings.window, 0)
        stop, ended = set(self.work.stop.tolist()), []
        for slot, ids in enumerate(self.slots.tokens[:, first:step].tolist()):
            row = self.grid.rows[slot]
            if row < 0 or row in self.read:
                continue
            fresh = ids[looked - first :]
            count = next((i + 1 for i, token in enumerate(fresh) if token in stop), None)
            if count is not None:  # whatever follows its last token is not its text
                self.read.add(row)
                ids, fresh = ids[: looked - first + count], fresh[:count]
            end = strings.end(ids, len(fresh))
            if end is not None:
                self.read.add(row)
                self.cut[row] = looked + end
                ended.append(slot)
        if ended:
            self.slots.done[torch.tensor(ended, device=self.device)] = True

    def _compact(self, step: int, done: Sequence[bool]) -> None:
        """Leaves the rows that have ended out of the grid."""
        old, pairs = self.grid, list(zip(self.grid.rows, done, strict=True))
        grid = self._arranged([row for row, ended in pairs if not ended])
        if len(grid.rows) >= len(old.rows):
            return  # of powers of two there may be none in between
        self.grid = grid
        self._keep([row if ended else -1 for row, ended in pairs])
        self.prefix.rearrange(self.grid, step - 1)  # the last token has not been in the model yet
        moved = torch.tensor(self.grid.slots_of(old), device=self.device)
        kept = {name: getattr(self.slots, name)[moved] for name in TYPES}
        self.slots = Slots(
            **{name: self._take(name, each.shape).copy_(each) for name, each in kept.items()}
        )
        self.slots.done.copy_(torch.tensor(self.grid.rows) < 0)
        self._keep_graphs()  # a prompt in more groups than before may need more room

    def _keep(self, rows: Sequence[int]) -> None:
        """Writes what the slots hold to the results of `rows`, of which −1 is none."""
        pairs = [(row, slot) for slot, row in enumerate(rows) if row >= 0]
        if pairs:
            row, slot = torch.tensor(pairs, device=self.device).T
            for name in KEPT:
                self.rows[name][row] = getattr(self.slots, name)[slot]

    def _packed(self) -> Sampled:
        tokens = self.rows["tokens"]
        ends = torch.isin(tokens, self.work.stop)
        lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, self.room).tolist()
        finished = ends.any(1).tolist()
        for row, length in self.cut.items():
            lengths[row], finished[row] = length, True
        counts = torch.tensor(lengths, device=self.device)
        kept = torch.arange(self.room, device=self.device) < counts[:, None]
        tails = [
            ids[: length - 1] for ids, length in zip(self.rows["routing"], lengths, strict=True)
        ]
        routing = [
            torch.cat([self.prompt_routing[prompt], tail])
            for prompt, tail in zip(self.work.prompt_of, tails, strict=True)
        ]
        return Sampled(
            tokens[kept],
            self.rows["logprobs"][kept],
            lengths,
            finished,
            routing if self.log.routers else [],
        )

    def _fail(self, step: int) -> None:
        found = self.slots.logprobs[:, :step].isnan().tolist()
        token, row = min(
            (missing.index(True), row)
            for missing, row in zip(found, self.grid.rows, strict=True)
            if row >= 0 and any(missing)
        )
        raise NotANumber(
            f"the log-probability of token {token} after prompt {self.work.prompt_of[row]} of its "
            "batch is NaN: the model's logits hold NaN or infinity. Its weights may have diverged "
            "(learning_rate, max_grad_norm), be damaged, or overflow in "
            f"{str(self.model.dtype).removeprefix('torch.')}"
        )

    def _arranged(self, rows: Sequence[int]) -> Grid:
        return arrange(rows, self.work.prompt_of, powers_of_two=self.device.type == "cuda")

    def _take(self, name: str, shape: Sequence[int]) -> Tensor:
        return self.workspace.take(name, shape, TYPES[name])
