"""Families of latents: who is active only together with whom, and an autoencoder that starts from them."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from hsae.sae import SAE

HELD = 0.5
CLEARLY = 0.5  # of the 90th percentile of its activations: what is less may be interference of a similar direction
COMMON = 0.5  # of the tokens: what is clearly active on more is the data's bias rather than anybody's parent
RARE = 5  # tokens: what is active on fewer has no statistics
SILENT = -1


class Families(NamedTuple):
    """Whose family each latent belongs to, and what that is read off."""

    root_of: Int[Tensor, " latent"]
    """The root of a latent's family; its own index if it is a root, -1 if it is hardly ever active."""
    contained: Float[Tensor, "latent latent"]
    """How far i is active only where j is: (P(j | i) - P(j)) / (1 - P(j)), or 0."""
    held: Float[Tensor, "latent latent"]
    """How far j is there where i is active: active itself, or in the direction of i."""


def find(acts: Float[Tensor, "token latent"], directions: Float[Tensor, "latent d_in"]) -> Families:
    """The families of latents that have these activations and decoder rows.

    A latent's parent is the more frequent latent j by which it is held best, if that is at least half of what is
    possible. It is held where j is active, as far as that is beyond chance, for a latent that is active everywhere
    contains all others; and where j is silent, by the cosine of both directions: a child that has absorbed its parent
    has the parent's direction in its own (Chanin et al. 2024, A is for Absorption, arXiv 2409.14507). What is active on
    more than half of the tokens is no parent at all, for beyond chance little is possible there. Parents of parents
    lead to the root. Weak activations do not count.
    """
    on = clearly_active(acts).float()
    n_active = on.sum(0)
    p = n_active / max(len(acts), 1)
    alive = n_active >= RARE
    together = on.T @ on / n_active.clamp(min=1)[:, None]
    contained = ((together - p) / (1 - p).clamp(min=1e-6)).clamp(min=0)
    unit = F.normalize(directions)
    held = contained + (1 - contained) * (unit @ unit.T).clamp(min=0)
    possible = alive[:, None] & alive & (n_active > n_active[:, None]) & (p <= COMMON)
    best = held.where(possible, 0.0).max(1)
    parent = torch.where(best.values >= HELD, best.indices, torch.arange(len(p), device=p.device))
    # A parent is more frequent than its child, so that there are no circles, and each round at least halves the way.
    for _ in range(len(p).bit_length()):
        parent = parent[parent]
    return Families(parent.where(alive, SILENT), contained, held)


def clearly_active(acts: Float[Tensor, "token latent"]) -> Bool[Tensor, "token latent"]:
    """Where a latent is active by more than half of the 90th percentile of its activations."""
    top = acts.where(acts > 0, torch.nan).nanquantile(0.9, dim=0, keepdim=True)
    return acts > CLEARLY * top  # nothing is above the nan of a latent that is never active


@torch.no_grad()
def start(model: SAE, acts: Float[Tensor, "token d_in"], directions: Float[Tensor, "d_in d"]) -> None:
    """Give each latent of `model`, which reads `acts` of latents with these decoder rows, a family to stand for.

    The families come in the order of their sum of squares. The encoder reads the root, and those of its family that it
    holds itself, weighted by 1 - `contained` and brought to its size: little of a child that is active with it, nearly
    all of one that has absorbed it. A decoder row is the mean of the family's activations where what is read is clearly
    there; what is read is then scaled to give them back best. Where there are fewer families than
    latents, the others are silent, and must not be revived (`LatentConfig.dead_tokens_later`): what they learn instead
    lowers the error, and takes the families apart. Raises ValueError if there are fewer tokens than latents.
    """
    model.init_from_data(acts)
    model.b_dec.zero_()
    root_of, contained, held = find(acts, directions)
    found = root_of[root_of >= 0].unique()
    belongs = (root_of == found[:, None]).to(acts)
    order = (belongs @ acts.square().sum(0)).argsort(descending=True)[: model.d_sae]
    roots, belongs = found[order], belongs[order]
    latents = torch.arange(len(roots), device=acts.device)
    on = clearly_active(acts).to(acts)
    size = (acts * on).sum(0) / on.sum(0).clamp(min=1)
    reads = ((1 - contained) * (held >= HELD))[:, roots].T * belongs * size[roots, None] / size.clamp(min=1e-6)
    reads[latents, roots] = 1.0
    read = acts @ reads.T
    there = (read > CLEARLY * size[roots]).to(acts)
    model.W_dec[latents] = there.T @ acts * belongs
    model.constrain()
    read = read * there
    scale = (read * (acts @ model.W_dec[latents].T)).sum(0) / read.square().sum(0)
    model.W_enc.zero_()
    model.W_enc[:, latents] = reads.T * scale
    model.b_enc.zero_()
