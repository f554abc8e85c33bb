"""What other stages found out about each latent of an HSAE, put together."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

LEVELS = (1, 2)


@dataclass(frozen=True)
class Evidence:
    """Tables of the other stages, as they write them.

    edges: `graph.edges`. proxies: plots/interpretability_proxy.csv. information: plots/mutual_information.csv.
    recurrence, effects: the stages of these names. causal: tasks of metrics/causal_tracing.json.
    """

    edges: pd.DataFrame
    proxies: pd.DataFrame
    information: pd.DataFrame
    recurrence: pd.DataFrame
    effects: pd.DataFrame
    causal: dict[str, Any]

    def latents(self, level: int, n: int) -> pd.DataFrame:
        """A row for each of the `n` latents of a level; nan where something is not known of it.

        Columns: rule (n-grams of `length` tokens each, as JSON), codes (the same as numbers), proxy_f1, proxy_f1_null,
        cosine (with its match in another seed), cosine_null (the 95th percentile for random directions); of its removal
        tokens, kl, kl_null, and kl_choice and kl_null_choice, which are of other text, and there to choose latents by.
        """
        proxies = self.proxies.query("method == @name", local_dict={"name": f"HSAE level{level}"}).set_index("latent")
        recurrence = self.recurrence.query("level == @level").set_index("latent")
        effects = self.effects.query("level == @level").set_index("latent")
        table = pd.DataFrame(index=pd.RangeIndex(n, name="latent"))
        table = table.join(proxies[["rule", "codes", "length", "proxy_f1", "proxy_f1_null"]]).join(
            recurrence[["cosine"]]
        )
        removed = effects[["tokens", "kl", "kl_null", "kl_choice", "kl_null_choice"]]
        return table.assign(cosine_null=recurrence["null"].quantile(0.95)).join(removed)

    @cached_property
    def children(self) -> pd.DataFrame:
        """A row per child and its parent, the largest weight first: those of `edges`, and u.

        u is the share of the parent's entropy that the child takes away; nan where the pair was not tested.
        """
        tested = self.information[["parent", "child", "u", "q"]]
        joined = self.edges.merge(tested, "left", ["parent", "child"])
        return joined.sort_values(["weight", "child"], ascending=[False, True], ignore_index=True)

    def causal_shares(self) -> pd.DataFrame:
        """A row per latent that was among the first of a task: level, latent, task, share, low, high.

        The share is that of the task's effect which the latent restores alone, with its 95% interval.
        """
        rows = [
            (level, found["latent"], task, found["sufficient"]["value"], *found["sufficient"]["interval"])
            for task, result in self.causal.items()
            for level in LEVELS
            for found in result.get("latents", {}).get(f"level{level}", [])
        ]
        return pd.DataFrame(rows, columns=["level", "latent", "task", "share", "low", "high"])
