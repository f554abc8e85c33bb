"""The parent-child graph of an HSAE on some tokens: who is whose child, by the decoder and by co-activation."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from hsae.coactivation import activity, sparse_acts
from hsae.hierarchical import HierarchicalSAE

NO_PARENT = -1


@dataclass(frozen=True)
class Graph:
    """Level-2 latents as parents of level-1 latents, on a set of tokens, in the order of the text."""

    weight: Float[Tensor, "parent child"]
    """Level-2 decoder, nonnegative (float64)."""
    h1: csr_array
    """Activations of the children (token, child)."""
    h2: csr_array
    """Activations of the parents (token, parent)."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return self.h1.shape[0]  # pyright: ignore[reportOptionalSubscript]

    @cached_property
    def on1(self) -> csc_array:
        """1 where a child is active (token, child)."""
        return activity(self.h1)

    @cached_property
    def on2(self) -> csc_array:
        """1 where a parent is active (token, parent)."""
        return activity(self.h2)

    @cached_property
    def both(self) -> Float[Tensor, "parent child"]:
        """Number of tokens on which parent and child are active."""
        return torch.from_numpy((self.on2.T @ self.on1).toarray()).double()

    @cached_property
    def parent_active(self) -> Float[Tensor, " parent"]:
        """Number of tokens on which the parent is active."""
        return torch.from_numpy(np.asarray(self.on2.sum(0), dtype=float))

    @cached_property
    def child_active(self) -> Float[Tensor, " child"]:
        """Number of tokens on which the child is active."""
        return torch.from_numpy(np.asarray(self.on1.sum(0), dtype=float))

    @cached_property
    def mean_child(self) -> Float[Tensor, "parent child"]:
        """Mean activation of the child over the tokens on which the parent is active."""
        total = torch.from_numpy((self.on2.T.astype(float) @ self.h1.astype(float)).toarray())
        return total / self.parent_active.clamp(min=1)[:, None]

    @property
    def p_parent_given_child(self) -> Float[Tensor, "parent child"]:
        """P(parent active | child active); 0 for a child that is never active."""
        return self.both / self.child_active.clamp(min=1)

    @property
    def share(self) -> Float[Tensor, "parent child"]:
        """Share of a child's incoming decoder weight that comes from each parent; columns sum to 1 or are 0."""
        return self.weight / self.weight.sum(0).clamp(min=1e-8)

    def parents(self, by: str) -> Int[Tensor, " child"]:
        """Each child's parent, or -1: none for a child that is dead or that nothing points at.

        By `decoder`: the largest decoder weight. By `coactivation`: the largest phi coefficient (the correlation of the
        two on-off variables) above 0; P(parent | child) itself would choose whatever is always active.
        """
        strength = self.weight if by == "decoder" else self.phi()
        best = strength.max(0)
        exists = (best.values > 0) & (self.child_active > 0)
        return torch.where(exists, best.indices, NO_PARENT)

    def phi(self) -> Float[Tensor, "parent child"]:
        """Phi coefficient of parent and child being active; 0 where either never or always is."""
        p, c = (count / self.n_tokens for count in (self.parent_active, self.child_active))
        covariance = self.both / self.n_tokens - p[:, None] * c
        deviation = (p * (1 - p)).clamp(min=0).sqrt()[:, None] * (c * (1 - c)).clamp(min=0).sqrt()
        return torch.where(deviation > 0, covariance / deviation.clamp(min=1e-12), 0.0)

    def shifted(self, shift: int) -> "Graph":
        """The same where level 2 is shifted along the text, in a circle, and so has nothing to do with level 1."""
        return replace(self, h2=self.h2[np.roll(np.arange(self.n_tokens), shift)])


@torch.no_grad()
def measure(model: HierarchicalSAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Graph:
    """The graph of a model on some tokens."""
    parts = [(sparse_acts(model.level1.encode, [x]), sparse_acts(model.encode_h2, [x])) for x in batches]
    h1, h2 = (csr_array(vstack(of_level)) for of_level in zip(*parts, strict=True))
    return Graph(model.level2.W_dec.detach().double().cpu(), h1, h2)


def edges(graph: Graph) -> pd.DataFrame:
    """Every edge of positive decoder weight to a living child, strongest share first.

    Columns: parent, child, weight (decoder), share (of the child's incoming weight), p_parent_given_child,
    p_child_given_parent, phi.
    """
    parent, child = ((graph.weight > 0) & (graph.child_active > 0)).nonzero().T
    values = {
        "weight": graph.weight,
        "share": graph.share,
        "p_parent_given_child": graph.p_parent_given_child,
        "p_child_given_parent": graph.both / graph.parent_active.clamp(min=1)[:, None],
        "phi": graph.phi(),
    }
    columns = {name: np.asarray(matrix[parent, child]) for name, matrix in values.items()}
    frame = pd.DataFrame({"parent": np.asarray(parent), "child": np.asarray(child), **columns})
    return frame.sort_values(["share", "parent", "child"], ascending=[False, True, True], ignore_index=True)
