"""Matrix products in float32 on the CPU, by the faster of the two libraries that torch has for them.

`torch.mm` calls MKL, which leaves half of an AMD processor's vector units unused; oneDNN, which torch's compiler uses,
does not: 500 instead of 220 GF/s on two Zen 5 cores.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(
    a: Float[Tensor, "*batch n"], b: Float[Tensor, "n m"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "*batch m"]:
    """a b, plus a row `bias`. No gradient passes through it."""
    if _by_onednn(a):
        if not (b.is_contiguous() or b.T.is_contiguous()):
            b = b.contiguous()  # part of a matrix: oneDNN has no fast product for it
        return torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")
    return a @ b if bias is None else a @ b + bias


def gram(a: Float[Tensor, "batch n"], b: Float[Tensor, "batch m"]) -> Float[Tensor, "n m"]:
    """a^T b, of either memory order. No gradient passes through it."""
    # A transposed first factor is copied, so that had better be the narrower one.
    return product(a.T, b) if a.shape[1] <= b.shape[1] else product(b.T, a).T


class Linear(nn.Linear):
    """nn.Linear without bias, by `product` on the CPU, forward and backward."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__(d_in, d_out, bias=False)

    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The input times the transposed weight."""
        return linear(input, self.weight)


def linear(
    x: Float[Tensor, "*batch d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "*batch d_out"]:
    """x times the transposed weight, plus the bias, with gradients: F.linear, by `product` on the CPU."""
    if _by_onednn(x):
        return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.T, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (x, weight), (needs_x, needs_weight, needs_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            product(gradient, weight) if needs_x else None,
            gram(rows, x.flatten(0, -2)) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def _by_onednn(x: Tensor) -> bool:
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
