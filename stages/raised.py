"""Writing and reading of the tokens that the latents of each level raise and lower most."""

from pathlib import Path

import torch

from hsae.files import read_tensors, write_tensors
from hsae.latent_effects import Raised
from hsae.run import Stage

FILE = "data/latent_effects.safetensors"


def write_raised(raised: dict[str, Raised]) -> None:
    """Those of each level, by its name."""
    tensors = {
        f"{level}.{part}": torch.from_numpy(values)
        for level, own in raised.items()
        for part, values in vars(own).items()
    }
    write_tensors(Path(FILE), tensors, {"levels": list(raised)})


def read_raised(stage: Stage, level: int) -> Raised:
    """Those of a level."""
    tensors, _ = read_tensors(stage.input(FILE))
    return Raised(*(tensors[f"level{level}.{part}"].numpy() for part in ("tokens", "nats")))
