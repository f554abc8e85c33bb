"""Residual-stream activations: collected from the transformer, stored with where they come from, read in batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from hsae import parallel
from hsae.config import check, check_positive
from hsae.files import understanding, write_tensors
from hsae.progress import Progress


@dataclass
class ActivationConfig:
    """Section `extract_activations`: the residual stream after which block (from 0), and how many tokens per split.

    The training split comes in blocks of `block_tokens` (hsae/blocks.py), which are kept in files or made when needed.
    """

    layer: int
    train_tokens: int
    val_tokens: int
    test_tokens: int
    block_tokens: int
    keep: bool
    seed: int

    def __post_init__(self) -> None:
        check("layer", self.layer, "0 or above", self.layer >= 0)
        check_positive(self, ["train_tokens", "val_tokens", "test_tokens", "block_tokens"])

    def check_layer(self, n_layer: int) -> None:
        """Raise ValueError if the transformer has no such block."""
        check("extract_activations.layer", self.layer, f"in 0..{n_layer - 1} (the blocks)", self.layer < n_layer)


@dataclass(frozen=True)
class Normalizer:
    """Centres activations and scales them to unit variance per coordinate on average, by one factor for all."""

    mean: Float[Tensor, " d_model"]
    scale: Float[Tensor, ""]

    @classmethod
    def fit(cls, acts: Float[Tensor, "n d_model"]) -> "Normalizer":
        """Mean and scale of `acts`, summed in float64. Raises ValueError if they are constant or not finite."""
        mean = torch.stack([chunk.double().sum(0) for chunk in acts.split(65536)]).sum(0) / len(acts)
        squares = sum((chunk.double() - mean).square().sum() for chunk in acts.split(65536))
        scale = (torch.as_tensor(squares) / acts.numel()).sqrt()
        if not (scale.isfinite() and scale > 0):
            raise ValueError(f"the activations have standard deviation {scale.item()}; they must be finite and vary.")
        return cls(mean.float(), scale.float())

    @classmethod
    def of(cls, tensors: dict[str, Tensor], device: torch.device) -> "Normalizer":
        """The one that lies among the tensors of a file. Raises KeyError if none does."""
        return cls(tensors["mean"].to(device), tensors["scale"].to(device))

    def __call__(self, acts: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Model space -> autoencoder space."""
        return (acts - self.mean) / self.scale

    def inverse(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Autoencoder space -> model space."""
        return x * self.scale + self.mean


@dataclass(frozen=True)
class Activations:
    """Activations of one split, in model space, and for each the corpus offset of the token that it belongs to."""

    acts: Float[Tensor, "n d_model"]
    offsets: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    documents: Int[Tensor, " n"]


@dataclass(frozen=True)
class Store:
    """Activations of a split, or of a block of one, with the normalisation that the training split defines."""

    activations: Activations
    normalizer: Normalizer
    layer: int
    context: int

    @property
    def d_in(self) -> int:
        """Coordinates of an activation."""
        return self.activations.acts.shape[1]

    def __len__(self) -> int:
        return len(self.activations.acts)

    def x(self, rows: slice) -> Float[Tensor, "batch d_in"]:
        """Normalised activations, the autoencoders' input, at some rows."""
        return self.normalizer(self.activations.acts[rows])

    def batches(self, size: int = 4096) -> Iterator[Float[Tensor, "batch d_in"]]:
        """All rows, normalised, in their order."""
        return (self.x(slice(start, start + size)) for start in range(0, len(self), size))

    def windows(self, tokens: Integer[Tensor, " corpus"]) -> Integer[Tensor, "window context_plus_1"]:
        """Tokens of the contexts that the rows, in their order, come from, each with the target after its last one."""
        first = self.activations.offsets[:: self.context, None].long()
        return tokens[first + torch.arange(self.context + 1)]

    def write(self, path: Path) -> None:
        """Write what `read` reads."""
        tensors = {**vars(self.activations), **vars(self.normalizer)}
        write_tensors(path, tensors, {"layer": self.layer, "context": self.context})


def read(tensors: dict[str, Tensor], header: dict[str, Any], device: torch.device) -> Store:
    """The store saved as these tensors and header, activations on `device`. Raises ValueError if its parts disagree."""
    with understanding("the activation store"):
        fields = {name: tensors[name] for name in ("acts", "offsets", "positions", "documents")}
        if len({len(tensor) for tensor in fields.values()}) != 1:
            raise ValueError("its tensors differ in length")
        normalizer = Normalizer.of(tensors, device)
        fields["acts"] = fields["acts"].to(device)
        return Store(Activations(**fields), normalizer, header["layer"], header["context"])


@torch.no_grad()
def collect(
    residual: Callable[[Integer[Tensor, "window pos"]], Float[Tensor, "window pos d_model"]],
    windows: Integer[Tensor, "window context_plus_1"],
    first_offsets: Int[Tensor, " window"],
    document_starts: Int[Tensor, " document"],
    shuffle: torch.Generator | None = None,
    bar: Progress | None = None,
    each: Callable[..., Iterator[Tensor]] = parallel.in_turn,
) -> Activations:
    """Residual stream at every input position of `windows`, in order, or, given a generator, all tokens shuffled.

    `residual` maps tokens to their residual stream; `first_offsets` are the windows' offsets in the corpus; `bar`
    counts windows. Several processes (hsae/parallel.py) share out the windows, and all get the same, unless `each` is
    `map`: then this one does all. Raises ValueError if an activation is not finite.
    """
    n_windows, context = windows.shape[0], windows.shape[1] - 1
    n = n_windows * context
    place = torch.arange(n) if shuffle is None else torch.randperm(n, generator=shuffle)
    acts = None
    chunks = each(lambda chunk: residual(chunk[:, :-1]).flatten(0, 1), windows.split(64))
    for places, chunk in zip(place.split(64 * context), chunks, strict=True):
        acts = torch.empty(n, chunk.shape[1]) if acts is None else acts
        acts[places] = chunk.cpu()
        if bar:
            bar.advance(len(chunk) // context)
    if acts is None or not acts.isfinite().all():
        raise ValueError("the transformer's activations are not finite: train it again with a lower learning rate.")
    source = torch.empty(n, dtype=torch.long)
    source[place] = torch.arange(n)
    positions = source % context
    offsets = first_offsets[source // context] + positions
    documents = torch.searchsorted(document_starts, offsets, right=True) - 1
    return Activations(acts, offsets.int(), positions.int(), documents.int())
