"""Reading of trained dictionaries that several stages share."""

import torch

from hsae import hierarchical, variants
from hsae.files import read_tensors
from hsae.hierarchical import HierarchicalSAE
from hsae.run import Stage
from hsae.sae import SAE


def read_hsae(stage: Stage, device: torch.device) -> HierarchicalSAE:
    """The HSAE after all phases."""
    return hierarchical.load(*read_tensors(stage.input("models/phase3.safetensors"))).to(device)


def read_flat(stage: Stage, name: str, device: torch.device) -> SAE:
    """A flat autoencoder."""
    return variants.load(*read_tensors(stage.input(f"models/flat_baseline/{name}.safetensors"))).to(device)


def read_untrained_hsae(stage: Stage, device: torch.device, name: str = "hsae") -> HierarchicalSAE:
    """The HSAE at its start, as sparse as the trained one; or the other one, `other_hsae`."""
    return hierarchical.load(*read_tensors(stage.input(f"models/untrained/{name}.safetensors"))).to(device)


def read_untrained_flat(stage: Stage, kind: str, device: torch.device) -> SAE:
    """A flat autoencoder of a kind at its start, as wide and as sparse as level 1."""
    return variants.load(*read_tensors(stage.input(f"models/untrained/{kind}.safetensors"))).to(device)
