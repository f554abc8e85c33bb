"""Flat baselines: one autoencoder of each variant, steered to the L0 of the HSAE level that it is compared with."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import variants
from hsae.config import check_positive
from hsae.gradients import level_gradients
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.training import Terms, memory


@dataclass
class FlatConfig:
    """Section `flat_baseline`; all else is as in the phases that train the HSAE level compared with."""

    initial_beta: float

    def __post_init__(self) -> None:
        check_positive(self, ["initial_beta"])


def drawn(variant: str, d_in: int, d_sae: int, target_l0: float, initial_beta: float, stream: Stream) -> SAE:
    """Flat autoencoder with weights of `stream`; k = the rounded target. Raises ValueError for an unknown variant."""
    k = min(max(round(target_l0), 1), d_sae)
    return variants.drawn(variant, d_in, d_sae, k=k, beta=initial_beta, stream=stream)


class SteeredGradients:
    """Gradients of the model's error and sparsity term, the coefficient of the latter steered to the target L0.

    Before each batch beta is multiplied by (L0 / target)^0.01, L0 being that of the batch before: it grows while too
    many latents are active, so that the comparison is at matched sparsity without a search. The TopK kinds have no use
    for beta; where a threshold anneals, beta waits.
    """

    def __init__(self, model: SAE, target_l0: float):
        self.model, self.target_l0, self.level = model, target_l0, level_gradients(model)
        self.l0 = torch.tensor(target_l0, dtype=torch.float64)
        self.memory = {**memory(self.level), "l0": self.l0}

    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Terms:
        """The terms; the gradients are set."""
        if self.model.settled():
            self.model.beta *= (max(float(self.l0), 1e-3) / self.target_l0) ** 0.01
        terms = self.level(x)
        self.l0.fill_(float(self.model.l0))
        return terms
