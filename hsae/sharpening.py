"""Phase 1: level 1 alone, first for its directions and then, with these frozen, for what is active."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hsae.checkpoint import NOWHERE, Checkpoints
from hsae.config import check_positive
from hsae.gradients import level_gradients
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.training import Curve, Gradients, Phase, Shuffled, fit


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
    curve = fit(
        "phase1", model, data, level_gradients(model, c.weight_x_from_h1), phase, stream, dead_tokens, checkpoints
    )
    if sharpening.n_steps(data):
        model.beta.mul_(sharpening.price)
        gradients = partial(level_gradients, model, c.weight_x_from_h1)
        later = sharpen(model, data, gradients, sharpening, stream.of("sharpening"), checkpoints)
        steps = phase.n_steps(data)
        curve += [{**row, "step": steps + row["step"]} for row in later]
    return curve


def sharpen(
    model: SAE,
    data: Shuffled,
    gradients: Callable[[], Gradients],
    phase: Phase,
    stream: Stream,
    checkpoints: Checkpoints = NOWHERE,
) -> Curve:
    """Train all of level 1 but its decoder; returns the curve. `gradients` makes them once the decoder is frozen."""
    model.W_dec.requires_grad_(False)
    # Nothing is revived: that would give directions.
    curve = fit("phase1, sharpening", model, data, gradients(), phase, stream, 0, checkpoints)
    model.W_dec.requires_grad_(True)
    return curve
