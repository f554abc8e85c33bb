"""Clusterings of latents against each other, against the character taxonomy and against chance."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from numpy import ndarray

from hsae import coactivation
from hsae.dendrogram import Dendrogram, cosine_distances, similarity_distances
from hsae.feature_clustering import FeatureClusteringConfig, Features, embed, largest_groups
from hsae.latent_classes import LABELLINGS, Text, latent_classes
from hsae.partition_indices import Z95, agreement, ami, davies_bouldin, half_sample_error, measured, number, silhouette

RIVALS = {"decoder_clusters": "decoder", "coactivation_clusters": "coactivation"}
"""Clusterings of the flat SAE that level-2 groups are compared with, and the trees that they are cut from."""

MOST_COLORS = 9  # communities that figures tell apart
Draws = dict[tuple[str, str], dict[str, list[float]]]


def analyse(features: Features, text: Text, config: FeatureClusteringConfig) -> dict[str, Any]:
    """Every index of every clustering of one dictionary, each beside its nulls (`partition_indices.measured`).

    - latents: how many live, and how many of those are selective in each of LABELLINGS
    - partitions: number of clusters and latents of the largest; silhouette (cosine) and Davies-Bouldin in decoder
      space, modularity in the co-activation graph. Nulls: labels `shuffled` over the latents; what the same method
      finds among `random_directions`, or among latents that are `independent`
    - cophenetic: correlation of each tree with its distances. Nulls: as above; of the groups' tree, whose distances
      have no such model, the same distances `shuffled` over the pairs
    - between: agreement of every two partitions. decoder_clusters with communities is geometry against function
    - taxonomy: agreement of every partition with each of LABELLINGS, latents without a class left out
    - purity: dendrogram purity of each tree with each of LABELLINGS; its null permutes the classes
    """
    rng = np.random.default_rng(config.seed)
    classes = latent_classes(features.acts, text, "information", config.min_share)
    pairs = combinations(features.partitions.items(), 2)
    return {
        "latents": {"living": len(features.latents)} | {name: int((c >= 0).sum()) for name, c in classes.items()},
        **_geometry(features, config, rng),
        "between": {f"{a}_with_{b}": agreement(one, other, config.n_null, rng) for (a, one), (b, other) in pairs},
        "taxonomy": {
            partition: {name: agreement(labels, classes[name], config.n_null, rng) for name in LABELLINGS}
            for partition, labels in features.partitions.items()
        },
        "purity": {
            name: {labelling: _purity(tree, classes[labelling], config.n_null, rng) for labelling in LABELLINGS}
            for name, tree in features.trees.items()
        },
    }


def differences(
    hsae: Features, flat: Features, text: Text, config: FeatureClusteringConfig
) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """AMI with the taxonomy: level-2 groups by decoder less each of RIVALS of the flat SAE, at each of LABELLINGS.

    By rival, definition and labelling: level2, flat, difference, and low and high, its 95% interval over the choice of
    latents, independent for the two dictionaries (`half_sample_error`; the clusterings stay as they are). Definitions:

    - main: as many clusters as there are groups; classes by `information`; selective latents alone
    - by_share: classes by `share`
    - all_latents: also latents that are not selective
    - cut_at_classes: the trees, that of the groups too, are cut at as many clusters as the level has classes. AMI of
      hundreds of groups with four classes cannot be near 1, however pure the groups are
    """
    rng = np.random.default_rng(config.seed)
    rules = {
        "main": ("information", config.min_share),
        "by_share": ("share", config.min_share),
        "all_latents": ("information", 0.0),
        "cut_at_classes": ("information", config.min_share),
    }
    results: dict[str, Any] = {rival: {definition: {} for definition in rules} for rival in RIVALS}
    for definition, rule in rules.items():
        classes = {features: latent_classes(of.acts, text, *rule) for features, of in (("hsae", hsae), ("flat", flat))}
        for labelling in LABELLINGS:
            n_classes = len(text.classes(labelling.split("_")[1])[0])
            cut = n_classes if definition == "cut_at_classes" else None
            own = _score(hsae, "groups_decoder", "groups", cut, classes["hsae"][labelling], config, rng)
            for rival, tree in RIVALS.items():
                other = _score(flat, rival, tree, cut, classes["flat"][labelling], config, rng)
                results[rival][definition][labelling] = _difference(own, other)
    return results


def agreement_frame(analyses: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """AMI of all partitions, for `clustering_plots.agreement`: a row per partition and what it is compared with.

    `analyses` holds a result of `analyse` per name of a dictionary. Columns: dictionary, partition, other, ami,
    null_mean, null_sd. Two partitions make two rows, one each way.
    """
    rows = []
    for dictionary, result in analyses.items():
        for partition, labellings in result["taxonomy"].items():
            rows += [(dictionary, partition, name, indices["ami"]) for name, indices in labellings.items()]
        for pair, indices in result["between"].items():
            a, b = pair.split("_with_")
            rows += [(dictionary, a, b, indices["ami"]), (dictionary, b, a, indices["ami"])]
    return pd.DataFrame(
        [(*names, ami["value"], ami["permuted"]["mean"], ami["permuted"]["sd"]) for *names, ami in rows],
        columns=["dictionary", "partition", "other", "ami", "null_mean", "null_sd"],
    )


def latent_frame(features: Features, text: Text, config: FeatureClusteringConfig) -> pd.DataFrame:
    """What the figures show of each living latent.

    Columns: x, y (`feature_clustering.embed`) and, as strings, group (rank among the `groups_shown` largest level-2
    groups by decoder, and number of latents), community, current and next (classes of the level `case`, or "no class").
    "other" stands for smaller groups and communities.
    """
    groups = features.partitions["groups_decoder"]
    ranks, sizes = largest_groups(groups, config.groups_shown), np.bincount(groups)[groups]
    communities, (names, _) = features.partitions["communities"], text.classes("case")
    classes = latent_classes(features.acts, text, "information", config.min_share)
    columns = {
        "group": [
            f"{rank + 1} ({size} latents)" if rank >= 0 else "other" for rank, size in zip(ranks, sizes, strict=True)
        ],
        "community": [str(label + 1) if label < MOST_COLORS else "other" for label in communities],
        "current": [names[label] if label >= 0 else "no class" for label in classes["current_case"]],
        "next": [names[label] if label >= 0 else "no class" for label in classes["next_case"]],
    }
    return pd.DataFrame(embed(features.W_dec, config.seed), columns=["x", "y"]).assign(**columns)


def _geometry(features: Features, config: FeatureClusteringConfig, rng: np.random.Generator) -> dict[str, Any]:
    """The indices of partitions and trees that need no second labelling."""
    chance = _chance(features, config, rng)
    distances = features.trees["decoder"].distances
    indices = {
        "silhouette": lambda labels: silhouette(distances, labels),
        "davies_bouldin": lambda labels: davies_bouldin(features.W_dec, labels),
        "modularity": lambda labels: coactivation.modularity(features.graph, labels),
    }
    partitions: dict[str, Any] = {}
    for name, labels in features.partitions.items():
        shuffled = [rng.permutation(labels) for _ in range(config.n_null)]
        sizes = np.bincount(labels)
        partitions[name] = {"clusters": len(sizes), "largest": int(sizes.max())}
        for index, of in indices.items():
            nulls = {"shuffled": [of(draw) for draw in shuffled], **chance.get((name, index), {})}
            partitions[name][index] = measured(of(labels), **nulls)
    cophenetic = {
        name: measured(tree.cophenetic_correlation(), **chance[name, "cophenetic"])
        for name, tree in features.trees.items()
    }
    return {"partitions": partitions, "cophenetic": cophenetic}


def _chance(features: Features, config: FeatureClusteringConfig, rng: np.random.Generator) -> Draws:
    """What the methods find where there is nothing to be found: by (clustering, index) and null, all draws."""
    draws: Draws = {}

    def note(name: str, index: str, null: str, value: float) -> None:
        draws.setdefault((name, index), {}).setdefault(null, []).append(value)

    n_clusters = len(np.unique(features.partitions["decoder_clusters"]))
    for _ in range(config.n_null):
        directions = rng.standard_normal(features.W_dec.shape)
        tree = Dendrogram.average(cosine_distances(directions))
        labels = tree.cut(n_clusters)
        note("decoder_clusters", "silhouette", "random_directions", silhouette(tree.distances, labels))
        note("decoder_clusters", "davies_bouldin", "random_directions", davies_bouldin(directions, labels))
        note("decoder", "cophenetic", "random_directions", tree.cophenetic_correlation())
        if "groups" in features.trees:
            shuffled = features.trees["groups"].shuffled(rng)
            note("groups", "cophenetic", "shuffled", shuffled.cophenetic_correlation())
    for phi in coactivation.independent(features.active, config.n_null, rng):
        graph = coactivation.neighbour_graph(phi, config.n_neighbors)
        tree = Dendrogram.average(similarity_distances(phi))
        labels = coactivation.communities(graph, config.seed)
        note("communities", "modularity", "independent", coactivation.modularity(graph, labels))
        labels = tree.cut(n_clusters)
        note("coactivation_clusters", "modularity", "independent", coactivation.modularity(graph, labels))
        note("coactivation", "cophenetic", "independent", tree.cophenetic_correlation())
    return draws


def _purity(
    tree: Dendrogram, classes: Int[ndarray, " latent"], n_null: int, rng: np.random.Generator
) -> dict[str, object]:
    counted = classes >= 0

    def permuted() -> Int[ndarray, " latent"]:
        labels = classes.copy()
        labels[counted] = rng.permutation(classes[counted])
        return labels

    return measured(tree.purity(classes), permuted=[tree.purity(permuted()) for _ in range(n_null)])


def _score(
    features: Features,
    partition: str,
    tree: str,
    n_clusters: int | None,
    classes: Int[ndarray, " latent"],
    config: FeatureClusteringConfig,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """AMI of a partition, or of the tree cut at `n_clusters`, with the classes, and its standard error."""
    labels = features.partitions[partition] if n_clusters is None else features.trees[tree].cut(n_clusters)
    return ami(labels, classes), half_sample_error(labels, classes, config.n_resamples, rng)


def _difference(own: tuple[float, float], other: tuple[float, float]) -> dict[str, float | None]:
    difference, margin = own[0] - other[0], Z95 * float(np.hypot(own[1], other[1]))
    values = {
        "level2": own[0],
        "flat": other[0],
        "difference": difference,
        "low": difference - margin,
        "high": difference + margin,
    }
    return {name: number(value) for name, value in values.items()}
