"""Fitted clusterings and matrix factorisations as dictionaries.

k-means, Ward's tree and the Gaussian mixture represent a token by one centre (L0 = 1); PCA and NMF by a sum of at most
`l0` components, as many as the HSAE level that they are compared with has active latents.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.config import check
from hsae.files import understanding

L0_LEVEL = {"pca": 1, "nmf": 2}
"""Methods that represent a token by several components, and the HSAE level whose L0 says how many."""


def split_signs(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch 2*d_in"]:
    """max(x, 0) beside max(-x, 0): signed data as nonnegative data (Hoyer 2004, J. Mach. Learn. Res. 5).

    Not x less its minimum: most of what the parts then add up is that minimum, the same for every token, and fitting it
    makes sparse codes worse.
    """
    return torch.cat([x, -x], 1).relu()


@dataclass(frozen=True)
class Clusters:
    """Fitted clusters: a token belongs to the cluster of its nearest leaf."""

    leaf_centers: Float[Tensor, "leaf d_in"]
    leaf_labels: Int[Tensor, " leaf"]
    centers: Float[Tensor, "cluster d_in"]

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch cluster"], Float[Tensor, "batch d_in"]]:
        """One-hot membership and the cluster's centre."""
        distances = self.leaf_centers.square().sum(1) - 2 * x @ self.leaf_centers.T
        return _members(self.leaf_labels[distances.argmin(1)].long(), self.centers)


@dataclass(frozen=True)
class Mixture:
    """Fitted Gaussian mixture of diagonal covariances: a token belongs to its most probable component."""

    means: Float[Tensor, "component d_in"]
    variances: Float[Tensor, "component d_in"]
    weights: Float[Tensor, " component"]

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch component"], Float[Tensor, "batch d_in"]]:
        """One-hot membership and the component's mean."""
        precisions = 1 / self.variances
        log_joint = x @ (self.means * precisions).T - 0.5 * x.square() @ precisions.T
        log_joint += self.weights.log() + 0.5 * (precisions.log() - self.means.square() * precisions).sum(1)
        return _members(log_joint.argmax(1), self.means)


def _members(
    labels: Int[Tensor, " batch"], centers: Float[Tensor, "cluster d_in"]
) -> tuple[Float[Tensor, "batch cluster"], Float[Tensor, "batch d_in"]]:
    return torch.nn.functional.one_hot(labels, len(centers)).to(centers.dtype), centers[labels]


@dataclass(frozen=True)
class PrincipalComponents:
    """Fitted PCA, of which a token keeps the `l0` coefficients of largest magnitude: they may be negative.

    The basis is orthonormal, so no other `l0` components of it reconstruct the token better.
    """

    mean: Float[Tensor, " d_in"]
    components: Float[Tensor, "component d_in"]
    l0: int

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch component"], Float[Tensor, "batch d_in"]]:
        """The coefficients that are kept among zeros, and what they add up to."""
        coefficients = (x - self.mean) @ self.components.T
        kept = coefficients.abs().topk(min(self.l0, len(self.components)), sorted=False).indices
        codes = torch.zeros_like(coefficients).scatter(1, kept, coefficients.gather(1, kept))
        return codes, self.mean + codes @ self.components


@dataclass(frozen=True)
class NonnegativeParts:
    """Fitted NMF: a token is a sum of at most `l0` parts of unit norm with positive coefficients.

    Parts are in the space of `split_signs`; the reconstruction is its positive less its negative channels.
    """

    parts: Float[Tensor, "part channel"]
    l0: int

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch part"], Float[Tensor, "batch d_in"]]:
        """Nonnegative coefficients and what they add up to."""
        codes = nonnegative_pursuit(split_signs(x), self.parts, min(self.l0, len(self.parts)))
        positive, negative = (codes @ self.parts).chunk(2, dim=1)
        return codes, positive - negative


def nonnegative_pursuit(
    x: Float[Tensor, "batch d"], parts: Float[Tensor, "part d"], l0: int, sweeps: int = 10
) -> Float[Tensor, "batch part"]:
    """Nonnegative codes of at most `l0` of the unit-norm `parts` that approximate x in least squares, chosen greedily.

    Nonnegative orthogonal matching pursuit (Bruckstein, Elad & Zibulevsky 2008, IEEE Trans. Inf. Theory 54): `l0`
    times, take the part that the residual has most of, then fit all coefficients again, by `sweeps` of coordinate
    descent from where they were. A part that could only get a negative coefficient stays at zero.
    """
    correlations, gram = x @ parts.T, parts @ parts.T
    codes = torch.zeros_like(correlations)
    # A row for each part that was chosen, of all tokens: steps are then taken along memory.
    support, coefficients = torch.empty(0, len(x), dtype=torch.long, device=x.device), correlations.T[:0]
    for _ in range(l0):
        gains = (correlations - codes @ gram).scatter(1, support.T, -torch.inf)
        support = torch.cat([support, gains.argmax(1)[None]])
        coefficients = torch.cat([coefficients, coefficients.new_zeros(1, len(x))])
        target, overlap = correlations.T.gather(0, support), gram[support[:, None], support[None]]
        for i in list(range(len(support))) * sweeps:
            coefficients[i] = (coefficients[i] + target[i] - (overlap[i] * coefficients).sum(0)).relu()
        codes = codes.scatter(1, support.T, coefficients.T)
    return codes


Dictionary = Clusters | Mixture | PrincipalComponents | NonnegativeParts

DICTIONARIES: dict[str, type[Dictionary]] = {
    "kmeans": Clusters,
    "minibatch_kmeans": Clusters,
    "ward": Clusters,
    "gmm": Mixture,
    "pca": PrincipalComponents,
    "nmf": NonnegativeParts,
}
"""The methods, and what each is used as once it is fitted."""


def load(method: str, tensors: dict[str, Tensor], l0s: tuple[int, int], device: torch.device) -> Dictionary:
    """The dictionary that `fit_clusters` gave as these tensors, on `device`.

    `l0s` are those of the HSAE's levels: of pca's components a token has at most as many as level 1 has active latents,
    of nmf's as many as level 2 (all, where there are fewer). Raises ValueError for an L0 below 1, or another's tensors.
    """
    dictionary = DICTIONARIES[method]
    values: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
    if method in L0_LEVEL:
        values["l0"] = l0s[L0_LEVEL[method] - 1]
        check("l0", values["l0"], "1 or above", values["l0"] >= 1)
    # Ward's tree is no part of its dictionary.
    with understanding(f"the dictionary of {method}"):
        return dictionary(**{field.name: values[field.name] for field in fields(dictionary)})
