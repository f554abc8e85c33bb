"""How much a representation tells of labels: lower bounds on mutual information, by probes on held-out text."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Int8
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from hsae.config import check, check_positive
from hsae.products import gram, product
from hsae.streams import Stream

Settings = list[tuple[float, float]]  # learning rate and weight decay of every label


@dataclass
class ProbeConfig:
    """AdamW on batches of tokens, from each rate of `lr`, which falls to 0 over `epochs`.

    The last `held_out` of the tokens (a share) choose, label by label: the rate, at the first `weight_decay`; then one
    of all `weight_decay` at that rate; and when to stop. One setting for all representations would favour some: what
    suits dense activations leaves clusters, of which a token has one, far from converged. Decay is decoupled
    (Loshchilov & Hutter 2019). Intervals come from `resamples` bootstrap samples.
    """

    epochs: int
    batch_size: int
    lr: list[float]
    weight_decay: list[float]
    held_out: float
    resamples: int

    def __post_init__(self) -> None:
        check_positive(self, ["epochs", "batch_size", "resamples"])
        check("lr", self.lr, "one or more rates above 0", bool(self.lr) and min(self.lr) > 0)
        decays = self.weight_decay
        check("weight_decay", decays, "one or more numbers, 0 or above", bool(decays) and min(decays) >= 0)
        check("held_out", self.held_out, "between 0 and 1", 0 < self.held_out < 1)


class Choice(NamedTuple):
    """What the held-out tokens chose for a label."""

    held_out: float
    """Their cross-entropy, in nats."""
    lr: float
    weight_decay: float
    epochs: int


@dataclass(frozen=True)
class Probe:
    """Softmax regressions from one representation to several labels, one for each of several settings.

    Inputs are divided by `scale`. The classes of a label, of which `sizes` says how many there are, are neighbours.
    """

    scale: Float[Tensor, " d"]
    weight: Float[Tensor, "setting class d"]
    bias: Float[Tensor, "setting class"]
    sizes: list[int]

    def logits(self, scaled: Float[Tensor, "token d"]) -> list[Float[Tensor, "token setting class_of_label"]]:
        """Of every label, from inputs that have been divided by `scale`."""
        logits = product(scaled, self.weight.flatten(0, 1).T, self.bias.flatten())
        return list(logits.unflatten(1, self.bias.shape).split(self.sizes, 2))

    def cross_entropies(
        self, inputs: Float[Tensor, "token d"], labels: Int[Tensor, "token label"]
    ) -> Float[Tensor, "token setting label"]:
        """-log p of every token's labels, in nats."""
        losses = [
            F.cross_entropy(z.flatten(0, 1), labels[:, i].repeat_interleave(z.shape[1]), reduction="none")
            for i, z in enumerate(self.logits(inputs / self.scale))
        ]
        return torch.stack(losses, 1).view(len(inputs), -1, len(self.sizes))

    def gradients(
        self, scaled: Float[Tensor, "token d"], labels: Int[Tensor, "token label"]
    ) -> tuple[Float[Tensor, "setting class d"], Float[Tensor, "setting class"]]:
        """Of the cross-entropies' sum over labels and mean over tokens, by weight and bias: softmax less one-hot."""
        residuals = torch.empty(len(scaled), *self.bias.shape, device=scaled.device)
        for i, (z, out) in enumerate(zip(self.logits(scaled), residuals.split(self.sizes, 2), strict=True)):
            one_hot = (labels[:, i, None] == torch.arange(z.shape[2], device=z.device)).to(z)
            torch.sub(z.softmax(2), one_hot[:, None], out=out)
        residuals = residuals.flatten(1).div_(len(scaled))
        # As a product: a sum over rows takes several times as long.
        weight, bias = gram(residuals, scaled).contiguous(), residuals.new_ones(len(residuals)) @ residuals
        return weight.view_as(self.weight), bias.view_as(self.bias)

    def classes(self) -> list[slice]:
        """Where each label's classes stand."""
        return [slice(int(start), int(end)) for start, end in pairwise(np.cumsum([0, *self.sizes]))]


def fit_probe(
    inputs: Float[Tensor, "token d"],
    labels: Int[Tensor, "token label"],
    sizes: list[int],
    config: ProbeConfig,
    stream: Stream,
) -> tuple[Probe, list[Choice]]:
    """Multinomial logistic regressions of all labels (of `sizes` classes) at once: they share nothing but the product.

    `inputs` are in the order of the text, so that the tokens held out at its end are other contexts. Every label keeps
    the weights of the rate, decay and epoch at which its own held-out cross-entropy was lowest. Inputs are divided by
    the root mean square of their nonzero values: by their standard deviation, rare latents would be huge where they are
    active. `stream` is that of the order of batches, one for all settings, which are so compared on the same batches.
    Raises ValueError for too few tokens.
    """
    n = round(len(inputs) * (1 - config.held_out))
    check("tokens", len(inputs), "enough to fit on some and hold out others", 0 < n < len(inputs))
    scale = (inputs.square().sum(0) / (inputs != 0).sum(0).clamp(min=1)).sqrt().clamp(min=1e-8)
    best = Probe(scale, inputs.new_zeros(1, sum(sizes), inputs.shape[1]), _log_frequencies(labels[:n], sizes), sizes)
    start, choices = replace(best, weight=best.weight.clone(), bias=best.bias.clone()), [Choice(torch.inf, 0, 0, 0)]
    choices *= len(sizes)

    def try_all(settings: list[Settings]) -> None:
        for epoch, probe in enumerate(_train(inputs[:n], labels[:n], start, settings, config, stream), 1):
            held_out = zip(inputs[n:].split(8192), labels[n:].split(8192), strict=True)
            losses = torch.cat([probe.cross_entropies(*some) for some in held_out]).mean(0).tolist()
            for setting, rows in enumerate(losses):
                for label, (loss, place) in enumerate(zip(rows, probe.classes(), strict=True)):
                    if loss < choices[label].held_out:
                        choices[label] = Choice(loss, *settings[setting][label], epoch)
                        best.weight[0, place] = probe.weight[setting, place]
                        best.bias[0, place] = probe.bias[setting, place]

    first, *others = config.weight_decay
    try_all([[(lr, first)] * len(sizes) for lr in config.lr])
    if others:
        try_all([[(choice.lr, decay) for choice in choices] for decay in others])
    return best, choices


@torch.no_grad()
def _train(
    inputs: Float[Tensor, "token d"],
    labels: Int[Tensor, "token label"],
    start: Probe,
    settings: list[Settings],
    config: ProbeConfig,
    stream: Stream,
) -> Iterator[Probe]:
    """Train with all settings side by side, on the same batches; the probe after every epoch."""
    n = len(settings)
    probe = replace(start, weight=start.weight.repeat(n, 1, 1), bias=start.bias.repeat(n, 1))
    parts = [(setting, label) for setting in range(n) for label in range(len(start.sizes))]
    places = [(setting, start.classes()[label]) for setting, label in parts]
    parameters = [[tensor[place] for tensor in (probe.weight, probe.bias)] for place in places]
    groups = [
        {"params": tensors, "lr": settings[setting][label][0], "weight_decay": settings[setting][label][1]}
        for tensors, (setting, label) in zip(parameters, parts, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    steps = config.epochs * -(-len(inputs) // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator, inputs = stream.torch(), inputs / start.scale
    for _ in range(config.epochs):
        for rows in torch.randperm(len(inputs), generator=generator).to(inputs.device).split(config.batch_size):
            gradients = probe.gradients(inputs[rows], labels[rows])
            for tensors, place in zip(parameters, places, strict=True):
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    tensor.grad = gradient[place]
            optimizer.step()
            schedule.step()
        yield probe


def _log_frequencies(labels: Int[Tensor, "token label"], sizes: list[int]) -> Float[Tensor, "1 class"]:
    """Where biases start: a class that never occurs counts as one that occurred once."""
    counts = [(labels[:, [i]] == torch.arange(n, device=labels.device)).sum(0) for i, n in enumerate(sizes)]
    return torch.cat([(count.clamp(min=1) / len(labels)).log() for count in counts])[None]


def compare(
    train: Float[Tensor, "train d"],
    test: Float[Tensor, "test d"],
    y_train: Int8[ndarray, "train label"],
    y_test: Int8[ndarray, "test label"],
    names: list[str],
    kept: Bool[ndarray, "context pos"],
    config: ProbeConfig,
    stream: Stream,
) -> pd.DataFrame:
    """`bounds` of a representation on the tokens `test`, by probes that were fitted on the tokens `train` alone.

    With the columns of `Choice`: held_out, lr, weight_decay and epochs. Representations that get the same `stream` are
    compared pair by pair, on the same batches and on the same draws of contexts.
    """
    sizes = (1 + np.maximum(y_train.max(0), y_test.max(0))).tolist()
    labels = [torch.from_numpy(y).long().to(train.device) for y in (y_train, y_test)]
    probe, choices = fit_probe(train, labels[0], sizes, config, stream.of("order of batches"))
    batches = zip(test.split(8192), labels[1].split(8192), strict=True)
    losses = torch.cat([probe.cross_entropies(*some) for some in batches])[:, 0].cpu().numpy()
    found = bounds(losses, y_test.astype(int), names, kept, config.resamples, stream.of("contexts drawn"))
    return found.join(pd.DataFrame(choices))


def bounds(
    cross_entropies: Float[ndarray, "token label"],
    labels: Int[ndarray, "token label"],
    names: list[str],
    kept: Bool[ndarray, "context pos"],
    resamples: int,
    stream: Stream,
) -> pd.DataFrame:
    """Lower bound on the information, in nats, that a representation holds of each label: H(Y) - cross-entropy.

    No probe does better than I(inputs; Y) allows (Barber & Agakov 2003); a better kind of probe may find more, so that
    a bound of an encoding may exceed that of what it encodes. Columns: label, entropy (H(Y), of the same tokens),
    bound, low, high (95% interval: percentiles over samples of whole contexts, as tokens of one are not independent)
    and share (of H(Y)). All labels are measured on the same samples. The tokens are those of whole contexts that are
    `kept`, in their order. Raises ValueError where they are not as many, or none.
    """
    n_kept, n_contexts = int(kept.sum()), len(kept)
    check("tokens", len(labels), f"as many as are kept (={n_kept}), and above 0", len(labels) == n_kept > 0)
    weights = stream.numpy().multinomial(n_contexts, np.full(n_contexts, 1 / n_contexts), resamples)
    weights = np.concatenate([np.ones((1, n_contexts)), weights])  # the first: what was measured
    n, rows = weights @ kept.sum(1), []
    for i, name in enumerate(names):
        losses = np.zeros(kept.shape)
        losses[kept] = cross_entropies[:, i]
        loss = weights @ losses.sum(1) / n
        entropy = _entropies(weights @ _counts(labels[:, i], kept) / n[:, None])
        bound = entropy - loss
        low, high = np.quantile(bound[1:], [0.025, 0.975])
        share = bound[0] / entropy[0] if entropy[0] > 0 else np.nan
        rows.append({"label": name, "entropy": entropy[0], "bound": bound[0], "low": low, "high": high, "share": share})
    return pd.DataFrame(rows)


def nested(bounds: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Entropy, bound, interval and share by representation (a column) and label; None where a label never varies."""
    columns = ["entropy", "bound", "low", "high", "share"]
    numbers = bounds.set_index(["representation", "label"]).filter(columns).astype(object)
    numbers = numbers.where(numbers.notna(), None)
    return {
        str(name): {str(label): row for label, row in group.droplevel(0).to_dict("index").items()}
        for name, group in numbers.groupby(level=0, sort=False)
    }  # pyright: ignore[reportReturnType]


def _counts(classes: Int[ndarray, " token"], kept: Bool[ndarray, "context pos"]) -> Float[ndarray, "context class"]:
    """How often every class occurs in every context."""
    n_classes = int(classes.max(initial=0)) + 1
    cells = kept.nonzero()[0] * n_classes + classes
    return np.bincount(cells, minlength=len(kept) * n_classes).reshape(-1, n_classes).astype(float)


def _entropies(p: Float[ndarray, "sample class"]) -> Float[ndarray, " sample"]:
    """Entropy, in nats, of every row."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(1)
