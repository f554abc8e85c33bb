"""Autoencoders that have learned nothing, as sparse as trained ones: what chance scores, by the same readings.

A trained autoencoder's score is worth what it is above this one's. Where latents are matched with features by their
direction, chance is small; where they are matched by what they are active on, or where level 2 starts from data, it is
not, and the difference from this row is what training has found.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hsae import curriculum, variants
from hsae.dictionary import LatentConfig
from hsae.hierarchical import HierarchicalSAE
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.training import Shuffled
from hsae.variants import BatchTopKSAE, TopKSAE


def flat(kind: str, d_sae: int, l0: float, x: Float[Tensor, "n d_in"], stream: Stream) -> SAE:
    """A flat autoencoder of a kind at its start, of which `l0` latents are active on a token of `x` on average."""
    k = min(max(round(l0), 1), d_sae)
    model = variants.drawn(kind, x.shape[1], d_sae, k=k, beta=1.0, stream=stream).to(x.device)
    set_l0(model, x, l0)
    return model.eval().requires_grad_(False)


def hierarchical(
    widths: tuple[int, int],
    l0s: tuple[float, float],
    data: Shuffled,
    beta2: float,
    latents: LatentConfig,
    stream: Stream,
) -> HierarchicalSAE:
    """An HSAE at its start: level 1 random, level 2 as phase 2 finds it, both with so many active latents."""
    x = data.x(slice(0, latents.init_tokens))
    level1 = flat(latents.activation, widths[0], l0s[0], x, stream.of("weights of level 1"))
    model = curriculum.stack(level1, widths[1], data, beta2, latents, stream.of("weights of level 2"))
    set_l0(model.level2, level1.encode(x), l0s[1])
    return model.eval().requires_grad_(False)


@torch.no_grad()
def set_l0(model: SAE, x: Float[Tensor, "n d_in"], l0: float) -> None:
    """Move what decides on activity, by one number for all latents, until `l0` are active on a token on average.

    It is the threshold of the BatchTopK kinds and the bias of those with a penalty; kinds that are told their `k` are
    left as they are. Tokens that are alike to a latent become active together: then fewer are.
    """
    if isinstance(model, TopKSAE) and not isinstance(model, BatchTopKSAE):
        return
    pre_acts = model.pre_acts(x).flatten()
    n_active = min(max(round(l0 * len(x)), 1), pre_acts.numel() - 1)
    cutoff = pre_acts.topk(n_active + 1, sorted=False).values.min()
    if isinstance(model, BatchTopKSAE):
        model.threshold.copy_(cutoff.clamp(min=0))  # a latent is never active below 0
    else:
        model.b_enc.add_(model.least() - cutoff)
