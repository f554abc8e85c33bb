"""Phase 1: level 1 alone, first for its directions and then, with these frozen, for what is active."""

from dataclasses import dataclass

from hsae.checkpoint import NOWHERE, Checkpoints
from hsae.config import check_positive
from hsae.gradients import level_gradients
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.training import Curve, Phase, Shuffled, fit


@dataclass
class Sharpening(Phase):
    """Section `sharpening`: the end of phase 1, in which the decoder is frozen and a latent costs `price` times beta1.

    While features are being found, a high price makes children absorb their parents (one latent is cheaper than two); a
    low one leaves many latents active that need not be. So a low one finds the directions, and the right one then
    decides what is active. Only the encoder and the thresholds learn.
    """

    price: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, ["price"])


def phase1(
    model: SAE,
    data: Shuffled,
    c: Coefficients,
    phase: Phase,
    sharpening: Sharpening,
    dead_tokens: int,
    stream: Stream,
    checkpoints: Checkpoints = NOWHERE,
) -> Curve:
    """Train level 1 alone, and sharpen it; returns the curve."""
    gradients = level_gradients(model, c.weight_x_from_h1)
    curve = fit("phase1", model, data, gradients, phase, stream, dead_tokens, checkpoints)
    if sharpening.n_steps(data):
        model.beta.mul_(sharpening.price)
        model.W_dec.requires_grad_(False)
        gradients = level_gradients(model, c.weight_x_from_h1)
        # Nothing is revived: that would give directions.
        later = fit("phase1, sharpening", model, data, gradients, sharpening, stream.of("sharpening"), 0, checkpoints)
        model.W_dec.requires_grad_(True)
        steps = phase.n_steps(data)
        curve += [{**row, "step": steps + row["step"]} for row in later]
    return curve
