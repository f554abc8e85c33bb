"""The parent-child graph of a trained HSAE: who is whose child, by the decoder and by co-activation, against a null."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae.hierarchical import HierarchicalSAE

NO_PARENT = -1


@dataclass(frozen=True)
class Graph:
    """Level-2 latents as parents of level-1 latents, measured on a set of tokens."""

    weight: Float[Tensor, "parent child"]
    """Level-2 decoder, nonnegative."""
    both: Float[Tensor, "parent child"]
    """Number of tokens on which parent and child are active (float64)."""
    parent_active: Float[Tensor, " parent"]
    """Number of tokens on which the parent is active."""
    child_active: Float[Tensor, " child"]
    """Number of tokens on which the child is active."""
    mean_child: Float[Tensor, "parent child"]
    """Mean activation of the child over the tokens on which the parent is active."""
    n_tokens: int
    groups: float
    """Number of groups, children of one parent by the decoder, with an active child: mean over tokens."""
    groups_null: float
    """The same where the parents are shuffled over the children."""

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
        strength = {"decoder": self.weight, "coactivation": self.phi()}[by]
        best = strength.max(0)
        exists = (best.values > 0) & (self.child_active > 0)
        return torch.where(exists, best.indices, NO_PARENT)

    def phi(self) -> Float[Tensor, "parent child"]:
        """Phi coefficient of parent and child being active; 0 where either never or always is."""
        p, c = (count / self.n_tokens for count in (self.parent_active, self.child_active))
        covariance = self.both / self.n_tokens - p[:, None] * c
        deviation = (p * (1 - p)).clamp(min=0).sqrt()[:, None] * (c * (1 - c)).clamp(min=0).sqrt()
        return torch.where(deviation > 0, covariance / deviation.clamp(min=1e-12), 0.0)


@torch.no_grad()
def measure(model: HierarchicalSAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Graph:
    """The graph of a model on some tokens."""
    both, total, parent_active, child_active, n_tokens = 0.0, 0.0, 0.0, 0.0, 0
    weight = model.level2.W_dec.detach()
    own = torch.nn.functional.one_hot(weight.argmax(0), len(weight)).to(weight) * (weight.max(0).values > 0)[:, None]
    shuffled = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))]
    groups = torch.zeros(2, dtype=torch.float64)
    for x in batches:
        out = model(x)
        h1, h2 = out.level1.acts, out.level2.acts
        on1, on2 = (h1 > 0).float(), (h2 > 0).float()
        both = both + (on2.T @ on1).double()
        total = total + (on2.T @ h1).double()
        parent_active, child_active = parent_active + on2.double().sum(0), child_active + on1.double().sum(0)
        groups += torch.stack([(on1 @ members > 0).sum() for members in (own, shuffled)]).double().cpu()
        n_tokens += len(x)
    parent_active = torch.as_tensor(parent_active)
    mean_child = torch.as_tensor(total) / parent_active.clamp(min=1)[:, None]
    return Graph(
        weight=weight.double().cpu(),
        both=torch.as_tensor(both).cpu(),
        parent_active=parent_active.cpu(),
        child_active=torch.as_tensor(child_active).cpu(),
        mean_child=mean_child.cpu(),
        n_tokens=n_tokens,
        groups=groups[0].item() / max(n_tokens, 1),
        groups_null=groups[1].item() / max(n_tokens, 1),
    )


def summarize(graph: Graph, W_dec: Float[Tensor, "child d_in"]) -> dict[str, float]:
    """What the graph is like; `W_dec` is the level-1 decoder. The suffix says by what parents were chosen.

    - p_parent_given_child: mean over children with a parent of P(parent active | child active)
    - p_parent_given_child_null: the same, expected when the parents are shuffled over the children
    - with_parent: share of the level-1 latents that have one
    - parents, children_per_parent: number of latents with children, and how many they have on average
    - explained_by_parent: mean cosine, in the space of x, of a parent's decoder direction and the mean contribution of
      its children while it is active: co-activation alone gives false pairs (Tree SAE, arXiv 2605.07922)
    - top_share: mean share of a child's incoming decoder weight that its first parent holds
    - sibling_cosine: mean cosine of the decoder directions of two different children of one parent, over all such
      pairs; its null is the mean over all pairs of children
    - groups, groups_null: number of groups (children of one parent) that are active on a token, and the same when the
      parents are shuffled over the children
    """
    result = {"groups": graph.groups, "groups_null": graph.groups_null}
    for by in ("decoder", "coactivation"):
        parents = graph.parents(by)
        result |= {f"{name}_{by}": value for name, value in _coverage(graph, parents).items()}
    parents = graph.parents("decoder")
    children = parents >= 0
    if not children.any():
        return result
    result["top_share"] = graph.share.max(0).values[children].mean().item()
    W_dec = W_dec.detach().cpu().double()
    result["explained_by_parent"] = _explained(graph, parents, W_dec)
    result["sibling_cosine"] = _mean_cosine(W_dec[children], parents[children])
    result["sibling_cosine_null"] = _mean_cosine(W_dec[children], torch.zeros_like(parents[children]))
    return result


def _coverage(graph: Graph, parents: Int[Tensor, " child"]) -> dict[str, float]:
    children = (parents >= 0).nonzero()[:, 0]
    if not len(children):
        return {"with_parent": 0.0, "parents": 0.0}
    own = parents[children]
    p = graph.p_parent_given_child[:, children]
    sizes = torch.bincount(own, minlength=len(graph.weight)).double()
    return {
        "p_parent_given_child": p[own, torch.arange(len(own))].mean().item(),
        # Exact expectation over permutations: every child gets each parent as often as that parent has children.
        "p_parent_given_child_null": (sizes / sizes.sum() @ p).mean().item(),
        "with_parent": len(children) / len(parents),
        "parents": float((sizes > 0).sum()),
        "children_per_parent": sizes[sizes > 0].mean().item(),
    }


def _explained(graph: Graph, parents: Int[Tensor, " child"], W_dec: Float[Tensor, "child d_in"]) -> float:
    """Mean over parents with children of cos(parent's direction, mean contribution of its children)."""
    belongs = parents == torch.arange(len(graph.weight))[:, None]
    contributions = (graph.mean_child * belongs) @ W_dec
    directions = graph.weight @ W_dec
    cosines = torch.nn.functional.cosine_similarity(directions, contributions, dim=1)
    return cosines[belongs.any(1)].mean().item()


def _mean_cosine(directions: Float[Tensor, "child d_in"], groups: Int[Tensor, " child"]) -> float:
    """Mean cosine over all pairs of different rows of the same group; 0 without any pair."""
    unit = torch.nn.functional.normalize(directions, dim=1)
    members = (groups == groups.unique()[:, None]).to(unit)
    sizes = members.sum(1)
    # Over ordered pairs, a row with itself left out: sum u_i.u_j = ||sum u_i||^2 - sum ||u_i||^2.
    total = (members @ unit).square().sum() - unit.square().sum()
    return (total / (sizes * (sizes - 1)).sum().clamp(min=1)).item()


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
