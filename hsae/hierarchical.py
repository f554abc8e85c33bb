"""The two-level hierarchical sparse autoencoder: x -> h1 -> h2, and back down."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsae import losses, variants
from hsae.files import understanding
from hsae.losses import Coefficients
from hsae.metrics import DictionaryTotals
from hsae.products import linear
from hsae.sae import SAE, SAEOutput


class HSAEOutput(NamedTuple):
    """What one forward pass gives."""

    level1: SAEOutput
    """h1 and x from h1, the lower path."""
    level2: SAEOutput
    """h2 and h1 from h2."""
    x_hat_from_h2: Float[Tensor, "batch d_in"]
    """x from h2 through h1_hat: the upper path."""


class HierarchicalSAE(nn.Module):
    """Two sparse autoencoders, one on top of the other: level 1 reads activations x, level 2 reads h1.

    The level-2 decoder is nonnegative: a level-2 latent (parent) stands for a sum of level-1 latents (children).
    """

    def __init__(self, level1: SAE, level2: SAE):
        super().__init__()
        assert level2.nonnegative
        assert level2.d_in == level1.d_sae
        self.level1, self.level2 = level1, level2

    def forward(self, x: Float[Tensor, "batch d_in"], level1_grad_scale: float = 1.0) -> HSAEOutput:
        """Encode through both levels and reconstruct along all three paths.

        On the upper path the level-1 decoder is a constant. As it is shared, its rows would otherwise follow the dense
        gradients of h1_hat, and a rarely active latent, whose own gradients are few, would lose its direction and die.
        `level1_grad_scale` multiplies the gradient, not the value, of h1 as the input of level 2.
        """
        level1 = self.level1(x)
        level2 = self.level2(scale_gradient(level1.acts, level1_grad_scale))
        x_hat_from_h2 = linear(level2.x_hat, self.level1.W_dec.detach().T, self.level1.b_dec.detach())
        return HSAEOutput(level1, level2, x_hat_from_h2)

    def train(self, mode: bool = True) -> "HierarchicalSAE":
        """Training mode; a frozen level stays in evaluation mode, with its buffers as they are."""
        super().train(mode)
        for level in (self.level1, self.level2):
            level.train(mode and level.W_dec.requires_grad)
        return self

    def encode_h2(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae2"]:
        """Activations of level 2."""
        return self.level2.encode(self.level1.encode(x))

    @property
    def directions_h2(self) -> Float[Tensor, "d_sae2 d_in"]:
        """Directions of level 2 in the space of x: of each latent, the sum of the level-1 latents it stands for."""
        return self.level2.W_dec @ self.level1.W_dec

    def reconstruct_from_h1(self, x: Float[Tensor, "batch d_in"]) -> tuple[Tensor, Tensor]:
        """Level 1 as a dictionary of its own: h1, and x from h1."""
        out = self.level1(x)
        return out.acts, out.x_hat

    def reconstruct_from_h2(self, x: Float[Tensor, "batch d_in"]) -> tuple[Tensor, Tensor]:
        """Level 2 as a dictionary of its own: h2, and x from h2 through h1_hat."""
        out = self(x)
        return out.level2.acts, out.x_hat_from_h2

    def header(self) -> dict[str, Any]:
        """What `load` needs to build the same module again."""
        return {"level1": self.level1.header(), "level2": self.level2.header()}

    def anneal(self, left: float) -> None:
        """Set how much of their thresholds' annealing is left to the levels that are being trained."""
        for level in (self.level1, self.level2):
            if level.training:
                level.anneal(left)

    def constrain(self) -> None:
        """Make both decoders valid after an optimizer step; a frozen one stays as it is, to the bit."""
        self.level1.constrain()
        self.level2.constrain()

    def project_gradient(self) -> None:
        """Drop both decoders' gradients along their rows."""
        self.level1.project_gradient()
        self.level2.project_gradient()

    @torch.no_grad()
    def revive(self, x: Float[Tensor, "batch d_in"], dead_tokens: int, generator: torch.Generator) -> int:
        """Revive dead latents of the levels that are being trained; returns how many."""
        was_training = self.training
        self.eval()
        n_revived = 0
        if self.level1.W_dec.requires_grad:
            n_revived += self.level1.revive(x, dead_tokens, generator)
        if self.level2.W_dec.requires_grad:
            n_revived += self.level2.revive(self.level1.encode(x), dead_tokens, generator)
        self.train(was_training)
        return n_revived


def scale_gradient(x: Float[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape"]:
    """`x` itself, whose gradient is multiplied by `scale` on the way back."""
    return x.detach() + scale * (x - x.detach()) if scale != 1 else x


def objective(model: HierarchicalSAE, x: Float[Tensor, "batch d_in"], c: Coefficients) -> dict[str, Tensor]:
    """Weighted terms of the whole objective (see losses.py); their sum is what phases 2 and 3 minimise.

    The target of h1-from-h2 is detached: otherwise h1 is dragged toward the little that h2 can express. Level 1 learns
    from level 2 through its encoder, by the input of the level-2 encoder; its decoder serves its own reconstruction
    alone, so cosine grouping chooses who belongs together and does not bend directions to agree.
    """
    level1, level2 = model.level1, model.level2
    out = model(x, c.level1_grad_scale)
    h1, d_x = out.level1.acts, x.shape[1]
    assignment = losses.soft_assignment(level2.W_dec)
    # Where level 1 is frozen, its own terms are constants.
    learns1 = level1.W_dec.requires_grad
    terms = {
        "x_from_h1": (c.weight_x_from_h1 * learns1, lambda w: w * level1.error(x, out.level1)),
        "h1_from_h2": (c.weight_h1_from_h2, lambda w: w * losses.mse(out.level2.x_hat, h1.detach())),
        "x_from_h2": (c.weight_x_from_h2, lambda w: w * losses.mse(out.x_hat_from_h2, x)),
        "sparsity_h1": (c.beta1 * learns1, lambda _: level1.sparsity(out.level1, d_x)),
        "sparsity_h2": (c.beta2, lambda _: level2.sparsity(out.level2, d_x)),
        "cosine_grouping": (c.lambda_cos, lambda w: w * losses.cosine_grouping(level1.W_dec.detach(), assignment)),
        "coverage": (c.weight_coverage, lambda w: w * losses.coverage(h1 > 0, level2.nearness(out.level2), assignment)),
        "group_sparsity": (c.gamma_group, lambda w: w * losses.group_sparsity(h1, assignment)),
    }
    # A removed term costs nothing, and stays in the curves as zero so that runs have the same columns.
    return {name: term(weight) if weight else x.new_zeros(()) for name, (weight, term) in terms.items()}


def load(tensors: dict[str, Tensor], header: dict[str, Any]) -> HierarchicalSAE:
    """The HSAE that was saved as these tensors and this header, in evaluation mode.

    Raises ValueError if they are something else's.
    """

    def level(name: str) -> SAE:
        prefix = f"{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        return variants.load(own, header[name])

    with understanding("the HSAE"):
        return HierarchicalSAE(level("level1"), level("level2")).eval()


@torch.no_grad()
def validate(model: HierarchicalSAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> dict[str, dict[str, float]]:
    """l0, dead_fraction and fvu of x of both levels; for level 2 also fvu_h1, the FVU of h1 from h2."""
    level1, level2, h1 = DictionaryTotals(), DictionaryTotals(), DictionaryTotals()
    for x in batches:
        out = model(x)
        level1.add(out.level1.acts, out.level1.x_hat, x)
        level2.add(out.level2.acts, out.x_hat_from_h2, x)
        h1.add(out.level2.acts, out.level2.x_hat, out.level1.acts)
    return {"level1": level1.metrics(), "level2": {**level2.metrics(), "fvu_h1": h1.metrics()["fvu"]}}
