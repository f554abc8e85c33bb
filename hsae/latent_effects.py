"""What each latent causes: it is taken out of the residual stream of ordinary text, and the next characters change.

A latent's part of the stream, its activation times its direction, is removed wherever it is active in a context (zero
ablation of the latent, as in Marks et al. 2024, arXiv 2403.19647), and the distributions of the next character are
compared where it was. The null removes as much in a random direction instead.

All of this is done twice, on two texts, with random directions of their own: by the first, the latents that are removed
and the tokens that they raise most are chosen; what is said of them are numbers of the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from hsae.activations import Store
from hsae.causal import Basis
from hsae.causal_lm import CausalLM
from hsae.config import check_positive
from hsae.progress import Progress
from hsae.statistics import bootstrap_interval
from hsae.streams import Stream

BATCH = 64  # contexts at a time
KEPT = 16  # tokens that a latent raises most, and lowers most


@dataclass
class EffectsConfig:
    """Section `latent_effects`.

    contexts: of either split that are looked at. contexts_per_latent: that are run for each latent. latents: of each
    level, those with the largest summed activation on the text that chooses; the others are not removed.
    """

    contexts: int
    contexts_per_latent: int
    latents: int

    def __post_init__(self) -> None:
        check_positive(self, vars(self))


@dataclass(frozen=True)
class Effects:
    """What removing each latent does on a text.

    table: a row per latent, with columns latent, tokens (on which it was active and removed), kl (mean divergence of
    the next character's distribution without the latent from that with it, nats) and kl_null (random directions); both
    nan where it is active nowhere, or was not removed. raised: mean log probability of every next token with the
    latent, less that without it. removed: the latents that were removed.
    """

    table: pd.DataFrame
    raised: Float[Tensor, "latent vocab"]
    removed: Int[Tensor, " some"]


@dataclass(frozen=True)
class Raised:
    """The tokens that each latent raises most, the most first, then those that it lowers most; chosen on one text.

    tokens: -1 where there are fewer, or the latent is not active on the other text. nats: by how much it raises each
    there.
    """

    tokens: Int[ndarray, "latent twice_kept"]
    nats: Float[ndarray, "latent twice_kept"]


def chosen_and_scored(
    model: CausalLM, val: Store, test: Store, basis: Basis, config: EffectsConfig, name: str, stream: Stream
) -> tuple[pd.DataFrame, Raised]:
    """`Effects.table` of `test`, with kl_choice and kl_null_choice of `val`; and tokens raised and lowered most.

    These, and the latents that are removed, are chosen on `val`; nats are of `test`.
    """
    choice = effects(model, val, basis, config, f"{name}, chosen on", stream.of("chosen on", name))
    chosen, tokens, removed = choice.table, extremes(choice.raised).numpy(), choice.removed
    del choice  # of many tokens, `raised` is large
    score = effects(model, test, basis, config, f"{name}, scored on", stream.of("scored on", name), removed)
    table = score.table.assign(kl_choice=chosen["kl"], kl_null_choice=chosen["kl_null"])
    tokens[score.table["tokens"].to_numpy() == 0] = -1
    return table, Raised(tokens, np.take_along_axis(score.raised.numpy(), np.maximum(tokens, 0), axis=1))


@torch.no_grad()
def effects(
    model: CausalLM,
    store: Store,
    basis: Basis,
    config: EffectsConfig,
    name: str,
    stream: Stream,
    removed: Int[Tensor, " some"] | None = None,
) -> Effects:
    """Remove latents of `basis`, one at a time, in contexts of `store` that are drawn among those it is active in.

    `removed` are the latents that are removed; None: the `config.latents` with the largest summed activation here.
    Contexts are the first `config.contexts` (or all that there are). Nothing is active on a row that is masked. Parts
    of `stream` draw the contexts and the directions of the null.
    """
    acts = store.activations.acts.unflatten(0, (-1, store.context))[: config.contexts]
    masked = ~store.kept.view(-1, store.context)[: config.contexts].to(acts.device)
    log_p = torch.cat([model.logits(part, store.layer).log_softmax(-1) for part in acts.split(BATCH)])
    # As many rows as contexts times latents: once, instead of again for every pair of them.
    codes = torch.cat([basis.encode(store.normalizer(part.flatten(0, 1))) for part in acts.split(BATCH)])
    codes = codes.view(*acts.shape[:2], -1)
    codes[masked] = 0
    if removed is None:
        removed = codes.sum((0, 1)).argsort(descending=True, stable=True)[: config.latents].cpu()
    active_in = (codes > 0).any(1).cpu() & torch.isin(torch.arange(len(basis)), removed)
    random = random_directions(basis, stream.of("random directions"))
    pairs = _draw(active_in, config.contexts_per_latent, stream.of("contexts"))
    n_vocab = log_p.shape[-1]
    tokens, kl, kl_null = (torch.zeros(len(basis), dtype=torch.double) for _ in range(3))
    raised = torch.zeros(len(basis), n_vocab, dtype=torch.double)
    with Progress(f"latent_effects {name}", len(pairs)) as bar:
        for some in pairs.split(BATCH):
            latents, contexts = some[:, 0], some[:, 1]
            residual, own = acts[contexts], codes[contexts, :, latents]
            on = own > 0
            before, whose = log_p[contexts][on], latents.repeat_interleave(on.sum(1).cpu())
            for directions, divergence in ((basis.directions, kl), (random, kl_null)):
                part = store.normalizer.scale * own[..., None] * directions[latents][:, None]
                change = before - model.logits_at(residual - part, store.layer, on).log_softmax(-1)
                divergence.index_add_(0, whose, (before.exp() * change).sum(1).double().cpu())
                if directions is basis.directions:
                    raised.index_add_(0, whose, change.double().cpu())
            tokens.index_add_(0, latents, on.sum(1).double().cpu())
            bar.advance(len(some))
    columns = {"tokens": tokens, "kl": kl / tokens, "kl_null": kl_null / tokens}
    table = pd.DataFrame({key: value.numpy() for key, value in columns.items()})
    table.insert(0, "latent", np.arange(len(basis)))
    return Effects(table.astype({"tokens": int}), raised / tokens[:, None].clamp(min=1), removed)


def random_directions(basis: Basis, stream: Stream) -> Float[Tensor, "latent d_in"]:
    """A random direction instead of each latent's, of the same length."""
    random = torch.randn(basis.directions.shape, generator=stream.torch()).to(basis.directions)
    return random * basis.directions.norm(dim=1, keepdim=True) / random.norm(dim=1, keepdim=True)


def summarize(table: pd.DataFrame, stream: Stream) -> dict[str, Any]:
    """level -> mean kl and kl_null over latents, the mean of log2(kl / kl_null) with its 95% interval, the share above.

    Latents that were active nowhere are left out; None where there are fewer than two others. `stream` draws latents
    anew, for the intervals.
    """
    result: dict[str, Any] = {}
    for level, rows in table.groupby("level"):
        seen = rows.query("kl > 0 and kl_null > 0")
        kl, kl_null = (seen[column].to_numpy(float) for column in ("kl", "kl_null"))
        ratio = np.log2(kl / kl_null)
        enough = len(seen) > 1
        result[f"level{level}"] = {
            "latents": len(seen),
            "kl": float(kl.mean()) if enough else None,
            "kl_null": float(kl_null.mean()) if enough else None,
            "log2_ratio": float(ratio.mean()) if enough else None,
            "interval": list(bootstrap_interval(ratio, stream.of(level))) if enough else None,
            "above_null": float((ratio > 0).mean()) if enough else None,
        }
    return result


def strongest(
    raised: Raised, latent: int, vocabulary: Sequence[str], n: int
) -> tuple[list[list[Any]], list[list[Any]]]:
    """The `n` tokens whose log probability a latent raises most, and lowers most, each with the change in nats.

    The most as of the text that they were chosen on; the change, which may be of the other sign, as of the other text.
    """
    listed = []
    for tokens, nats in zip(np.split(raised.tokens[latent], 2), np.split(raised.nats[latent], 2), strict=True):
        known = np.flatnonzero(tokens[:n] >= 0)
        listed.append([[vocabulary[int(tokens[i])], round(float(nats[i]), 3)] for i in known])
    return listed[0], listed[1]


def extremes(raised: Float[Tensor, "latent vocab"]) -> Int[Tensor, "latent twice_kept"]:
    """The `KEPT` tokens that each latent raises most, the most first, then those that it lowers most; -1 for none."""
    kept = min(KEPT, raised.shape[1])
    parts = []
    for sign in (1, -1):
        found = (sign * raised).topk(kept)
        parts.append(found.indices.masked_fill(found.values <= 0, -1))
    return torch.cat(parts, 1)


def _draw(active_in: Tensor, n: int, stream: Stream) -> Int[Tensor, "pair latent_and_context"]:
    """Up to `n` contexts for each latent, drawn among those where it is active, in the order of the latents."""
    order = torch.rand(active_in.shape, generator=stream.torch()).masked_fill_(~active_in, 2.0).argsort(0)[:n]
    latents = torch.arange(active_in.shape[1]).expand_as(order)
    found = active_in.gather(0, order)
    return torch.stack([latents[found], order[found]], 1)[latents[found].argsort(stable=True)]
