"""Every number of the evaluation, defined once: sums over a whole split in float64, never means of batch means."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor


class DictionaryTotals:
    """Running sums over batches of a dictionary's codes and reconstructions, and the metrics that follow from them.

    Codes are latent activations, or cluster memberships; a latent is active where it is not zero.
    """

    def __init__(self) -> None:
        self.n_tokens = 0
        self.active: Tensor | float = 0.0
        self.squared_error = 0.0
        self.sum_x: Tensor | float = 0.0
        self.sum_squares = 0.0

    def add(
        self, codes: Float[Tensor, "batch latent"], x_hat: Float[Tensor, "batch d"], x: Float[Tensor, "batch d"]
    ) -> None:
        """Count a batch of codes and of reconstructions of `x`."""
        x = x.double()
        self.n_tokens += len(x)
        self.active = self.active + (codes != 0).sum(0).double()
        self.squared_error += (x - x_hat).square().sum().item()
        self.sum_x = self.sum_x + x.sum(0)
        self.sum_squares += x.square().sum().item()

    @property
    def n_latents(self) -> int:
        """Width of the codes."""
        return torch.as_tensor(self.active).numel()

    def l0(self) -> float:
        """Mean number of active latents per token."""
        return torch.as_tensor(self.active).sum().item() / self.n_tokens

    def dead_fraction(self) -> float:
        """Share of latents that were active on no token."""
        return (torch.as_tensor(self.active) == 0).double().mean().item()

    def fvu(self) -> float:
        """Fraction of variance unexplained: sum ||x - x_hat||^2 / sum ||x - mean(x)||^2.

        Raises ValueError where the target does not vary (h1, if level 1 is dead).
        """
        mean = torch.as_tensor(self.sum_x) / self.n_tokens
        variance = self.sum_squares - self.n_tokens * mean.square().sum().item()
        if variance <= 0:
            raise ValueError("nothing varies, so no share of it can be explained: all latents are dead; lower `beta1`.")
        return self.squared_error / variance

    def metrics(self) -> dict[str, float]:
        """All of the above, and explained_variance = 1 - fvu."""
        fvu = self.fvu()
        return {
            "l0": self.l0(),
            "dead_fraction": self.dead_fraction(),
            "fvu": fvu,
            "explained_variance": 1 - fvu,
        }


@torch.no_grad()
def summarize(
    reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]], batches: Iterable[Float[Tensor, "_ d"]]
) -> dict[str, float]:
    """Metrics of a dictionary that maps a batch to its codes and its reconstruction."""
    totals = DictionaryTotals()
    for x in batches:
        totals.add(*reconstruct(x), x)
    return totals.metrics()


def recovered(loss: float, clean: float, ablated: float) -> float:
    """Loss recovered: (ablated - loss) / (ablated - clean); 1 is as good as no intervention, 0 as bad as ablation."""
    return (ablated - loss) / (ablated - clean)
