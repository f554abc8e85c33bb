"""Steering: a direction is added to the residual stream everywhere; what it makes likelier, and what it damages."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Integer
from numpy import ndarray
from torch import Tensor

from hsae.activations import Store
from hsae.config import check, check_positive
from hsae.gpt import GPT
from hsae.language_model import next_token_loss
from hsae.progress import Progress
from hsae.statistics import cluster_weights

BATCH = 64  # contexts at a time


@dataclass
class SteeringConfig:
    """Section `steering`.

    contexts: of the test split. doses: lengths of what is added, in units of the root mean square norm of a normalised
    activation. random: directions to compare with. damage: cross-entropy at which gains are compared, nats.
    """

    contexts: int
    doses: list[float]
    random: int
    damage: float

    def __post_init__(self) -> None:
        check_positive(self, ["contexts", "random", "damage"])
        check("doses", self.doses, "ascending, above 0", self.doses == sorted(set(self.doses)) and min(self.doses) > 0)


@dataclass(frozen=True)
class Response:
    """What a direction does at every dose, context by context; means over characters, nats."""

    gain: Float[ndarray, "class dose context"]
    """Added log probability of each class of next characters."""
    damage: Float[ndarray, "dose context"]
    """Added cross-entropy of the text."""


@torch.no_grad()
def responses(
    model: GPT,
    store: Store,
    tokens: Integer[Tensor, " corpus"],
    directions: Float[Tensor, "direction d_in"],
    classes: Bool[Tensor, "class vocab"],
    config: SteeringConfig,
) -> list[Response]:
    """The response to each direction (scaled to unit length) on the first contexts of a store.

    Raises ValueError if the store has fewer contexts than `config.contexts`.
    """
    acts = store.activations.acts.unflatten(0, (-1, store.context))
    check("contexts", config.contexts, f"at most the store's {len(acts)}", config.contexts <= len(acts))
    acts, windows = acts[: config.contexts], store.windows(tokens)[: config.contexts].long()
    norm = store.normalizer(acts.flatten(0, 1)).square().sum(1).mean().sqrt()
    clean = [_measure(model, store.layer, part, own, classes) for part, own in _parts(acts, windows)]
    found = []
    with Progress("steering", len(directions)) as bar:
        for direction in directions / directions.norm(dim=1, keepdim=True):
            by_dose = []
            for dose in config.doses:
                added = direction * (dose * norm * store.normalizer.scale)
                parts = zip(_parts(acts, windows), clean, strict=True)
                by_dose.append(
                    torch.cat(
                        [
                            _measure(model, store.layer, part + added, own, classes) - base
                            for (part, own), base in parts
                        ],
                        1,
                    )
                )
            changes = torch.stack(by_dose, 1).cpu().numpy().astype(float)
            found.append(Response(changes[1:], changes[0]))
            bar.advance()
    return found


def gain_at(damage: float, gains: Float[ndarray, " dose"], damages: Float[ndarray, " dose"]) -> float:
    """The gain at a given damage: between doses, damage and gain go together linearly; nan beyond the largest dose.

    Only as far as damage grows with the dose: what does harm at a small dose and less at a larger one is no bargain.
    """
    grown = np.maximum.accumulate(np.append(0.0, damages))
    if grown[-1] < damage:
        return float("nan")
    return float(np.interp(damage, grown, np.append(0.0, gains)))


def frame(responses: dict[str, Response], random: list[Response], class_index: int, doses: list[float]) -> pd.DataFrame:
    """A row per direction and dose: mean gain of one class, mean damage. Columns: direction, dose, gain, damage.

    Random directions are one, their mean.
    """
    curves = {name: (own.gain[class_index].mean(1), own.damage.mean(1)) for name, own in responses.items()}
    chance = [(own.gain[class_index].mean(1), own.damage.mean(1)) for own in random]
    curves["random (mean)"] = tuple(np.mean(values, axis=0) for values in zip(*chance, strict=True))
    return pd.concat(
        [
            pd.DataFrame({"direction": name, "dose": doses, "gain": gain, "damage": damage})
            for name, (gain, damage) in curves.items()
        ]
    )


def summarize(
    responses: dict[str, Response], random: list[Response], class_index: int, config: SteeringConfig, seed: int
) -> dict[str, Any]:
    """direction -> gain and damage at every dose, and the gain at `config.damage` with its interval over contexts.

    `random`: that gain of every random direction, the mean of them, and how many of them a direction surpasses.
    """
    weights = cluster_weights(random[0].damage.shape[1], seed) / random[0].damage.shape[1]
    weights = np.vstack([np.full(weights.shape[1], 1 / weights.shape[1]), weights])

    def at_damage(response: Response) -> ndarray:
        gains, damages = response.gain[class_index] @ weights.T, response.damage @ weights.T
        return np.array([gain_at(config.damage, gains[:, i], damages[:, i]) for i in range(len(weights))])

    by_chance = np.array([at_damage(response)[0] for response in random])
    known = by_chance[np.isfinite(by_chance)]
    result: dict[str, Any] = {
        "random": {
            "gain_at_damage": [_number(v) for v in by_chance],
            "mean": _number(known.mean() if len(known) else np.nan),
        }
    }
    for name, response in responses.items():
        drawn = at_damage(response)
        reached = np.isfinite(drawn).all()
        result[name] = {
            "gain": response.gain[class_index].mean(1).tolist(),
            "damage": response.damage.mean(1).tolist(),
            "gain_at_damage": _number(drawn[0]),
            "interval": np.percentile(drawn[1:], [2.5, 97.5]).tolist() if reached else None,
            "surpasses": f"{int((drawn[0] > known).sum())} of {len(known)}" if reached else None,
        }
    return result


def _measure(
    model: GPT, layer: int, stream: Tensor, windows: Tensor, classes: Bool[Tensor, "class vocab"]
) -> Float[Tensor, "one_plus_class context"]:
    """Mean cross-entropy of each context, and the mean log probability of each class."""
    logits = model.logits(stream, layer)
    log_p = logits.log_softmax(-1)
    of_classes = [log_p[..., own].logsumexp(-1).mean(1) for own in classes]
    return torch.stack([next_token_loss(logits, windows).mean(1), *of_classes])


def _parts(acts: Tensor, windows: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(acts.split(BATCH), windows.split(BATCH), strict=True))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
