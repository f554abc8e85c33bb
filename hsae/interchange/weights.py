"""What all formats share: normalisation folded into the weights, thresholds, an autoencoder from its weights."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import variants
from hsae.activations import Normalizer
from hsae.sae import SAE
from hsae.variants import BatchTopKSAE, JumpReLUSAE, ThresholdSAE

# Stands for a threshold of 0, which has no logarithm: no activation in float32 that matters lies below.
LEAST_THRESHOLD = 1e-30


@torch.no_grad()
def fold(sae: SAE, normalizer: Normalizer) -> SAE:
    """The autoencoder that does with raw activations what `sae` does with normalised ones; its latents are the same.

    As x = scale x_n + mean: W_enc / scale, scale W_dec, scale b_dec + mean. b_enc and thresholds stay, since b_dec is
    subtracted from the input. Unit decoder rows get the norm `scale`. Raises ValueError if the normaliser is one of
    activations that are wider or narrower.
    """
    if len(normalizer.mean) != sae.d_in:
        raise ValueError(f"the autoencoder has {sae.d_in} inputs; the activations have {len(normalizer.mean)}.")
    folded = copy.deepcopy(sae)
    # Sums and quotients in float64, so that each weight is rounded once.
    mean, scale = normalizer.mean.double(), normalizer.scale.double()
    folded.W_enc.copy_(sae.W_enc.double() / scale)
    folded.W_dec.copy_(sae.W_dec.double() * scale)
    folded.b_dec.copy_(sae.b_dec.double() * scale + mean)
    return folded


def unfold(sae: SAE, normalizer: Normalizer) -> SAE:
    """The inverse of `fold`."""
    mean, scale = normalizer.mean.double(), normalizer.scale.double()
    return fold(sae, Normalizer(-mean / scale, 1 / scale))


@torch.no_grad()
def thresholds(sae: SAE) -> Float[Tensor, " d_sae"]:
    """What each latent's activation must exceed in evaluation mode, of the kinds that have a threshold."""
    assert isinstance(sae, BatchTopKSAE | ThresholdSAE)
    threshold = sae.threshold if isinstance(sae, BatchTopKSAE) else sae.threshold()
    # An untrained BatchTopK's is negative: its ReLU's 0 is what counts.
    return threshold.clamp(min=0).expand(sae.d_sae).clone()


@torch.no_grad()
def bias_on_plain_input(sae: SAE) -> Float[Tensor, " d_sae"]:
    """The encoder's bias of a format that does not subtract b_dec from the input."""
    return (sae.b_enc.double() - sae.b_dec.double() @ sae.W_enc.double()).to(sae.b_enc.dtype)


def assemble(
    kind: str,
    weights: dict[str, Tensor],
    *,
    plain_input: bool = False,
    k: int = 1,
    threshold: Tensor | None = None,
    nonnegative: bool = False,
) -> SAE:
    """An autoencoder, in evaluation mode, from W_enc, W_dec, b_enc and b_dec, as float32.

    `plain_input`: the weights are of a format that does not subtract b_dec from the input. `threshold`: one for all, or
    for each latent. Raises ValueError for a k that is not in 1..d_sae, and RuntimeError for shapes that do not fit.
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    d_in, d_sae = weights["W_enc"].shape
    # With this beta a JumpReLU's thresholds are exp(log_threshold).
    sae = variants.build(kind, d_in, d_sae, k=k, beta=0.5 if kind == JumpReLUSAE.kind else 0.0, nonnegative=nonnegative)
    if plain_input:
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    if threshold is not None:
        each = isinstance(sae, JumpReLUSAE)
        value = threshold.double().clamp(min=LEAST_THRESHOLD).log() if each else threshold
        weights["log_threshold" if each else "threshold"] = value
    sae.load_state_dict(sae.state_dict() | weights)
    return sae.eval()
