"""How well a dictionary stands in for the residual stream: reconstruction, sparsity, and what the model loses by it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from hsae.activations import Store
from hsae.causal_lm import CausalLM
from hsae.metrics import DictionaryTotals, recovered
from hsae.progress import Progress

Reconstruction = tuple[Float[Tensor, "batch d_sae"], Float[Tensor, "batch d_in"]]
"""Codes (latent activations or cluster memberships) and the reconstruction that they give."""


Sums = dict[str, Float[Tensor, " context"]]
"""Sums over the tokens of each context that are kept, in the order of the store; float64."""


class Split(StrEnum):
    """What dictionaries are evaluated on: `final` once, by the last comparison (hsae/sweeps/final.yaml)."""

    test = "test"
    final = "final"


@dataclass
class EvaluationConfig:
    """Section `evaluate`."""

    split: Split


class Evaluation(NamedTuple):
    """What `evaluate` measures."""

    language_model: dict[str, float]
    """The language model's own losses."""
    methods: dict[str, dict[str, float]]
    """The metrics of each method."""
    contexts: Sums
    """n_tokens, sum_squares (of x - mean(x)), ce_clean, ce_mean_ablated: what no method changes."""
    by_context: dict[str, Sums]
    """Of each method: active (codes that are not zero), squared_error, ce."""

    def tensors(self) -> dict[str, Tensor]:
        """The sums as tensors of one file: contexts/<sum>, and <method>/<sum> of each method."""
        groups = {"contexts": self.contexts, **self.by_context}
        return {f"{group}/{name}": values for group, sums in groups.items() for name, values in sums.items()}


class _Clean(NamedTuple):
    """What the language model says of a batch of contexts by itself."""

    log_p: Float[Tensor, "context pos n_vocab"]
    p: Float[Tensor, "context pos n_vocab"]
    next_tokens: Integer[Tensor, "context pos 1"]
    kept: Bool[Tensor, "context pos"]


@dataclass
class _Method:
    reconstruct: Callable[[Tensor], Reconstruction]
    totals: DictionaryTotals = field(default_factory=DictionaryTotals)
    kl: float = 0.0
    parts: list[Sums] = field(default_factory=list)

    def contexts(self) -> Sums:
        return {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}

    def ce(self) -> float:
        return sum(part["ce"].sum().item() for part in self.parts)


@torch.no_grad()
def evaluate(
    model: CausalLM,
    store: Store,
    tokens: Integer[Tensor, " corpus"],
    methods: dict[str, Callable[[Tensor], Reconstruction]],
) -> Evaluation:
    """Replace the stored residual stream by each method's reconstruction of it, over whole contexts in their order.

    Rows that are masked (`activations.Mask`) keep their stream, and neither they nor what is predicted there count.
    `tokens` are those of the whole corpus, into which the store's offsets point; a method maps a batch of normalised
    activations to its codes and reconstruction. The language model's own losses are the clean one, and those with the
    stream set to zero or to its training mean; in nats per character. The metrics of each method:

    - l0, dead_fraction: of the codes; fvu, explained_variance = 1 - fvu: of the normalised activations
    - ce: cross-entropy with the reconstruction in place; ce_recovered_zero, ce_recovered_mean: the share of the loss
      due to zero and to mean ablation that is recovered
    - kl: KL(clean || replaced) of the next-character distributions; kl_recovered_mean: 1 - kl / KL(clean || mean)
    """
    mean = store.normalizer.mean
    ablations = {"zero": torch.zeros_like(mean), "mean": mean}
    entries = {name: _Method(reconstruct) for name, reconstruct in methods.items()}
    ablated = {name: _Method(lambda x: (x, x)) for name in ablations}
    windows, kept = store.windows(tokens), store.kept.view(-1, store.context)
    acts = store.activations.acts.unflatten(0, (-1, store.context))
    shared: list[Sums] = []
    with Progress("evaluate", len(windows)) as bar:
        for chunk, targets, own in zip(acts.split(32), windows.split(32), kept.split(32), strict=True):
            own = own.to(chunk.device)
            log_p = model.logits(chunk, store.layer).log_softmax(-1)
            clean = _Clean(log_p, log_p.exp(), targets[:, 1:, None].to(chunk.device).long(), own)
            x = store.normalizer(chunk[own])
            for method in entries.values():
                codes, x_hat = method.reconstruct(x)
                method.totals.add(codes, x_hat, x)
                sums = {"active": (codes != 0).sum(1), "squared_error": (x - x_hat).square().double().sum(1)}
                sums = {name: _by_context(values, own) for name, values in sums.items()}
                logits = model.logits(_replaced(chunk, own, store.normalizer.inverse(x_hat)), store.layer)
                _add_losses(method, sums, logits, clean)
            for name, value in ablations.items():
                ablated_stream = _replaced(chunk, own, value.expand(len(x), -1))
                _add_losses(ablated[name], {}, model.logits(ablated_stream, store.layer), clean)
            shared.append({"n_tokens": own.double().sum(1), "ce_clean": _losses(log_p, clean)})
            bar.advance(len(chunk))
    contexts = {name: torch.cat([part[name] for part in shared]) for name in ("n_tokens", "ce_clean")}
    contexts |= {"sum_squares": _distances(store), "ce_mean_ablated": ablated["mean"].contexts()["ce"]}
    n = int(store.kept.sum())
    language_model = {"n_tokens": n, "ce_clean": contexts["ce_clean"].sum().item() / n}
    language_model |= {f"ce_{name}_ablated": method.ce() / n for name, method in ablated.items()}
    language_model["kl_mean_ablated"] = ablated["mean"].kl / n
    metrics = {name: _metrics(method, language_model) for name, method in entries.items()}
    return Evaluation(language_model, metrics, contexts, {name: method.contexts() for name, method in entries.items()})


def _replaced(
    chunk: Float[Tensor, "context pos d_in"], kept: Bool[Tensor, "context pos"], rows: Float[Tensor, "kept d_in"]
) -> Float[Tensor, "context pos d_in"]:
    """The stream with these rows in the places of the kept ones."""
    replaced = chunk.clone()
    replaced[kept] = rows
    return replaced


def _by_context(values: Shaped[Tensor, " kept"], kept: Bool[Tensor, "context pos"]) -> Float[Tensor, " context"]:
    """Sums over each context of what the kept rows have."""
    placed = torch.zeros(kept.shape, dtype=torch.float64, device=values.device)
    placed[kept] = values.double()
    return placed.sum(1)


def _distances(store: Store) -> Float[Tensor, " context"]:
    """Squared distance of the normalised activations from their mean."""
    mean = sum(x.double().sum(0) for x in store.batches()) / store.kept.sum()
    distances = torch.cat([(x - mean).square().sum(1) for x in store.batches()])
    return _by_context(distances, store.kept.view(-1, store.context).to(distances.device))


def _losses(log_p: Float[Tensor, "context pos n_vocab"], clean: _Clean) -> Float[Tensor, " context"]:
    losses = -log_p.gather(-1, clean.next_tokens)[..., 0].double()
    return (losses * clean.kept).sum(1)


def _add_losses(method: _Method, own: Sums, logits: Float[Tensor, "context pos n_vocab"], clean: _Clean) -> None:
    """Add a batch, of which `own` is known already."""
    log_p = logits.log_softmax(-1)
    method.parts.append({**own, "ce": _losses(log_p, clean)})
    # In place: of 49,152 tokens, each tensor more takes longer than the logits do.
    kl = torch.sub(clean.log_p, log_p, out=log_p).mul_(clean.p).sum(-1)
    method.kl += (kl.double() * clean.kept).sum().item()


def _metrics(method: _Method, language_model: dict[str, float]) -> dict[str, float]:
    n = language_model["n_tokens"]
    ce, kl, clean = method.ce() / n, method.kl / n, language_model["ce_clean"]
    return {
        "latents": method.totals.n_latents,
        **method.totals.metrics(),
        "ce": ce,
        "ce_recovered_zero": recovered(ce, clean, language_model["ce_zero_ablated"]),
        "ce_recovered_mean": recovered(ce, clean, language_model["ce_mean_ablated"]),
        "kl": kl,
        "kl_recovered_mean": recovered(kl, 0.0, language_model["kl_mean_ablated"]),
    }
