"""Clusterings of latents against each other, against the character taxonomy and against chance."""

from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from numpy import ndarray

from hsae import coactivation, communities
from hsae.dendrogram import Dendrogram, cosine_distances, similarity_distances
from hsae.feature_clustering import FeatureClusteringConfig, Features, embed, largest_groups
from hsae.latent_classes import LABELLINGS, Text, held_out_shares, latent_classes
from hsae.partition_indices import Z95, agreement, ami, davies_bouldin, half_sample_error, measured, number, silhouette
from hsae.streams import Stream

CLUSTERINGS = {
    "level2_by_decoder": ("hsae", "groups_decoder", "groups_decoder"),
    "level2_by_coactivation": ("hsae", "groups_coactivation", "groups_coactivation"),
    "flat_by_decoder": ("flat", "decoder_clusters", "decoder"),
    "flat_by_coactivation": ("flat", "coactivation_clusters", "coactivation"),
}
"""Level-2 groups, and agglomerative clusters of a flat SAE: dictionary, partition, and the tree that continues it."""

CHARACTERS = ["current_character", "next_character"]

MOST_COLORS = 9  # communities that figures tell apart
Draws = dict[tuple[str, str], dict[str, list[float]]]


def analyse(
    features: Features, clustered: Text, text: Text, config: FeatureClusteringConfig, stream: Stream
) -> dict[str, Any]:
    """Every index of every clustering of one dictionary, each beside its nulls (`partition_indices.measured`).

    `clustered` are the tokens that the clusterings come from, `text` those of the classes; of one vocabulary.

    - latents: how many live, and how many of those are selective in each of LABELLINGS: the class that a latent has on
      `clustered` holds `min_share` of its activation on `text`. Null: both texts `shifted` in a circle
    - partitions: number of clusters and latents of the largest; silhouette (cosine) and Davies-Bouldin in decoder
      space, modularity in the co-activation graph. Nulls: labels `shuffled` over the latents; what the same method
      finds among `random_directions`, or among latents that are `independent`
    - cophenetic: correlation of each tree with its distances. Nulls: as above; of the groups' trees, whose distances
      have no such model, the same distances `shuffled` over the pairs
    - between: agreement of every two partitions. decoder_clusters with communities is geometry against function
    - taxonomy: agreement of every partition with each of LABELLINGS, latents without a class left out
    - purity: dendrogram purity of each tree with each of LABELLINGS; its null permutes the classes

    `stream` is that of the nulls, a part of it for each.
    """
    classes = latent_classes(features.acts, text, "information", config.min_share)
    pairs = combinations(features.partitions.items(), 2)
    return {
        "latents": {"living": len(features.latents)} | _selective(features, clustered, text, config, stream),
        **_geometry(features, config, stream.of("geometry")),
        "between": {
            f"{a}_with_{b}": agreement(one, other, config.n_null, stream.of("between", a, b).numpy())
            for (a, one), (b, other) in pairs
        },
        "taxonomy": {
            partition: {
                name: agreement(labels, classes[name], config.n_null, stream.of("taxonomy", partition, name).numpy())
                for name in LABELLINGS
            }
            for partition, labels in features.partitions.items()
        },
        "purity": {
            tree: {
                name: _purity(dendrogram, classes[name], config.n_null, stream.of("purity", tree, name).numpy())
                for name in LABELLINGS
            }
            for tree, dendrogram in features.trees.items()
        },
    }


def differences(
    hsae: Features, flat: Features, text: Text, config: FeatureClusteringConfig, stream: Stream
) -> pd.DataFrame:
    """AMI with the taxonomy: level-2 groups less agglomerative clusters of the flat SAE, by decoder and co-activation.

    A row for each of the 2 x 2 comparisons of CLUSTERINGS, definition and one of LABELLINGS. Columns: level2, flat (the
    clusterings), definition, labelling, level2_ami, flat_ami, difference, and low and high, its 95% interval over the
    choice of latents, independent for the two dictionaries (`half_sample_error`; the clusterings stay as they are).
    Definitions:

    - main: as many clusters as there are groups by decoder; classes by `information`; selective latents alone
    - by_share: classes by `share`
    - all_latents: also latents that are not selective
    - cut_at_classes: the trees, those of the groups too, are cut at as many clusters as the level has classes. AMI of
      hundreds of groups with four classes cannot be near 1, however pure the groups are

    `stream` is that of the latents that are chosen, a part of it for each AMI.
    """
    rules = {
        "main": ("information", config.min_share),
        "by_share": ("share", config.min_share),
        "all_latents": ("information", 0.0),
        "cut_at_classes": ("information", config.min_share),
    }
    dictionaries, rows = {"hsae": hsae, "flat": flat}, []
    for definition, rule in rules.items():
        classes = {name: latent_classes(features.acts, text, *rule) for name, features in dictionaries.items()}
        for labelling in LABELLINGS:
            n_classes = len(text.classes(labelling.split("_")[1])[0])
            cut = n_classes if definition == "cut_at_classes" else None
            scores = {
                name: _score(
                    _labels(dictionaries[of], partition, tree, cut),
                    classes[of][labelling],
                    config.n_resamples,
                    stream.of(definition, labelling, name),
                )
                for name, (of, partition, tree) in CLUSTERINGS.items()
            }
            rows += [
                {"level2": a, "flat": b, "definition": definition, "labelling": labelling}
                | _difference(scores[a], scores[b])
                for a, b in product([*CLUSTERINGS][:2], [*CLUSTERINGS][2:])
            ]
    return pd.DataFrame(rows)


def headline(
    analyses: dict[str, dict[str, Any]], compared: pd.DataFrame, untrained: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What `analyse` of `hsae` and of `flat`, and `differences`, come to: AMI, and each index beside its null's mean.

    - latents: living, and selective for the current and the next character
    - taxonomy: AMI of each of CLUSTERINGS with the current and the next character; 0 is expected of chance
    - hsae, flat: geometry_with_function, AMI of clusters by decoder direction with communities of co-activation;
      modularity of the communities; silhouette and Davies-Bouldin of the clusters by decoder direction; purity (with
      the current character) and cophenetic correlation of each tree
    - differences: between AMIs of the taxonomy, with 95% intervals
    - untrained: all but the differences, of the analyses of the same models before training
    """
    main = compared.query("definition == 'main' and labelling in @CHARACTERS")
    differences: dict[str, Any] = {}
    for row in main.to_dict("records"):
        pair = differences.setdefault(f"{row['level2']}_less_{row['flat']}", {})
        pair[row["labelling"]] = {name: number(row[name]) for name in ("difference", "low", "high")}
    return {**_indices(analyses), "differences": differences, "untrained": _indices(untrained)}


def _indices(analyses: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The part of `headline` that is of two dictionaries by themselves."""
    result: dict[str, Any] = {
        "latents": {
            name: {"living": found["latents"]["living"]}
            | {of: _beside_null(found["latents"][of], "shifted") for of in CHARACTERS}
            for name, found in analyses.items()
        },
        "taxonomy": {
            name: {of: analyses[dictionary]["taxonomy"][partition][of]["ami"]["value"] for of in CHARACTERS}
            for name, (dictionary, partition, _) in CLUSTERINGS.items()
        },
    }
    for dictionary, found in analyses.items():
        shape = found["partitions"]
        result[dictionary] = {
            "geometry_with_function": _beside_null(
                found["between"]["decoder_clusters_with_communities"]["ami"], "permuted"
            ),
            "modularity": _beside_null(shape["communities"]["modularity"], "independent"),
            "silhouette": _beside_null(shape["decoder_clusters"]["silhouette"], "random_directions"),
            "davies_bouldin": _beside_null(shape["decoder_clusters"]["davies_bouldin"], "random_directions"),
            "purity": {tree: _beside_null(of["current_character"], "permuted") for tree, of in found["purity"].items()},
            "cophenetic": {tree: _beside_null(of, [*of][1]) for tree, of in found["cophenetic"].items()},
        }
    return result


def detail_frame(analyses: dict[str, dict[str, Any]], compared: pd.DataFrame) -> pd.DataFrame:
    """Every number of `analyse`, by dictionary, and of `differences`: a row for each number and null that it has.

    Columns: dictionary, measure (its keys, joined by dots), value, null, null_mean, null_sd, low, high; the last two
    (an interval) are of differences, whose dictionary is hsae_less_flat.
    """
    rows = [
        {"dictionary": dictionary, "measure": ".".join(path), **row}
        for dictionary, found in analyses.items()
        for path, row in _leaves(found)
    ]
    names = compared[["level2", "flat", "definition", "labelling"]].agg(".".join, axis=1)
    of_differences = pd.DataFrame({"dictionary": "hsae_less_flat", "measure": names, "value": compared["difference"]})
    frame = pd.DataFrame(rows, columns=["dictionary", "measure", "value", "null", "null_mean", "null_sd"])
    frame = frame.astype({"value": float, "null_mean": float, "null_sd": float})
    return frame.merge(of_differences.join(compared[["low", "high"]]), how="outer", sort=False)


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


def latent_frame(features: Features, text: Text, config: FeatureClusteringConfig, stream: Stream) -> pd.DataFrame:
    """What the figures show of each living latent.

    Columns: x, y (`feature_clustering.embed`) and, as strings, group (rank among the `groups_shown` largest level-2
    groups by decoder, and number of latents), community, current and next (classes of the level `case`, or "no class").
    "other" stands for smaller groups and communities. `stream` is that of the places.
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
    return pd.DataFrame(embed(features.W_dec, stream), columns=["x", "y"]).assign(**columns)


def _selective(
    features: Features, clustered: Text, text: Text, config: FeatureClusteringConfig, stream: Stream
) -> dict[str, dict[str, object]]:
    """The numbers of selective latents in each of LABELLINGS, beside those on texts that are shifted in a circle."""

    def counts(first: Text, second: Text) -> dict[str, int]:
        shares = held_out_shares((features.clustered, first), (features.acts, second))
        return {name: int(((share >= config.min_share) & (share > 0)).sum()) for name, share in shares.items()}

    rng = stream.of("shifts of the text").numpy()
    parts = rng.uniform(0.25, 0.75, size=(config.n_null, 2))  # of the text: far from where it was
    draws = [
        counts(*(one.shifted(int(part * len(one.current))) for one, part in zip((clustered, text), both, strict=True)))
        for both in parts
    ]
    found = counts(clustered, text)
    return {name: measured(value, shifted=[draw[name] for draw in draws]) for name, value in found.items()}


def _geometry(features: Features, config: FeatureClusteringConfig, stream: Stream) -> dict[str, Any]:
    """The indices of partitions and trees that need no second labelling."""
    chance = _chance(features, config, stream.of("chance"))
    distances = features.trees["decoder"].distances
    indices = {
        "silhouette": lambda labels: silhouette(distances, labels),
        "davies_bouldin": lambda labels: davies_bouldin(features.W_dec, labels),
        "modularity": lambda labels: communities.modularity(features.graph, labels),
    }
    partitions: dict[str, Any] = {}
    for name, labels in features.partitions.items():
        rng = stream.of("shuffled", name).numpy()
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


def _chance(features: Features, config: FeatureClusteringConfig, stream: Stream) -> Draws:
    """What the methods find where there is nothing to be found: by (clustering, index) and null, all draws."""
    draws: Draws = {}

    def note(name: str, index: str, null: str, value: float) -> None:
        draws.setdefault((name, index), {}).setdefault(null, []).append(value)

    n_clusters = len(np.unique(features.partitions["decoder_clusters"]))
    normal, dealt, shifts = (stream.of(name).numpy() for name in ("directions", "dealt distances", "shifts"))
    for _ in range(config.n_null):
        directions = normal.standard_normal(features.W_dec.shape)
        tree = Dendrogram.average(cosine_distances(directions))
        labels = tree.cut(n_clusters)
        note("decoder_clusters", "silhouette", "random_directions", silhouette(tree.distances, labels))
        note("decoder_clusters", "davies_bouldin", "random_directions", davies_bouldin(directions, labels))
        note("decoder", "cophenetic", "random_directions", tree.cophenetic_correlation())
        for name in [tree for tree in features.trees if tree in features.partitions]:
            shuffled = features.trees[name].shuffled(dealt)
            note(name, "cophenetic", "shuffled", shuffled.cophenetic_correlation())
    for draw, phi in enumerate(coactivation.independent(features.active, config.n_null, shifts)):
        graph = communities.neighbour_graph(phi, config.n_neighbors)
        tree = Dendrogram.average(similarity_distances(phi))
        labels = communities.communities(graph, stream.of("communities", draw))
        note("communities", "modularity", "independent", communities.modularity(graph, labels))
        labels = tree.cut(n_clusters)
        note("coactivation_clusters", "modularity", "independent", communities.modularity(graph, labels))
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


def _labels(features: Features, partition: str, tree: str, n_clusters: int | None) -> Int[ndarray, " latent"]:
    """A partition, or the tree cut at `n_clusters`."""
    return features.partitions[partition] if n_clusters is None else features.trees[tree].cut(n_clusters)


def _score(
    labels: Int[ndarray, " latent"], classes: Int[ndarray, " latent"], n_resamples: int, stream: Stream
) -> tuple[float, float]:
    """AMI of a labelling with the classes, and its standard error."""
    return ami(labels, classes), half_sample_error(labels, classes, n_resamples, stream.numpy())


def _difference(own: tuple[float, float], other: tuple[float, float]) -> dict[str, float]:
    difference, margin = own[0] - other[0], Z95 * float(np.hypot(own[1], other[1]))
    return {
        "level2_ami": own[0],
        "flat_ami": other[0],
        "difference": difference,
        "low": difference - margin,
        "high": difference + margin,
    }


def _beside_null(record: dict[str, Any], null: str) -> dict[str, float | None]:
    """What `partition_indices.measured` gives, with one null and its mean alone."""
    return {"value": record["value"], "null": record[null]["mean"]}


def _leaves(record: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every number of nested mappings, by its keys: a row of its value alone, or of its value and each null."""
    for key, value in record.items():
        if not isinstance(value, dict):
            yield (*path, key), {"value": value}
        elif "value" in value:
            for null in [name for name in value if name != "value"]:
                draws = {f"null_{name}": moment for name, moment in value[null].items()}
                yield (*path, key), {"value": value["value"], "null": null, **draws}
        else:
            yield from _leaves(value, (*path, key))
