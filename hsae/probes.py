"""How much a representation tells of labels: lower bounds on mutual information, by probes on held-out text."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Int8
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from hsae.config import check, check_positive
from hsae.products import linear


@dataclass
class ProbeConfig:
    """Adam on batches of tokens, once from each rate of `lr`, which falls to 0 over `epochs`.

    The last `held_out` of the tokens (a share) say which rate and when to stop: one that suits dense activations would
    leave clusters, of which a token has one, far from converged.
    `weight_decay` is decoupled (Loshchilov & Hutter 2019). Intervals come from `resamples` bootstrap samples.
    """

    epochs: int
    batch_size: int
    lr: list[float]
    weight_decay: float
    held_out: float
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        check_positive(self, ["epochs", "batch_size", "resamples"])
        check("lr", self.lr, "one or more rates above 0", bool(self.lr) and min(self.lr) > 0)
        check("weight_decay", self.weight_decay, "0 or above", self.weight_decay >= 0)
        check("held_out", self.held_out, "between 0 and 1", 0 < self.held_out < 1)


@dataclass(frozen=True)
class Probe:
    """Softmax regressions from one representation to several labels: inputs are divided by `scale`."""

    scale: Float[Tensor, " d"]
    weight: Float[Tensor, "class d"]
    bias: Float[Tensor, " class"]
    sizes: list[int]

    def cross_entropies(
        self, inputs: Float[Tensor, "token d"], labels: Int[Tensor, "token label"]
    ) -> Float[Tensor, "token label"]:
        """-log p of every token's labels, in nats."""
        logits = linear(inputs / self.scale, self.weight, self.bias).split(self.sizes, 1)
        return torch.stack([F.cross_entropy(z, labels[:, i], reduction="none") for i, z in enumerate(logits)], 1)


def fit_probe(
    inputs: Float[Tensor, "token d"],
    labels: Int[Tensor, "token label"],
    sizes: list[int],
    config: ProbeConfig,
) -> Probe:
    """Multinomial logistic regressions of all labels (of `sizes` classes) at once: they share nothing but the product.

    `inputs` are in the order of the text, so that the tokens held out at its end are other contexts. Every label keeps
    the weights of the rate and epoch at which its own held-out cross-entropy was lowest. Inputs are divided by the root
    mean square of their nonzero values: by their standard deviation, rare latents would be huge where they are active.
    """
    n = round(len(inputs) * (1 - config.held_out))
    check("tokens", len(inputs), "enough to fit on some and hold out others", 0 < n < len(inputs))
    nonzero = (inputs != 0).sum(0).clamp(min=1)
    scale = (inputs.square().sum(0) / nonzero).sqrt().clamp(min=1e-8)
    best = Probe(scale, inputs.new_zeros(sum(sizes), inputs.shape[1]), inputs.new_zeros(sum(sizes)), sizes)
    lowest = [torch.inf] * len(sizes)
    for lr in config.lr:
        for probe in _train(inputs[:n], labels[:n], best, lr, config):
            losses = probe.cross_entropies(inputs[n:], labels[n:]).mean(0).tolist()
            for label, (start, end) in enumerate(pairwise(np.cumsum([0, *sizes]))):
                if losses[label] < lowest[label]:
                    lowest[label] = losses[label]
                    best.weight[start:end], best.bias[start:end] = probe.weight[start:end], probe.bias[start:end]
    return best


def _train(
    inputs: Float[Tensor, "token d"], labels: Int[Tensor, "token label"], like: Probe, lr: float, config: ProbeConfig
) -> Iterator[Probe]:
    """Train from zero; the probe after every epoch."""
    probe = replace(like, weight=torch.zeros_like(like.weight), bias=torch.zeros_like(like.bias))
    parameters = [probe.weight.requires_grad_(), probe.bias.requires_grad_()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(inputs) // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(inputs), generator=generator).to(inputs.device).split(config.batch_size):
            optimizer.zero_grad()
            probe.cross_entropies(inputs[rows], labels[rows]).mean(0).sum().backward()
            optimizer.step()
            schedule.step()
        yield replace(probe, weight=probe.weight.detach(), bias=probe.bias.detach())


def compare(
    train: Float[Tensor, "train d"],
    test: Float[Tensor, "test d"],
    y_train: Int8[ndarray, "train label"],
    y_test: Int8[ndarray, "test label"],
    names: list[str],
    context: int,
    config: ProbeConfig,
) -> pd.DataFrame:
    """`bounds` of a representation on the tokens `test`, by probes that were fitted on the tokens `train`."""
    sizes = (1 + np.maximum(y_train.max(0), y_test.max(0))).tolist()
    labels = [torch.from_numpy(y).long().to(train.device) for y in (y_train, y_test)]
    probe = fit_probe(train, labels[0], sizes, config)
    with torch.no_grad():
        losses = torch.cat(
            [probe.cross_entropies(*some) for some in zip(test.split(8192), labels[1].split(8192), strict=True)]
        )
    return bounds(losses.cpu().numpy(), y_test.astype(int), names, context, config.resamples, config.seed)


def bounds(
    cross_entropies: Float[ndarray, "token label"],
    labels: Int[ndarray, "token label"],
    names: list[str],
    context: int,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Lower bound on the information, in nats, that a representation holds of each label: H(Y) - cross-entropy.

    No probe does better than I(inputs; Y) allows (Barber & Agakov 2003); a better kind of probe may find more, so that
    a bound of an encoding may exceed that of what it encodes. Columns: label, entropy (H(Y), of the same tokens),
    bound, low, high (95% interval: percentiles over samples of whole contexts, as tokens of one are not independent)
    and share (of H(Y)). Raises ValueError where the tokens are not whole contexts.
    """
    n = len(labels)
    check("tokens", n, f"a multiple of the context (={context})", n > 0 and n % context == 0)
    n_contexts = n // context
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(n_contexts, np.full(n_contexts, 1 / n_contexts), resamples)
    weights = np.concatenate([np.ones((1, n_contexts)), weights])  # the first: what was measured
    rows = []
    for i, name in enumerate(names):
        loss = weights @ cross_entropies[:, i].astype(float).reshape(n_contexts, context).sum(1) / n
        entropy = _entropies(weights @ _counts(labels[:, i], context) / n)
        bound = entropy - loss
        low, high = np.quantile(bound[1:], [0.025, 0.975])
        share = bound[0] / entropy[0] if entropy[0] > 0 else np.nan
        rows.append({"label": name, "entropy": entropy[0], "bound": bound[0], "low": low, "high": high, "share": share})
    return pd.DataFrame(rows)


def nested(bounds: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Entropy, bound, interval and share by representation (a column) and label; None where a label never varies."""
    numbers = bounds.set_index(["representation", "label"]).astype(object).where(lambda frame: frame.notna(), None)
    return {
        str(name): {str(label): row for label, row in group.droplevel(0).to_dict("index").items()}
        for name, group in numbers.groupby(level=0, sort=False)
    }  # pyright: ignore[reportReturnType]


def _counts(classes: Int[ndarray, " token"], context: int) -> Float[ndarray, "context class"]:
    """How often every class occurs in every context."""
    n_classes = int(classes.max(initial=0)) + 1
    cells = np.arange(len(classes)) // context * n_classes + classes
    return np.bincount(cells, minlength=len(classes) // context * n_classes).reshape(-1, n_classes).astype(float)


def _entropies(p: Float[ndarray, "sample class"]) -> Float[ndarray, " sample"]:
    """Entropy, in nats, of every row."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(1)
