"""How well a dictionary stands in for the residual stream: reconstruction, sparsity, and what the model loses by it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from hsae.activations import Store
from hsae.causal_lm import CausalLM
from hsae.metrics import DictionaryTotals, recovered
from hsae.progress import Progress

Reconstruction = tuple[Float[Tensor, "batch d_sae"], Float[Tensor, "batch d_in"]]
"""Codes (latent activations or cluster memberships) and the reconstruction that they give."""


Sums = dict[str, Float[Tensor, " context"]]
"""Sums over the characters of each context, in the order of the store; float64."""


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
    clean_ce, windows = [], store.windows(tokens)
    acts = store.activations.acts.unflatten(0, (-1, store.context))
    with Progress("evaluate", len(windows)) as bar:
        for chunk, targets in zip(acts.split(32), windows.split(32), strict=True):
            log_p = model.logits(chunk, store.layer).log_softmax(-1)
            clean = _Clean(log_p, log_p.exp(), targets[:, 1:, None].to(chunk.device).long())
            clean_ce.append(_losses(log_p, clean))
            x = store.normalizer(chunk.flatten(0, 1))
            for method in entries.values():
                codes, x_hat = method.reconstruct(x)
                method.totals.add(codes, x_hat, x)
                replaced = store.normalizer.inverse(x_hat).view_as(chunk)
                sums = {"active": codes != 0, "squared_error": (x - x_hat).square()}
                own = {name: _by_context(values, len(chunk)) for name, values in sums.items()}
                _add_losses(method, own, model.logits(replaced, store.layer), clean)
            for name, value in ablations.items():
                _add_losses(ablated[name], {}, model.logits(value.expand_as(chunk), store.layer), clean)
            bar.advance(len(chunk))
    n = len(store)
    contexts = {
        "n_tokens": torch.full((len(acts),), float(store.context), dtype=torch.float64, device=acts.device),
        "sum_squares": _distances(store, len(acts)),
        "ce_clean": torch.cat(clean_ce),
        "ce_mean_ablated": ablated["mean"].contexts()["ce"],
    }
    language_model = {"n_tokens": n, "ce_clean": contexts["ce_clean"].sum().item() / n}
    language_model |= {f"ce_{name}_ablated": method.ce() / n for name, method in ablated.items()}
    language_model["kl_mean_ablated"] = ablated["mean"].kl / n
    metrics = {name: _metrics(method, language_model) for name, method in entries.items()}
    return Evaluation(language_model, metrics, contexts, {name: method.contexts() for name, method in entries.items()})


def _by_context(values: Tensor, n_contexts: int) -> Float[Tensor, " context"]:
    return values.double().view(n_contexts, -1).sum(1)


def _distances(store: Store, n_contexts: int) -> Float[Tensor, " context"]:
    """Squared distance of the normalised activations from their mean."""
    mean = sum(x.double().sum(0) for x in store.batches()) / len(store)
    distances = [(x - mean).square().sum(1) for x in store.batches()]
    return _by_context(torch.cat(distances), n_contexts)


def _losses(log_p: Float[Tensor, "context pos n_vocab"], clean: _Clean) -> Float[Tensor, " context"]:
    return _by_context(-log_p.gather(-1, clean.next_tokens), len(log_p))


def _add_losses(method: _Method, own: Sums, logits: Float[Tensor, "context pos n_vocab"], clean: _Clean) -> None:
    """Add a batch, of which `own` is known already."""
    log_p = logits.log_softmax(-1)
    method.parts.append({**own, "ce": _losses(log_p, clean)})
    # In place: of 49,152 tokens, each tensor more takes longer than the logits do.
    kl = torch.sub(clean.log_p, log_p, out=log_p).mul_(clean.p).sum(-1)
    method.kl += kl.double().sum().item()


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
