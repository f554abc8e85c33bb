"""Which latents another seed finds again: directions of the HSAE matched with those of the control that is trained.

`make comparison` asks this of eight seeds at the full budget (hsae/seed_models.py); this, of one more, on the controls'
smaller budget, and for every living latent of the run itself. What lives and how it is matched is the same
(hsae/stability.py).
"""

from typing import Any

import numpy as np
import pandas as pd

from hsae.activations import Store
from hsae.hierarchical import HierarchicalSAE
from hsae.stability import RECURS, Directions, living, match, null_match
from hsae.streams import Stream


def recurrence(own: HierarchicalSAE, other: HierarchicalSAE, store: Store, stream: Stream) -> pd.DataFrame:
    """A row for each living latent of `own`: level, index, and the cosine of its decoder direction with its match's.

    Directions are those in the space of x, matched one to one among what lives on `store`, the validation split. `null`
    is the cosine of as many random directions with the same second moments, whose order means nothing; `stream` draws
    them. Where `other` has fewer living latents, the cosines of those that are left over are nan.
    """
    frames = []
    for level in (1, 2):
        a, b = (_directions(model, level, store) for model in (own, other))
        found, null = match(a.rows, b.rows), null_match(a.rows, b.rows, stream.of(f"level {level}"))
        cosines = np.full((2, len(a.latents)), np.nan)
        for row, matching in zip(cosines, (found, null), strict=True):
            row[matching.a] = matching.cosines
        frames.append(pd.DataFrame({"level": level, "latent": a.latents, "cosine": cosines[0], "null": cosines[1]}))
    return pd.concat(frames, ignore_index=True)


def _directions(model: HierarchicalSAE, level: int, store: Store) -> Directions:
    if level == 1:
        return living(model.level1.encode, model.level1.W_dec, store.batches())
    return living(model.encode_h2, model.directions_h2, store.batches())


def summarize(table: pd.DataFrame) -> dict[str, Any]:
    """level -> means of `cosine` and `null` over pairs; shares of latents, and of random directions, found again.

    Shares are of all living latents: one without a partner is not found again. None of what there is none of.
    """
    found = {}
    for level in (1, 2):
        cosine, null = (table.loc[table["level"] == level, column] for column in ("cosine", "null"))
        measured = {
            "cosine": cosine.mean(),
            "null": null.mean(),
            "recurs": (cosine >= RECURS).mean(),
            "recurs_null": (null >= RECURS).mean(),
        }
        found[f"level{level}"] = {name: None if np.isnan(value) else float(value) for name, value in measured.items()}
    return found
