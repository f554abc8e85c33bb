"""Flat baselines: one autoencoder of each variant, steered to the L0 of the HSAE level that it is compared with."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hsae import losses
from hsae.config import check, check_positive
from hsae.sae import SAE, VARIANTS, TopKSAE


@dataclass
class FlatConfig:
    """Section `flat_baseline`; all else is as in the phases that train the HSAE level compared with."""

    initial_beta: float

    def __post_init__(self) -> None:
        check_positive(self, ["initial_beta"])


def build(variant: str, d_in: int, d_sae: int, target_l0: float) -> SAE:
    """Flat autoencoder of a variant; TopK gets k = the rounded target. Raises ValueError for an unknown variant."""
    check("variant", variant, f"one of {', '.join(VARIANTS)}", variant in VARIANTS)
    if variant == "topk":
        return TopKSAE(d_in, d_sae, k=min(max(round(target_l0), 1), d_sae))
    return VARIANTS[variant](d_in, d_sae)


def objective(
    model: SAE, target_l0: float, initial_beta: float
) -> Callable[[Float[Tensor, "batch d_in"]], dict[str, Tensor]]:
    """Reconstruction error alone for TopK, else with an L1 penalty whose coefficient is steered to the target L0.

    After each batch the coefficient is multiplied by (L0 / target)^0.01: it grows while too many latents are active,
    so that the comparison is at matched sparsity without a search.
    """
    if isinstance(model, TopKSAE):
        return lambda x: {"x_from_h1": losses.mse(model(x).x_hat, x)}
    beta = initial_beta

    def at_target_l0(x: Tensor) -> dict[str, Tensor]:
        nonlocal beta
        acts, x_hat = model(x)
        l0 = (acts > 0).sum(1).float().mean().item()
        terms = {"x_from_h1": losses.mse(x_hat, x), "l1_h1": beta * losses.l1(acts)}
        beta *= (max(l0, 1e-3) / target_l0) ** 0.01
        return terms

    return at_target_l0
