"""Whether level 2 is a hierarchy over level 1: all numbers that say so, each beside what it is by chance.

Parents by co-activation are the best of many, and on the tokens that chose it the best of many looks like a parent,
whatever it is. So parents are chosen on some tokens and looked at on others; the null of the best chooses, too.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from numpy import ndarray
from scipy.sparse import csc_array, csr_array
from torch import Tensor

from hsae.graph import NO_PARENT, Graph
from hsae.information import entropies, quantile_bins
from hsae.nulls import debiased, draw_shifts
from hsae.samples import Record, record
from hsae.streams import Stream

DRAWS = 5  # of each null
BINS = 4  # of positive activations, for the information that latents share
TOKENS = 32768  # for that information,
STRETCHES = 16  # in so many pieces from all over the text: its beginning is of one document

ROUNDING = 1e-9

WAYS = ("decoder", "coactivation")
AGAINST_CHANCE = ("p_parent_given_child", "explained_by_parent", "u_children", "sibling_cosine")
WITH_NULL = (*AGAINST_CHANCE, "groups")


def samples(chosen: Integer[ndarray, " n"], scored: Integer[ndarray, " m"], split: str) -> list[Record]:
    """What `summarize` chooses and where, given the offsets of the validation split and of the `split` that scores."""
    return [
        one
        for what in ("parents by co-activation", "bins of activations")
        for one in (record(what, "chosen", "val", chosen), record(what, "scored", split, scored))
    ]


def summarize(
    chosen: Graph, scored: Graph, W_dec: Float[Tensor, "child d_in"], margin: int, stream: Stream
) -> dict[str, float | None]:
    """All that says whether level 2 is a hierarchy over level 1, each number with its null; None where undefined.

    Parents are chosen on `chosen`: by co-activation, or by the decoder, which was trained on other text. All else is
    measured on `scored`, the same model's graph on other tokens, over the children that are active there too. `W_dec`
    is the level-1 decoder. No shift along the text is within `margin` tokens of 0.

    - p_parent_given_child: mean over children of P(parent active | child active)
    - explained_by_parent: mean over parents of the cosine, in the space of x, of the parent's decoder direction and the
      mean contribution of its children while it is active: co-activation alone gives false pairs (Tree SAE, arXiv
      2605.07922)
    - u_children: mean over children of I(parent; child) / H(parent), debiased by circular shifts
    - sibling_cosine: mean cosine of the decoder directions of two different children of one parent, over all such pairs
    - groups: number of groups, the children of one parent, that are active on a token
    - <number>_null: what is expected by chance. Parents are shuffled over the children; of sibling_cosine, all pairs
      of children are taken. Where the choice itself would show, it is the larger of that and the mean over circular
      shifts of level 2 along the text, at each of which parents are chosen anew: of p_parent_given_child by
      co-activation, which takes the best of many; and of explained_by_parent, as a parent by the decoder points at its
      children whatever they do
    - <number>_beyond_chance: (value - null) / (1 - null), of all but `groups`; groups_over_null: groups / groups_null
    - with_parent: share of the level-1 latents that have a parent; parents, children_per_parent: number of latents
      with children, and how many they have on average
    - top_share: mean share of a child's incoming decoder weight that its parent by the decoder holds

    Names end in the way in which parents were chosen, `_decoder` or `_coactivation`; where none is named, it is the
    decoder.
    """
    W_dec = W_dec.detach().cpu().double()
    u = _shares_of_entropy(chosen, scored, margin, stream.of("shifts for information"))
    unrelated = _unrelated(chosen, scored, W_dec, margin, stream)
    result: dict[str, float | None] = {}
    for by in WAYS:
        found = _of_parents(scored, _parents(chosen, scored, by), W_dec, u, stream.of(f"parents by {by}, shuffled"))
        for name in ("p_parent_given_child", "explained_by_parent")[by == "decoder" :]:
            null = found[f"{name}_null"]
            found[f"{name}_null"] = None if null is None else max(null, unrelated.get((name, by), null))
        for name in AGAINST_CHANCE:
            found[f"{name}_beyond_chance"] = _beyond_chance(found[name], found[f"{name}_null"])
        result |= {_named(name, by): value for name, value in found.items()}
    shares = scored.share.max(0).values[_parents(chosen, scored, "decoder") >= 0]
    return result | {"top_share": shares.mean().item() if len(shares) else None}


def _parents(chosen: Graph, scored: Graph, by: str) -> Int[Tensor, " child"]:
    return torch.where(scored.child_active > 0, chosen.parents(by), NO_PARENT)


def _named(name: str, by: str) -> str:
    says_decoder = name.startswith(("p_parent_given_child", "with_parent", "parents", "children_per_parent"))
    return f"{name}_{by}" if by != "decoder" or says_decoder else name


def _beyond_chance(value: float | None, null: float | None) -> float | None:
    return None if value is None or null is None or null > 1 - ROUNDING else (value - null) / (1 - null)


def _of_parents(
    scored: Graph,
    parents: Int[Tensor, " child"],
    W_dec: Float[Tensor, "child d_in"],
    u: Float[Tensor, "parent child"],
    stream: Stream,
) -> dict[str, float | None]:
    """The numbers of `summarize` for parents that were chosen in one way, and their nulls."""
    children = (parents >= 0).nonzero()[:, 0]
    own = parents[children]
    names = [name for measure in WITH_NULL for name in (measure, f"{measure}_null")]
    if not len(children):
        return dict.fromkeys([*names, "groups_over_null", "children_per_parent"]) | {"with_parent": 0.0, "parents": 0.0}
    sizes = torch.bincount(own, minlength=len(scored.weight)).double()
    found: dict[str, float | None] = {
        "with_parent": len(children) / len(parents),
        "parents": float((sizes > 0).sum()),
        "children_per_parent": sizes[sizes > 0].mean().item(),
        "sibling_cosine": _mean_cosine(W_dec[children], own),
        "sibling_cosine_null": _mean_cosine(W_dec[children], torch.zeros_like(own)),
    }
    for name, of_pairs in (("p_parent_given_child", scored.p_parent_given_child), ("u_children", u)):
        found[name] = of_pairs[own, children].mean().item()
        # Exact expectation over permutations: every child gets each parent as often as that parent has children.
        found[f"{name}_null"] = (sizes / sizes.sum() @ of_pairs[:, children]).mean().item()
    generator = stream.torch()
    shuffled = [parents.clone() for _ in range(DRAWS)]
    for draw in shuffled:
        draw[children] = own[torch.randperm(len(own), generator=generator)]
    explained = [_explained(scored, one, W_dec) for one in (parents, *shuffled)]
    groups = [_groups(scored.on1, one) for one in (parents, *shuffled)]
    for name, (value, *null) in (("explained_by_parent", explained), ("groups", groups)):
        found |= {name: value, f"{name}_null": sum(null) / DRAWS}
    return found | {"groups_over_null": groups[0] / (sum(groups[1:]) / DRAWS)}


def _unrelated(
    chosen: Graph, scored: Graph, W_dec: Float[Tensor, "child d_in"], margin: int, stream: Stream
) -> dict[tuple[str, str], float]:
    """(number, way to choose) -> its mean over shifts of level 2, by parents that are chosen anew; none without any."""
    shifts = draw_shifts(min(chosen.n_tokens, scored.n_tokens), DRAWS, margin, stream.of("shifts of level 2"))
    found: dict[tuple[str, str], list[float]] = {}
    for shift in shifts.tolist():
        shifted = chosen.shifted(shift), scored.shifted(shift)
        for by in WAYS:
            parents = _parents(*shifted, by)
            children = (parents >= 0).nonzero()[:, 0]
            if len(children):
                p = shifted[1].p_parent_given_child[parents[children], children].mean().item()
                found.setdefault(("p_parent_given_child", by), []).append(p)
                found.setdefault(("explained_by_parent", by), []).append(_explained(shifted[1], parents, W_dec))
    return {key: sum(values) / len(values) for key, values in found.items()}


def _shares_of_entropy(chosen: Graph, scored: Graph, margin: int, stream: Stream) -> Float[Tensor, "parent child"]:
    """I(parent; child) / H(parent) on the tokens that score, in bins that were cut on those that choose."""
    on, of = _stretches(scored.n_tokens), _stretches(chosen.n_tokens)
    h1, h2 = (
        quantile_bins(own[on].toarray(), BINS, other[of].toarray())
        for own, other in ((scored.h1, chosen.h1), (scored.h2, chosen.h2))
    )
    information = debiased(h1, h2, draw_shifts(len(h1), DRAWS, margin, stream)).T
    entropy = entropies(h2)[:, None]
    return torch.from_numpy(information / np.where(entropy > 0, entropy, np.inf))


def _stretches(n: int) -> Int[ndarray, " token"]:
    """Which of `n` tokens to take where TOKENS are wanted: the first ones of each of STRETCHES pieces of the text."""
    if n <= TOKENS:
        return np.arange(n)
    firsts = np.arange(STRETCHES) * n // STRETCHES
    return (firsts[:, None] + np.arange(TOKENS // STRETCHES)).ravel()


def _groups(on1: csc_array, parents: Int[Tensor, " child"]) -> float:
    """Number of parents of which a child is active: mean over tokens."""
    children = (parents >= 0).nonzero()[:, 0].numpy()
    own: ndarray = parents.numpy()[children]
    n_tokens, n_children = on1.shape  # pyright: ignore[reportGeneralTypeIssues]
    members = csr_array((np.ones(len(own)), (children, own)), shape=(n_children, own.max(initial=0) + 1))
    return csr_array(on1 @ members).nnz / n_tokens


def _explained(scored: Graph, parents: Int[Tensor, " child"], W_dec: Float[Tensor, "child d_in"]) -> float:
    """Mean over parents with children of cos(parent's direction, mean contribution of its children)."""
    belongs = parents == torch.arange(len(scored.weight))[:, None]
    contributions = (scored.mean_child * belongs) @ W_dec
    cosines = torch.nn.functional.cosine_similarity(scored.weight @ W_dec, contributions, dim=1)
    return cosines[belongs.any(1)].mean().item()


def _mean_cosine(directions: Float[Tensor, "child d_in"], groups: Int[Tensor, " child"]) -> float:
    """Mean cosine over all pairs of different rows of the same group; 0 without any pair."""
    unit = torch.nn.functional.normalize(directions, dim=1)
    members = (groups == groups.unique()[:, None]).to(unit)
    sizes = members.sum(1)
    # Over ordered pairs, a row with itself left out: sum u_i.u_j = ||sum u_i||^2 - sum ||u_i||^2.
    total = (members @ unit).square().sum() - unit.square().sum()
    return (total / (sizes * (sizes - 1)).sum().clamp(min=1)).item()
