"""How well a dictionary stands in for the residual stream: reconstruction, sparsity, and what the model loses by it."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from hsae.activations import Store
from hsae.gpt import GPT
from hsae.language_model import next_token_loss
from hsae.metrics import DictionaryTotals, recovered
from hsae.progress import Progress

Name = TypeVar("Name", bound=Hashable)

Reconstruction = tuple[Float[Tensor, "batch d_sae"], Float[Tensor, "batch d_in"]]
"""Codes (latent activations or cluster memberships) and the reconstruction that they give."""


@dataclass
class _Method:
    reconstruct: Callable[[Tensor], Reconstruction]
    totals: DictionaryTotals = field(default_factory=DictionaryTotals)
    ce: float = 0.0
    kl: float = 0.0


@torch.no_grad()
def evaluate(
    model: GPT,
    store: Store,
    tokens: Integer[Tensor, " corpus"],
    methods: dict[Name, Callable[[Tensor], Reconstruction]],
) -> tuple[dict[str, float], dict[Name, dict[str, float]]]:
    """Replace the stored residual stream by each method's reconstruction of it, over whole contexts in their order.

    `tokens` are those of the whole corpus, into which the store's offsets point; a method maps a batch of normalised
    activations to its codes and reconstruction. Returns the language model's own losses (clean, and with the stream
    set to zero or to its training mean; nats per character) and the metrics of each method:

    - l0, dead_fraction: of the codes; fvu, explained_variance = 1 - fvu: of the normalised activations
    - ce: cross-entropy with the reconstruction in place; ce_recovered_zero, ce_recovered_mean: the share of the loss
      due to zero and to mean ablation that is recovered
    - kl: KL(clean || replaced) of the next-character distributions; kl_recovered_mean: 1 - kl / KL(clean || mean)
    """
    mean = store.normalizer.mean
    ablations = {"zero": torch.zeros_like(mean), "mean": mean}
    entries = {name: _Method(reconstruct) for name, reconstruct in methods.items()}
    ablated = {name: _Method(lambda x: (x, x)) for name in ablations}
    clean_ce, windows = 0.0, store.windows(tokens)
    acts = store.activations.acts.unflatten(0, (-1, store.context))
    with Progress("evaluate", len(windows)) as bar:
        for chunk, targets in zip(acts.split(32), windows.split(32), strict=True):
            targets = targets.to(chunk.device).long()
            clean = model.logits(chunk, store.layer).log_softmax(-1)
            clean_ce += next_token_loss(clean, targets).double().sum().item()
            x = store.normalizer(chunk.flatten(0, 1))
            for method in entries.values():
                codes, x_hat = method.reconstruct(x)
                method.totals.add(codes, x_hat, x)
                replaced = store.normalizer.inverse(x_hat).view_as(chunk)
                _add_losses(method, model.logits(replaced, store.layer), clean, targets)
            for name, value in ablations.items():
                _add_losses(ablated[name], model.logits(value.expand_as(chunk), store.layer), clean, targets)
            bar.advance(len(chunk))
    n = len(store)
    language_model = {"n_tokens": n, "ce_clean": clean_ce / n}
    language_model |= {f"ce_{name}_ablated": method.ce / n for name, method in ablated.items()}
    language_model["kl_mean_ablated"] = ablated["mean"].kl / n
    return language_model, {name: _metrics(method, language_model) for name, method in entries.items()}


def _add_losses(method: _Method, logits: Tensor, clean: Tensor, tokens: Tensor) -> None:
    """`clean` are log-probabilities."""
    method.ce += next_token_loss(logits, tokens).double().sum().item()
    kl = F.kl_div(logits.log_softmax(-1), clean, reduction="none", log_target=True)
    method.kl += kl.double().sum().item()


def _metrics(method: _Method, language_model: dict[str, float]) -> dict[str, float]:
    n = language_model["n_tokens"]
    ce, kl, clean = method.ce / n, method.kl / n, language_model["ce_clean"]
    return {
        "latents": method.totals.n_latents,
        **method.totals.metrics(),
        "ce": ce,
        "ce_recovered_zero": recovered(ce, clean, language_model["ce_zero_ablated"]),
        "ce_recovered_mean": recovered(ce, clean, language_model["ce_mean_ablated"]),
        "kl": kl,
        "kl_recovered_mean": recovered(kl, 0.0, language_model["kl_mean_ablated"]),
    }
