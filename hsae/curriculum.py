"""Phases 2 and 3: level 2 on top of level 1 while that is frozen, and both."""

import torch

from hsae import families, two_level, variants
from hsae.checkpoint import NOWHERE, Checkpoints
from hsae.dictionary import LatentConfig, Start
from hsae.hierarchical import HierarchicalSAE
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.training import Curve, Phase, Shuffled, fit


def phase2(
    level1: SAE,
    width: int,
    data: Shuffled,
    c: Coefficients,
    phase: Phase,
    latents: LatentConfig,
    stream: Stream,
    checkpoints: Checkpoints = NOWHERE,
) -> tuple[HierarchicalSAE, Curve]:
    """Put a second level of `width` latents on a trained first, and train it while the first stays as it is."""
    model = stack(level1, width, data, c.beta2, latents, stream.of("weights"))
    return model, train_level2(model, data, c, phase, latents.dead_tokens_later, stream, checkpoints)


def stack(
    level1: SAE, width: int, data: Shuffled, beta2: float, latents: LatentConfig, stream: Stream
) -> HierarchicalSAE:
    """A trained first level and, on top of it, a second as it is before any training: `width` latents, by `stream`."""
    kind, d_in = latents.activation, level1.d_sae
    level2 = variants.drawn(kind, d_in, width, k=latents.k2, beta=beta2, stream=stream, nonnegative=True)
    model = HierarchicalSAE(level1, level2.to(level1.W_dec.device))
    # In an order of its own: levels that start on the same rows in the same order find the same latents again.
    x = data.x(slice(0, latents.init_tokens))
    x = x[torch.randperm(len(x), generator=stream.of("order of the tokens that it starts from").torch()).to(x.device)]
    if latents.init_level2 == Start.data:
        level2.init_from_data(level1.encode(x))
    elif latents.init_level2 == Start.families:
        families.start(level2, level1.encode(x), level1.W_dec)
    return model


def train_level2(
    model: HierarchicalSAE,
    data: Shuffled,
    c: Coefficients,
    phase: Phase,
    dead_tokens: int,
    stream: Stream,
    checkpoints: Checkpoints = NOWHERE,
) -> Curve:
    """Train the second level while the first stays as it is, to the bit; returns the curve."""
    model.level1.requires_grad_(False)
    return fit("phase2", model, data, two_level.gradients(model, c), phase, stream, dead_tokens, checkpoints)


def phase3(
    model: HierarchicalSAE,
    data: Shuffled,
    c: Coefficients,
    phase: Phase,
    dead_tokens: int,
    stream: Stream,
    checkpoints: Checkpoints = NOWHERE,
) -> Curve:
    """Fine-tune both levels; returns the curve."""
    model.requires_grad_(True)
    return fit("phase3", model, data, two_level.gradients(model, c), phase, stream, dead_tokens, checkpoints)
