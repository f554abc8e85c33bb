"""The two-level hierarchical sparse autoencoder: x -> h1 -> h2, and back down."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsae import losses
from hsae.losses import Coefficients
from hsae.metrics import DictionaryTotals
from hsae.sae import SAE


class HSAEOutput(NamedTuple):
    """What one forward pass gives: both levels' activations and the three reconstructions."""

    h1: Float[Tensor, "batch d_sae1"]
    """Level-1 activations: concrete features."""
    h2: Float[Tensor, "batch d_sae2"]
    """Level-2 activations: abstract features."""
    h1_hat: Float[Tensor, "batch d_sae1"]
    """h1 from h2."""
    x_hat_from_h1: Float[Tensor, "batch d_in"]
    """x from h1: the lower path."""
    x_hat_from_h2: Float[Tensor, "batch d_in"]
    """x from h2 through h1_hat: the upper path."""


class HierarchicalSAE(nn.Module):
    """Two sparse autoencoders, one on top of the other: level 1 reads activations x, level 2 reads h1.

    The level-2 decoder is nonnegative: a level-2 latent (parent) stands for a sum of level-1 latents (children).
    """

    def __init__(self, level1: SAE, d_sae2: int):
        super().__init__()
        self.level1 = level1
        self.level2 = SAE(level1.d_sae, d_sae2, nonnegative=True)

    def forward(self, x: Float[Tensor, "batch d_in"], level1_grad_scale: float = 1.0) -> HSAEOutput:
        """Encode through both levels and reconstruct along all three paths.

        On the upper path the level-1 decoder is a constant. As it is shared, its rows would otherwise follow the dense
        gradients of h1_hat, and a rarely active latent, whose own gradients are few, would lose its direction and die.
        `level1_grad_scale` multiplies the gradient, not the value, of h1 as the input of level 2.
        """
        h1, x_hat_from_h1 = self.level1(x)
        h2, h1_hat = self.level2(scale_gradient(h1, level1_grad_scale))
        x_hat_from_h2 = torch.addmm(self.level1.b_dec.detach(), h1_hat, self.level1.W_dec.detach())
        return HSAEOutput(h1, h2, h1_hat, x_hat_from_h1, x_hat_from_h2)

    def reconstruct_from_h1(self, x: Float[Tensor, "batch d_in"]) -> tuple[Tensor, Tensor]:
        """Level 1 as a dictionary of its own: h1, and x from h1."""
        return self.level1(x)

    def reconstruct_from_h2(self, x: Float[Tensor, "batch d_in"]) -> tuple[Tensor, Tensor]:
        """Level 2 as a dictionary of its own: h2, and x from h2 through h1_hat."""
        h2, h1_hat = self.level2(self.level1.encode(x))
        return h2, self.level1.decode(h1_hat)

    def header(self) -> dict[str, int]:
        """What `load` needs to build the same module again."""
        return {"d_in": self.level1.d_in, "d_sae1": self.level1.d_sae, "d_sae2": self.level2.d_sae}

    def constrain(self) -> None:
        """Make both decoders valid after an optimizer step; a frozen one stays as it is, to the bit."""
        for level in (self.level1, self.level2):
            # Normalising a row whose norm is 1 already may still change its last bit.
            if level.W_dec.requires_grad:
                level.constrain()

    def project_gradient(self) -> None:
        """Drop both decoders' gradients along their rows."""
        self.level1.project_gradient()
        self.level2.project_gradient()

    @torch.no_grad()
    def init_level2(self, x: Float[Tensor, "n d_in"]) -> None:
        """Start level 2 from the level-1 activations of the tokens `x`."""
        self.level2.init_from_data(self.level1.encode(x))


def scale_gradient(x: Float[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape"]:
    """`x` itself, whose gradient is multiplied by `scale` on the way back."""
    return x.detach() + scale * (x - x.detach()) if scale != 1 else x


def level1_objective(level1: SAE, x: Float[Tensor, "batch d_in"], c: Coefficients) -> dict[str, Tensor]:
    """The terms that concern level 1 alone: what phase 1 minimises."""
    h1, x_hat = level1(x)
    return {"x_from_h1": c.weight_x_from_h1 * losses.mse(x_hat, x), "l1_h1": c.beta1 * losses.l1(h1)}


def objective(model: HierarchicalSAE, x: Float[Tensor, "batch d_in"], c: Coefficients) -> dict[str, Tensor]:
    """Weighted terms of the whole objective (see losses.py); their sum is what phases 2 and 3 minimise.

    The target of h1-from-h2 is detached: otherwise h1 is dragged toward the little that h2 can express. Level 1 learns
    from level 2 through its encoder, by the input of the level-2 encoder; its decoder serves its own reconstruction
    alone, so cosine grouping chooses who belongs together and does not bend directions to agree.
    """
    out = model(x, c.level1_grad_scale)
    assignment = losses.soft_assignment(model.level2.W_dec)
    terms = {
        "x_from_h1": (c.weight_x_from_h1, lambda: losses.mse(out.x_hat_from_h1, x)),
        "h1_from_h2": (c.weight_h1_from_h2, lambda: losses.mse(out.h1_hat, out.h1.detach())),
        "x_from_h2": (c.weight_x_from_h2, lambda: losses.mse(out.x_hat_from_h2, x)),
        "l1_h1": (c.beta1, lambda: losses.l1(out.h1)),
        "l1_h2": (c.beta2, lambda: losses.l1(out.h2)),
        "cosine_grouping": (c.lambda_cos, lambda: losses.cosine_grouping(model.level1.W_dec.detach(), assignment)),
        "group_sparsity": (c.gamma_group, lambda: losses.group_sparsity(out.h1, assignment)),
    }
    # A removed term costs nothing, and stays in the curves as zero so that runs have the same columns.
    return {name: weight * term() if weight else x.new_zeros(()) for name, (weight, term) in terms.items()}


def load(tensors: dict[str, Tensor], header: dict[str, int]) -> HierarchicalSAE:
    """The HSAE that was saved as these tensors and this header."""
    model = HierarchicalSAE(SAE(header["d_in"], header["d_sae1"]), header["d_sae2"])
    model.load_state_dict(tensors)
    return model


@torch.no_grad()
def validate(model: HierarchicalSAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> dict[str, dict[str, float]]:
    """l0, dead_fraction and fvu of x of both levels; for level 2 also fvu_h1, the FVU of h1 from h2."""
    level1, level2, h1 = DictionaryTotals(), DictionaryTotals(), DictionaryTotals()
    for x in batches:
        out = model(x)
        level1.add(out.h1, out.x_hat_from_h1, x)
        level2.add(out.h2, out.x_hat_from_h2, x)
        h1.add(out.h2, out.h1_hat, out.h1)
    return {"level1": level1.metrics(), "level2": {**level2.metrics(), "fvu_h1": h1.metrics()["fvu"]}}
