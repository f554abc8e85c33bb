"""Gradients of the HSAE's objective by hand: on entries of both levels, never on a token's whole h1 or h1_hat.

With h2 and h1 sparse, all that concerns the wide h1_hat = h2 W_dec + b_dec follows from small products: x from h2 has
the decoder W_dec W_dec1, and ||h1_hat - h1||^2 / 2 the gradients h2 (W_dec W_dec^T) + W_dec b_dec - h1 W_dec^T in h2
and (H2^T H2) W_dec + (sum of h2) b_dec^T - H2^T H1 in W_dec.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import parallel
from hsae.gradients import Buffers, Level, by_hand, own_gradients, set_gradients, terms
from hsae.hierarchical import HierarchicalSAE, objective
from hsae.kernels import call
from hsae.losses import Coefficients
from hsae.products import gram, product
from hsae.training import Autograd, Gradients, Terms
from hsae.variants import JumpReLUSAE, ThresholdSAE


def gradients(model: HierarchicalSAE, c: Coefficients) -> Gradients:
    """Gradients of `objective`, by hand where that can be done."""
    known = type(model) is HierarchicalSAE and by_hand(model)
    if known and (c.weight_h1_from_h2 or c.weight_x_from_h2):
        return TwoLevelGradients(model, c)
    return Autograd(model, lambda x: objective(model, x, c))


class _Wide(NamedTuple):
    """What a pass through level 2 has for every token and level-2 latent: [batch, d_sae2] each."""

    z: Tensor
    """Latents before the activation function."""
    dots: Tensor
    """Of h1 with the rows of the level-2 decoder."""
    roots: Tensor
    """Twice the gradient of the group sparsity in the groups' sums of squares."""
    covered: Tensor
    """Of the coverage term, what each parent's nearness is multiplied by."""
    parents: Tensor
    """Nearness."""
    dz: Tensor
    """Gradient of z."""
    h2: Tensor


class _Groups(NamedTuple):
    """The transposed level-2 decoder over its rows' largest entries, and the memberships [d_sae1, d_sae2]."""

    W: Tensor
    A: Tensor
    scale: Tensor
    norm: Tensor


class TwoLevelGradients:
    """Gradients of `objective` on entries. A level 1 that is frozen gets none."""

    def __init__(self, model: HierarchicalSAE, c: Coefficients):
        self.model, self.c, self.buffers = model, c, Buffers()
        self.lower, self.upper = Level(model.level1, model.level1.d_in), Level(model.level2, model.level1.d_in)
        self.memory = {
            f"{name}.{key}": number
            for name, level in (("lower", self.lower), ("upper", self.upper))
            for key, number in level.memory.items()
        }
        self.learns1 = model.level1.W_dec.requires_grad
        own_gradients(model)

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Terms:
        """The terms; the gradients are set."""
        c, lower, upper, level1 = self.c, self.lower, self.upper, self.model.level1
        batch, d1 = len(x), level1.d_sae
        lower.encode(x)
        error1, gradients1 = 0.0, x[None]
        if self.learns1:
            error1, gradients1 = lower.decode(x, level1.W_dec, level1.b_dec, c.weight_x_from_h1)
        n_children = max(int((lower.counts > 0).sum()), 1)
        share = lower.counts.clamp(min=1).float().reciprocal_()
        pull = -c.weight_coverage * parallel.size() / n_children

        groups = self._memberships()
        wide, sum_roots = self._encode(batch, groups, share, pull)
        error2, squares, gradients2 = self._decode(x, wide)
        covered = float(torch.dot(wide.covered.view(-1), wide.parents.view(-1)))
        coverage = 1 - covered * parallel.size() / n_children
        grouping = self._set_level2(wide, groups, share, pull, gradients2)
        if self.learns1:
            call(
                "upper_backward", batch, self.model.level2.d_sae, *lower.rows, lower.least, self.model.level2.W_enc,
                groups.A, wide.dz, wide.roots, c.level1_grad_scale, lower.grad,
            )  # fmt: skip
            set_gradients(lower, x, gradients1)
        return terms(
            x_from_h1=error1,
            h1_from_h2=c.weight_h1_from_h2 * squares / (batch * d1),
            x_from_h2=error2,
            sparsity_h1=lower.sparsity() if self.learns1 else 0.0,
            sparsity_h2=upper.sparsity(),
            cosine_grouping=grouping,
            coverage=c.weight_coverage * coverage,
            group_sparsity=c.gamma_group * sum_roots / batch,
        )

    def _memberships(self) -> _Groups:
        level2 = self.model.level2
        d2, d1 = level2.W_dec.shape
        groups = _Groups(
            self.buffers("W", d1, d2).copy_(level2.W_dec.T),
            *(self.buffers(name, *shape) for name, shape in (("A", (d1, d2)), ("scale", (d1,)), ("norm", (d1,)))),
        )
        call("membership", d1, d2, groups.W, groups.scale, groups.norm, groups.A)
        return groups

    def _encode(self, batch: int, groups: _Groups, share: Tensor, pull: float) -> tuple[_Wide, float]:
        """Level 2's entries, and what else comes of h1; the sum over tokens and groups of the group norms."""
        lower, level2 = self.lower, self.model.level2
        d2 = level2.d_sae
        wide = _Wide(*(self.buffers(name, batch, d2) for name in _Wide._fields))
        soft = isinstance(level2, ThresholdSAE)
        sum_roots = call(
            "upper_forward", batch, d2, *lower.rows, lower.least, level2.W_enc, groups.W, groups.scale, groups.norm,
            share, level2.b_enc - level2.b_dec @ level2.W_enc, self.c.gamma_group / batch,
            level2.threshold().expand(d2).contiguous() if soft else None, pull,
            wide.z, wide.dots, wide.roots, wide.covered, wide.parents, wide.dz,
        )  # fmt: skip
        if not soft:
            wide.dz.zero_()
        self.upper.read(wide.z)
        return wide, sum_roots

    def _decode(self, x: Tensor, wide: _Wide) -> tuple[float, float, Tensor]:
        """Error of x from h2, sum of squared errors of h1 from h2; gradients of entries, of z, and of x_hat."""
        c, lower, upper, (level1, level2) = self.c, self.lower, self.upper, (self.model.level1, self.model.level2)
        batch, b_dec = len(x), level2.b_dec
        self.ramp = self.buffers("ramp", level2.d_sae)
        call("column_dots", batch, level2.d_sae, wide.dz, wide.z, self.ramp)
        decoder, bias = product(level2.W_dec, level1.W_dec), torch.addmv(level1.b_dec, level1.W_dec.T, b_dec)
        error, x_hat_gradients = upper.decode(x, decoder, bias, c.weight_x_from_h2)
        squares = call(
            "upper_entries", batch, level2.d_sae, *upper.rows, upper.least, product(level2.W_dec, level2.W_dec.T),
            level2.W_dec @ b_dec, wide.dots, 2 * c.weight_h1_from_h2 / (batch * level1.d_sae), upper.grad, wide.dz,
            wide.h2, None if isinstance(level2, ThresholdSAE) else wide.parents,
        )  # fmt: skip
        squares += batch * float(b_dec @ b_dec) - 2 * float(b_dec @ lower.sums) + lower.squares
        return error, squares, x_hat_gradients

    def _set_level2(self, wide: _Wide, groups: _Groups, share: Tensor, pull: float, x_hat_gradients: Tensor) -> float:
        """Set level 2's gradients; returns the cosine grouping term."""
        c, lower, upper, (level1, level2) = self.c, self.lower, self.upper, (self.model.level1, self.model.level2)
        batch, (d2, d1) = len(wide.z), level2.W_dec.shape
        W_enc, W_dec, b_enc, b_dec = (
            p.grad for p in (level2.W_enc, level2.W_dec, level2.b_enc, level2.b_dec) if p.grad is not None
        )
        upper.threshold_gradients()
        if isinstance(level2, JumpReLUSAE) and level2.log_threshold.grad is not None:
            level2.log_threshold.grad.sub_(self.ramp)
        torch.sum(wide.dz, 0, out=b_enc)
        products, A_grad = self.buffers("products", d1, d2), self.buffers("A_grad", d1, d2)
        call(
            "upper_accumulate", d1, d2, *lower.columns, lower.row, lower.values, lower.least, share, pull,
            wide.dz, wide.roots, wide.parents, wide.h2, level2.b_dec, b_enc, W_enc, products, A_grad,
        )  # fmt: skip
        grouping, alpha, beta = self._cosine_grouping(groups.A, A_grad)
        call(
            "membership_backward", d1, d2, groups.W, groups.scale, groups.norm, groups.A,
            alpha, beta, groups.A.sum(0), A_grad,
        )  # fmt: skip

        scale = 2 * c.weight_h1_from_h2 / (batch * d1)
        squares = upper.weighted_rows("squares", upper.values, wide.h2[None])
        W_dec.copy_(product(squares, level2.W_dec)).addmm_(upper.sums[:, None], level2.b_dec[None]).mul_(scale)
        W_dec.add_(product(upper.weighted_rows("decoder", upper.values, x_hat_gradients), level1.W_dec.T))
        W_dec.add_(A_grad.sub_(products, alpha=scale).T)
        torch.mv(level2.W_dec.T, upper.sums, out=b_dec).add_(level2.b_dec, alpha=batch).sub_(lower.sums).mul_(scale)
        b_dec.addmv_(level1.W_dec, x_hat_gradients[0].sum(0)).addmv_(level2.W_enc, b_enc, alpha=-1)
        return grouping

    def _cosine_grouping(self, A: Tensor, A_grad: Tensor) -> tuple[float, float, float]:
        """The term; adds one part of its gradient to A_grad; the rest is alpha * A + beta * (sum of A over latents)."""
        if not self.c.lambda_cos:
            return 0.0, 0.0, 0.0
        directions = self.model.level1.W_dec
        unit = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-8)
        sums = gram(A, unit)
        own = float(A.square().sum())
        cosines, pairs = float(sums.square().sum()) - own, float(A.sum(0).square().sum()) - own
        least = 1e-4 * own + 1e-8  # as in losses.cosine_grouping
        bound, weight = max(pairs, least), self.c.lambda_cos
        slope = weight * cosines / bound**2
        A_grad.add_(product(unit, sums.T), alpha=-2 * weight / bound)
        alpha, beta = (-2 * slope, 2 * slope) if pairs >= least else (2e-4 * slope, 0.0)
        return weight * (1 - cosines / bound), alpha + 2 * weight / bound, beta
