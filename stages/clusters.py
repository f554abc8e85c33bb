"""Reading of clusterings that several stages share."""

import torch

from hsae import clusters
from hsae.files import read_tensors
from hsae.run import Stage


def read_clusters(stage: Stage, name: str, device: torch.device) -> clusters.Clusters:
    """Clusters of which a token is in one."""
    tensors, _ = read_tensors(stage.input(f"models/clustering_baseline/{name}.safetensors"))
    found = clusters.load(name, tensors, (1, 1), device)
    assert isinstance(found, clusters.Clusters)
    return found
