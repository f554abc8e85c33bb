"""The terms of the HSAE's objective, each a pure function of tensors; the coefficients that weigh them.

With activations scaled to unit variance per coordinate on average, the objective of a token batch is

    weight_x_from_h1  * mse(x from h1, x)      + sparsity(h1, beta1)
  + weight_h1_from_h2 * mse(h1 from h2, h1)    + sparsity(h2, beta2)        (progressive sparsity: beta1 < beta2)
  + weight_x_from_h2  * mse(x from h2, x)
  + lambda_cos      * cosine_grouping(W_dec of level 1, A)
  + gamma_group     * group_sparsity(h1, A)
  + weight_coverage * coverage(h1 > 0, nearness of h2, A),

where A, from `soft_assignment`, says how far each level-1 latent belongs to the group of each level-2 latent, and
sparsity(h, beta) is that of the levels' kind: beta * l1(h) for relu, 2 beta / d_x * L0(h) for jumprelu, nothing for the
kinds whose activation function is told how sparse to be (hsae/variants.py).
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from hsae import parallel
from hsae.config import check

SHARPNESS = 4


@dataclass
class Coefficients:
    """Top-level keys of params.yaml that weigh the terms of the objective; 0 removes a term.

    `level1_grad_scale` is the share of the level-2 terms' gradient that reaches the level-1 encoder in phase 3.
    """

    beta1: float
    beta2: float
    lambda_cos: float
    gamma_group: float
    weight_coverage: float
    weight_x_from_h1: float
    weight_h1_from_h2: float
    weight_x_from_h2: float
    level1_grad_scale: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(name, value, "finite and 0 or above", 0 <= value < float("inf"))
        check("level1_grad_scale", self.level1_grad_scale, "at most 1", self.level1_grad_scale <= 1)
        check("beta2", self.beta2, f"at least beta1 (={self.beta1})", self.beta2 >= self.beta1)


def mse(prediction: Float[Tensor, "batch d"], target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Squared error per coordinate, averaged over tokens."""
    return (prediction - target).square().mean()


def l1(acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
    """L1 norm of a token's activations (nonnegative), averaged over tokens.

    A sum over latents, not a mean: a mean would let the penalty vanish as the autoencoder grows wider.
    """
    return acts.sum(1).mean()


def soft_assignment(W_dec: Float[Tensor, "group latent"]) -> Float[Tensor, "latent group"]:
    """Membership of each level-1 latent in the group of each level-2 latent; rows sum to 1 (0 without any parent).

    A[i, g] = |W_dec[g, i]|^4 / sum_g |W_dec[g, i]|^4, differentiable in the level-2 decoder: groups are learned. The
    power is for reconstruction's sake: a latent may lend a little to many level-2 latents, and belongs to the few that
    it lends most.
    """
    strength = W_dec.abs().T
    # Relative to the largest: fourth powers of small weights would underflow. The quotient does not notice.
    strength = (strength / strength.detach().amax(1, keepdim=True).clamp(min=1e-8)) ** SHARPNESS
    return strength / strength.sum(1, keepdim=True).clamp(min=1e-8)


def cosine_grouping(
    directions: Float[Tensor, "latent d_in"], assignment: Float[Tensor, "latent group"]
) -> Float[Tensor, ""]:
    """1 - mean cosine between two different latents of the same group, pairs weighted by both memberships. In [0, 2].

    No pair is ever formed: with unit directions u_i, sum_{i != j} a_i a_j u_i.u_j = ||sum_i a_i u_i||^2 - sum_i a_i^2.
    """
    unit = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-8)
    own = assignment.square().sum()
    cosines = (assignment.T @ unit).square().sum() - own
    pairs = assignment.sum(0).square().sum() - own
    # Where hardly any two latents share a group, both differences are rounding errors, and so would be their quotient.
    return 1 - cosines / pairs.clamp(min=1e-4 * own + 1e-8)


def coverage(
    children: Bool[Tensor, "batch latent"],
    parents: Float[Tensor, "batch group"],
    assignment: Float[Tensor, "latent group"],
) -> Float[Tensor, ""]:
    """1 - mean over children of P(parent active | child active), by soft membership: 1 - sum_g A[i, g] P(g | i).

    `parents` says how nearly active each is, from 0 to 1. So a child pulls its parents up to where they are active,
    and its membership moves to those that are: P(parent | child) is learned and nothing is gated. Every child that is
    active in the batch counts alike, however rare. In [0, 1]; where processes share a batch, that is their mean.
    """
    on = children.to(parents.dtype)
    n_active = parallel.total(on.sum(0))
    covered = ((on / n_active.clamp(min=1)) @ assignment) * parents
    return 1 - parallel.size() * covered.sum() / (n_active > 0).sum().clamp(min=1)


def group_sparsity(acts: Float[Tensor, "batch latent"], assignment: Float[Tensor, "latent group"]) -> Float[Tensor, ""]:
    """L2,1 norm: sum over groups of the L2 norm of the group's activations, averaged over tokens.

    ||h||_{2,1} = sum_g sqrt(sum_i A[i, g] h_i^2) (group lasso: Yuan & Lin 2006), so few groups are active at a time.
    """
    squares = acts.square() @ assignment
    # The square root has no gradient at 0, where a group is silent: such groups are cut out of the graph.
    silent = squares <= 1e-12
    return squares.masked_fill(silent, 1.0).sqrt().masked_fill(silent, 0.0).sum(1).mean()
