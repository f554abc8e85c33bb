"""Families of latents: who is active only together with whom, and an autoencoder that starts from them."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsae.sae import SAE

CONTAINED = 0.5
CLEARLY = 0.5  # of the 90th percentile of its activations: what is less may be interference of a similar direction
COMMON = 0.5  # of the tokens: what is clearly active on more is the data's bias rather than anybody's parent
RARE = 5  # tokens: what is active on fewer has no statistics
SILENT = -1


def roots(acts: Float[Tensor, "token latent"]) -> Int[Tensor, " latent"]:
    """The root of each latent's family; its own index if it is a root, -1 if it is hardly ever active.

    A latent's parent is the more frequent latent j by which it is contained best, if that is at least half of what is
    possible beyond chance: (P(j | i) - P(j)) / (1 - P(j)) >= .5. Chance counts, for a latent that is active everywhere
    contains all others; what is active on more than half of the tokens is no parent at all, for beyond chance little is
    possible there. Parents of parents lead to the root. Weak activations do not count.
    """
    on = clearly_active(acts).float()
    n_active = on.sum(0)
    p = n_active / max(len(acts), 1)
    alive = n_active >= RARE
    contained = (on.T @ on / n_active.clamp(min=1)[:, None] - p) / (1 - p).clamp(min=1e-6)
    possible = alive[:, None] & alive & (n_active > n_active[:, None]) & (p <= COMMON)
    best = contained.where(possible, 0.0).max(1)
    parent = torch.where(best.values >= CONTAINED, best.indices, torch.arange(len(p), device=p.device))
    # A parent is more frequent than its child, so that there are no circles, and each round at least halves the way.
    for _ in range(len(p).bit_length()):
        parent = parent[parent]
    return parent.where(alive, SILENT)


def clearly_active(acts: Float[Tensor, "token latent"]) -> Bool[Tensor, "token latent"]:
    """Where a latent is active by more than half of the 90th percentile of its activations."""
    top = acts.where(acts > 0, torch.nan).nanquantile(0.9, dim=0, keepdim=True)
    return acts > CLEARLY * top  # nothing is above the nan of a latent that is never active


@torch.no_grad()
def start(model: SAE, acts: Float[Tensor, "token d_in"]) -> None:
    """Give each latent of `model`, which reads `acts`, a family of those to stand for.

    The families come in the order of their sum of squares. A decoder row is the mean of the family's activations while
    its root is active; the encoder reads the root, and gives it back at the same size. Where there are fewer families
    than latents, the others are silent, and must not be revived (`LatentConfig.dead_tokens_later`): what they learn
    instead lowers the error, and takes the families apart. Raises ValueError if there are fewer tokens than latents.
    """
    model.init_from_data(acts)
    model.b_dec.zero_()
    root_of = roots(acts)
    found = root_of[root_of >= 0].unique()
    belongs = (root_of == found[:, None]).to(acts)
    order = (belongs @ acts.square().sum(0)).argsort(descending=True)[: model.d_sae]
    chosen = found[order]
    latents = torch.arange(len(chosen), device=acts.device)
    model.W_dec[latents] = clearly_active(acts[:, chosen]).to(acts).T @ acts * belongs[order]
    model.constrain()
    model.W_enc.zero_()
    model.W_enc[chosen, latents] = 1 / model.W_dec[latents, chosen]
    model.b_enc.zero_()
