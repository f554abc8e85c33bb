"""The training split in blocks, one of which is in memory at a time: it may have more activations than memory or disk.

Blocks lie in files, which several processes make side by side; or each is made by the language model whenever training
comes to it, and nothing is kept. Either way a block is the same to the bit, since it depends on the plan alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from hsae import activations, parallel
from hsae.activations import ActivationConfig, Activations, Normalizer, Store, collect
from hsae.files import damaged, fingerprint, read_tensors, understanding, write_tensors
from hsae.progress import Progress

PLAN = "plan.safetensors"  # beside the blocks
TENSORS = ("starts", "shuffles", "document_starts")  # of a plan, in that file

Residual = Callable[[Integer[Tensor, "window pos"]], Float[Tensor, "window pos d_model"]]
"""Maps tokens to their residual stream."""
Make = Callable[[int, Progress, Callable[..., Iterator[Tensor]]], Activations]
"""`Plan.make` with its model and its tokens."""


@dataclass(frozen=True)
class Plan:
    """What each block is made of: contexts of the corpus, chosen at random, whose tokens are shuffled in the block."""

    starts: Int[Tensor, " context"]
    """Corpus offset of each context's first token, block after block."""
    shuffles: Integer[Tensor, "block state"]
    """State of the random generator that shuffles a block."""
    document_starts: Int[Tensor, " document"]
    layer: int
    context: int
    contexts_per_block: int
    """The last block may have fewer."""

    @classmethod
    def draw(
        cls, n_windows: int, begin: int, document_starts: Int[Tensor, " document"], context: int, c: ActivationConfig
    ) -> "Plan":
        """Choose among the windows of a split that begins at the offset `begin`."""
        generator = torch.Generator().manual_seed(c.seed)
        chosen = torch.randperm(n_windows, generator=generator)[: max(c.train_tokens // context, 1)]
        per_block, shuffles = max(c.block_tokens // context, 1), []
        for block in chosen.split(per_block):
            shuffles.append(generator.get_state())
            torch.randperm(len(block) * context, generator=generator)  # as `collect` will
        return cls(begin + context * chosen, torch.stack(shuffles), document_starts, c.layer, context, per_block)

    def __len__(self) -> int:
        return len(self.shuffles)

    @property
    def rows_per_block(self) -> int:
        """Tokens of a block; the last one may have fewer."""
        return self.contexts_per_block * self.context

    def contexts(self, block: int) -> Int[Tensor, " context"]:
        """Corpus offsets of a block's contexts."""
        return self.starts[block * self.contexts_per_block : (block + 1) * self.contexts_per_block]

    def make(
        self,
        residual: Residual,
        tokens: Integer[Tensor, " corpus"],
        block: int,
        bar: Progress | None = None,
        each: Callable[..., Iterator[Tensor]] = parallel.in_turn,
    ) -> Activations:
        """The rows of a block; `bar` and `each` are those of `activations.collect`."""
        starts = self.contexts(block)
        shuffle = torch.Generator()
        shuffle.set_state(self.shuffles[block].clone())  # torch crashes on a part of a tensor
        windows = tokens[starts[:, None] + torch.arange(self.context + 1)]
        return collect(residual, windows, starts, self.document_starts, shuffle, bar, each)


class Blocks:
    """The rows of the training split (`training.Shuffled`), of which the block that was read last is in memory.

    `get` reads or makes the block of a number.
    """

    def __init__(self, plan: Plan, normalizer: Normalizer, get: Callable[[int], Store]):
        self.plan, self.normalizer, self.get = plan, normalizer, get
        self.rows_per_block = plan.rows_per_block
        self._last: tuple[int, Store] | None = None

    @property
    def d_in(self) -> int:
        """Coordinates of an activation."""
        return len(self.normalizer.mean)

    def __len__(self) -> int:
        return len(self.plan.starts) * self.plan.context

    def block(self, number: int) -> Store:
        """A block, in the place of the one before."""
        if not self._last or self._last[0] != number:
            self._last = None  # first: two would not fit
            self._last = number, self.get(number)
        return self._last[1]

    def x(self, rows: slice) -> Float[Tensor, "batch d_in"]:
        """Normalised activations, the autoencoders' input, at some rows, which may be of several blocks."""
        start, stop, _ = rows.indices(len(self))
        parts, size = [], self.rows_per_block
        for number in range(start // size, math.ceil(stop / size)):
            at = number * size
            parts.append(self.block(number).x(slice(max(start - at, 0), min(stop - at, size))))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def first(self, n_rows: int) -> Store:
        """As many blocks from the first on as have `n_rows` rows, all of them in memory."""
        n_blocks = math.ceil(min(n_rows, len(self)) / self.rows_per_block)
        if n_blocks == 1:
            return self.block(0)
        rows = [vars(self.block(number).activations) for number in range(n_blocks)]
        joined = Activations(**{name: torch.cat([tensors[name] for tensors in rows]) for name in rows[0]})
        return Store(joined, self.normalizer, self.plan.layer, self.plan.context)


def write(plan: Plan, folder: Path, make: Make, keep: bool, sources: dict[str, str]) -> Normalizer:
    """Write the plan, and the blocks if they are to be kept; returns the normalisation, which is fitted on the first.

    Several processes make the first block together, and each other one alone. What lies in the folder already, from a
    run that was stopped, is not made again. `sources` are the fingerprints of the files that blocks are made of.
    """
    own = [0, *range(1 + parallel.rank(), len(plan), parallel.size())] if keep else [0]
    normalizer = None
    with Progress("extract_activations", sum(len(plan.contexts(block)) for block in own)) as bar:
        for block in own:
            made = keep and _file(folder, block).is_file()
            # Rank 0 says it for all that make the first one.
            if parallel.first_says(int(made)) if block == 0 else made:
                normalizer = normalizer or _read_file(_file(folder, block), torch.device("cpu")).normalizer
                bar.advance(len(plan.contexts(block)))
                continue
            rows = make(block, bar, map if block else parallel.in_turn)
            normalizer = normalizer or Normalizer.fit(rows.acts)
            if keep and (block or parallel.rank() == 0):
                Store(rows, normalizer, plan.layer, plan.context).write(_file(folder, block))
            del rows  # or there would be two
    assert normalizer
    parallel.wait()
    if parallel.rank() == 0:
        for part in folder.glob(".*.tmp"):  # of a file that was being written when a run was killed
            part.unlink()
        numbers = {name: getattr(plan, name) for name in ("layer", "context", "contexts_per_block")}
        tensors = {name: getattr(plan, name) for name in TENSORS}
        files = [fingerprint(_file(folder, block)) for block in range(len(plan))] if keep else []
        header = {"plan": numbers, "files": files, "sources": sources}
        write_tensors(folder / PLAN, tensors | vars(normalizer), header)
    return normalizer


@dataclass(frozen=True)
class Written:
    """What `write` left in a folder."""

    folder: Path
    device: torch.device
    plan: Plan
    normalizer: Normalizer
    files: list[str]
    """Fingerprints of the blocks' files, if they were kept."""
    sources: dict[str, str]

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> "Written":
        """What lies there, for blocks on `device`.

        Raises ValueError if the plan, or a block's file, is not the one that was written.
        """
        tensors, header = read_tensors(folder / PLAN)
        with understanding("the plan of the training split"):
            normalizer = Normalizer.of(tensors, device)
            plan = Plan(**{name: tensors[name] for name in TENSORS}, **header["plan"])
            written = cls(folder, device, plan, normalizer, header["files"], header["sources"])
        for block, expected in enumerate(written.files):
            file = _file(folder, block)
            if not file.is_file() or fingerprint(file) != expected:
                raise damaged(file, f"it is not the one that {folder / PLAN} names")
        return written

    def kept(self) -> Blocks:
        """The blocks in their files."""
        return Blocks(self.plan, self.normalizer, lambda block: _read_file(_file(self.folder, block), self.device))

    def made(self, residual: Residual, tokens: Integer[Tensor, " corpus"]) -> Blocks:
        """The same without files; several processes must ask for each block together."""

        def get(block: int) -> Store:
            rows = self.plan.make(residual, tokens, block)
            rows = replace(rows, acts=rows.acts.to(self.device))
            return Store(rows, self.normalizer, self.plan.layer, self.plan.context)

        return Blocks(self.plan, self.normalizer, get)


def _file(folder: Path, block: int) -> Path:
    return folder / f"{block:05d}.safetensors"


def _read_file(file: Path, device: torch.device) -> Store:
    return activations.read(*read_tensors(file), device)
