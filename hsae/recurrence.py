"""Which latents another seed finds again: directions of the HSAE matched with those of the control that is trained.

`make comparison` asks this of eight seeds at the full budget; this, of one more, on the controls' smaller budget, and
for every latent of the run itself.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch

from hsae.hierarchical import HierarchicalSAE
from hsae.stability import RECURS, match, random_like


@torch.no_grad()
def recurrence(own: HierarchicalSAE, other: HierarchicalSAE, seed: int) -> pd.DataFrame:
    """A row for each latent of `own`: its level, index, and the cosine of its decoder direction with its match's.

    Directions are those in the space of x, matched one to one (`stability.match`); `null` is the cosine of as many
    random directions with the same second moments, whose order means nothing. `seed` is that of the null.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for level in (1, 2):
        rows = (model.level1.W_dec if level == 1 else model.directions_h2 for model in (own, other))
        a, b = (directions.double().cpu().numpy() for directions in rows)
        null = match(random_like(a, rng), random_like(b, rng)).cosines
        found = match(a, b)
        cosines = pd.DataFrame({"level": level, "latent": found.a, "cosine": found.cosines, "null": null})
        frames.append(cosines)
    return pd.concat(frames, ignore_index=True)


def summarize(table: pd.DataFrame) -> dict[str, Any]:
    """level -> means of `cosine` and `null`, and the shares of latents, and of random directions, found again."""
    found = {}
    for level, rows in table.groupby("level"):
        cosine, null = (rows[column].to_numpy(float) for column in ("cosine", "null"))
        found[f"level{level}"] = {
            "cosine": float(cosine.mean()),
            "null": float(null.mean()),
            "recurs": float((cosine >= RECURS).mean()),
            "recurs_null": float((null >= RECURS).mean()),
        }
    return found
