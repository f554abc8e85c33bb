"""Steering: a direction is added to the residual stream everywhere; what it makes likelier, and what it damages.

A latent that is steered with is the best of all those of its level. So it is compared with the best, by the same
choice, of as many random directions (`causal_nodes.promoted_by_chance`), not with random directions as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Integer
from numpy import ndarray
from torch import Tensor

from hsae.activations import Store
from hsae.causal_lm import CausalLM
from hsae.config import check, check_positive
from hsae.language_model import next_token_loss
from hsae.progress import Progress
from hsae.statistics import cluster_weights, holm
from hsae.streams import Stream

BATCH = 64  # contexts at a time


@dataclass
class SteeringConfig:
    """Section `steering`.

    contexts: of the test split. doses: lengths of what is added, in units of the root mean square norm of a normalised
    activation. damage: cross-entropy at which gains are compared, nats.
    """

    contexts: int
    doses: list[float]
    damage: float

    def __post_init__(self) -> None:
        check_positive(self, ["contexts", "damage"])
        ascending = bool(self.doses) and self.doses == sorted(set(self.doses)) and self.doses[0] > 0
        check("doses", self.doses, "ascending, above 0", ascending)


@dataclass(frozen=True)
class Response:
    """What a direction does at every dose, context by context; means over characters that are kept, nats."""

    gain: Float[ndarray, "class dose context"]
    """Added log probability of each class of next characters."""
    damage: Float[ndarray, "dose context"]
    """Added cross-entropy of the text."""


@torch.no_grad()
def responses(
    model: CausalLM,
    store: Store,
    tokens: Integer[Tensor, " corpus"],
    directions: Float[Tensor, "direction d_in"],
    classes: Bool[Tensor, "class vocab"],
    config: SteeringConfig,
) -> list[Response]:
    """The response to each direction (scaled to unit length) on the first contexts of a store, added to what is kept.

    Raises ValueError if the store has fewer contexts than `config.contexts`.
    """
    acts = store.activations.acts.unflatten(0, (-1, store.context))
    check("contexts", config.contexts, f"at most the store's {len(acts)}", config.contexts <= len(acts))
    acts, windows = acts[: config.contexts], store.windows(tokens)[: config.contexts].long().to(acts.device)
    kept = store.kept.view(-1, store.context)[: config.contexts].to(acts.device)
    norm = store.normalizer(acts[kept]).square().sum(1).mean().sqrt()
    parts = list(zip(acts.split(BATCH), windows.split(BATCH), kept.split(BATCH), strict=True))
    clean = [_measure(model, store.layer, *part, classes) for part in parts]
    found = []
    with Progress("steering", len(directions)) as bar:
        for direction in directions / directions.norm(dim=1, keepdim=True):
            by_dose = []
            for dose in config.doses:
                added = direction * (dose * norm * store.normalizer.scale)
                changed = [
                    _measure(model, store.layer, part + added * own[..., None], following, own, classes) - base
                    for (part, following, own), base in zip(parts, clean, strict=True)
                ]
                by_dose.append(torch.cat(changed, 1))
            changes = torch.stack(by_dose, 1).cpu().numpy().astype(float)
            found.append(Response(changes[1:], changes[0]))
            bar.advance()
    return found


@torch.no_grad()
def sample(
    model: CausalLM,
    layer: int,
    prompt: Int[Tensor, " pos"],
    added: Float[Tensor, "way d_model"],
    masked: list[int],
    n_tokens: int,
    stream: Stream,
) -> Int[Tensor, "way n_tokens"]:
    """Continue a prompt at temperature 1, in several ways: with a vector added to the stream after block `layer`.

    It is added everywhere but at `masked` positions (`Store.masked_positions`). All ways draw with the same random
    numbers, so that they part only where the vectors part them.
    """
    tokens, generator = prompt.expand(len(added), -1), stream.torch()
    to = added.new_ones(model.context, 1)
    to[masked] = 0
    for _ in range(n_tokens):
        residual = model.residual(tokens[:, -model.context :], layer)
        residual = residual + added[:, None] * to[: residual.shape[1]]
        cumulative = model.last_logits(residual, layer).softmax(-1).cumsum(-1)
        drawn = torch.rand(1, generator=generator).to(cumulative.device) * cumulative[:, -1:]
        tokens = torch.cat([tokens, torch.searchsorted(cumulative, drawn).clamp(max=cumulative.shape[1] - 1)], 1)
    return tokens[:, len(prompt) :]


def gain_at(damage: float, gains: Float[ndarray, " dose"], damages: Float[ndarray, " dose"]) -> float:
    """The gain at a given damage: between doses, damage and gain go together linearly; nan beyond the largest dose.

    Only as far as damage grows with the dose: what does harm at a small dose and less at a larger one is no bargain.
    """
    grown = np.maximum.accumulate(np.append(0.0, damages))
    if grown[-1] < damage:
        return float("nan")
    return float(np.interp(damage, grown, np.append(0.0, gains)))


def frame(
    responses: dict[str, Response], chance: dict[str, list[Response]], class_index: int, doses: list[float]
) -> pd.DataFrame:
    """A row per direction and dose: mean gain of one class, mean damage. Columns: direction, dose, gain, damage.

    Directions that chance gives instead of one of `responses` are one, their mean.
    """
    curves = {name: (own.gain[class_index].mean(1), own.damage.mean(1)) for name, own in responses.items()}
    for name, drawn in chance.items():
        random = [(own.gain[class_index].mean(1), own.damage.mean(1)) for own in drawn]
        curves[f"{name}, random (mean)"] = tuple(np.mean(values, axis=0) for values in zip(*random, strict=True))
    return pd.concat(
        [
            pd.DataFrame({"direction": name, "dose": doses, "gain": gain, "damage": damage})
            for name, (gain, damage) in curves.items()
        ]
    )


def summarize(
    responses: dict[str, Response],
    chance: dict[str, list[Response]],
    class_index: int,
    config: SteeringConfig,
    stream: Stream,
) -> dict[str, Any]:
    """Of each direction its gain and damage at every dose, and its gain at `config.damage`, with its 95% interval.

    `chance` has, of some of them, responses to what a random basis would have given instead. `p` is a direction's rank
    among itself and those that do so much damage; `random` has how many, and their mean. `difference` is the gain at
    that damage of the last direction that has a `chance` minus that of the first. Intervals are over contexts, which
    `stream` draws anew, the same ones for all: differences are paired. What a direction does not reach is None.
    """
    n_contexts = next(iter(responses.values())).damage.shape[1]
    weights = np.vstack([np.ones(n_contexts), cluster_weights(n_contexts, stream)]) / n_contexts

    def at_damage(response: Response, draws: slice) -> ndarray:
        gains, damages = response.gain[class_index] @ weights[draws].T, response.damage @ weights[draws].T
        return np.array([gain_at(config.damage, *own) for own in zip(gains.T, damages.T, strict=True)])

    drawn = {name: at_damage(response, slice(None)) for name, response in responses.items()}
    random = {name: np.array([at_damage(own, slice(1))[0] for own in rows]) for name, rows in chance.items()}
    known = {name: values[np.isfinite(values)] for name, values in random.items()}
    first, *_, last = (drawn[name] for name in chance)
    return {
        "random": {
            name: {"n": len(own), "mean": _number(own.mean() if len(own) else np.nan)} for name, own in known.items()
        },
        "difference": {"value": _number((last - first)[0]), "interval": _interval(last - first)},
        **{
            name: {
                "gain": response.gain[class_index].mean(1).tolist(),
                "damage": response.damage.mean(1).tolist(),
                "gain_at_damage": _number(drawn[name][0]),
                "interval": _interval(drawn[name]),
                **({"p": _rank(drawn[name][0], known[name])} if name in known else {}),
            }
            for name, response in responses.items()
        },
    }


def adjusted(tasks: dict[str, dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same, with p_holm beside each p: adjusted over all tasks and `names`, but for those that have no p.

    With n random directions no p is below 1 / (n + 1), and none of m that are adjusted below m / (n + 1).
    """
    known = {(task, name): tasks[task][name]["p"] for task in tasks for name in names}
    known = {key: p for key, p in known.items() if p is not None}
    p_holm = dict(zip(known, holm(np.array([*known.values()], dtype=float)).tolist(), strict=True))
    return {
        task: {**own, **{name: {**own[name], "p_holm": p_holm.get((task, name))} for name in names}}
        for task, own in tasks.items()
    }


def _rank(value: float, chance: Float[ndarray, " direction"]) -> float | None:
    return float((1 + (chance >= value).sum()) / (1 + len(chance))) if np.isfinite(value) else None


def _interval(drawn: Float[ndarray, " draw"]) -> list[float] | None:
    return np.percentile(drawn[1:], [2.5, 97.5]).tolist() if np.isfinite(drawn).all() else None


def _measure(
    model: CausalLM,
    layer: int,
    stream: Float[Tensor, "context pos d_model"],
    windows: Int[Tensor, "context pos_plus_1"],
    kept: Bool[Tensor, "context pos"],
    classes: Bool[Tensor, "class vocab"],
) -> Float[Tensor, "one_plus_class context"]:
    """Mean cross-entropy of each context, and the mean log probability of each class, over what is kept."""
    logits = model.logits(stream, layer)
    log_p = logits.log_softmax(-1)
    of_classes = [log_p[..., own].logsumexp(-1) for own in classes]
    values = torch.stack([next_token_loss(logits, windows), *of_classes])
    return values.masked_fill(~kept, 0).sum(2) / kept.sum(1).clamp(min=1)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
