"""Reading and writing that several stages share."""

from pathlib import Path

import pandas as pd
import torch
from torch import nn

from hsae.activations import Store, read
from hsae.files import read_tensors, write_csv, write_json, write_tensors
from hsae.run import Stage


def read_store(stage: Stage, split: str, device: torch.device) -> Store:
    """The activations of a split."""
    return read(*read_tensors(stage.input(f"data/activations/{split}.safetensors")), device)


def write_trained(name: str, model: nn.Module, header: object, curve: list[dict[str, float]], metrics: object) -> None:
    """A trained autoencoder, its curve and its metrics on the validation split."""
    write_tensors(Path(f"models/{name}.safetensors"), model.state_dict(), header)
    write_csv(Path(f"plots/{name}.csv"), pd.DataFrame(curve, columns=None if curve else ["step", "loss"]))
    write_json(Path(f"metrics/{name}.json"), metrics)
