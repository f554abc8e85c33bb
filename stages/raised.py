"""What latents raise: writing and reading of a sparse matrix (latent, vocabulary) for each level."""

from pathlib import Path

import torch
from scipy.sparse import csr_array

from hsae.files import read_tensors, write_tensors
from hsae.run import Stage

PARTS = ("data", "indices", "indptr")
FILE = "data/latent_effects.safetensors"


def write_raised(raised: dict[str, csr_array]) -> None:
    """One matrix for each level."""
    tensors = {f"{name}.{part}": torch.from_numpy(getattr(own, part)) for name, own in raised.items() for part in PARTS}
    shapes = {name: list(own.shape or ()) for name, own in raised.items()}
    write_tensors(Path(FILE), tensors, shapes)


def read_raised(stage: Stage, level: int) -> csr_array:
    """The matrix of a level."""
    tensors, shapes = read_tensors(stage.input(FILE))
    parts = (tensors[f"level{level}.{part}"].numpy() for part in PARTS)
    return csr_array(tuple(parts), shape=tuple(shapes[f"level{level}"]))
