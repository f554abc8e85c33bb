"""Level-1 latents and a flat SAE's, clustered in several ways -> a headline, all its detail, three figures."""

from pathlib import Path

import numpy as np
from jaxtyping import Integer
from numpy import ndarray
from torch import Tensor

from hsae import clustering_plots, graph, run
from hsae.coactivation import sparse_acts
from hsae.dictionary import DictionaryConfig
from hsae.feature_analysis import (
    agreement_frame,
    analyse,
    detail_frame,
    differences,
    headline,
    latent_frame,
)
from hsae.feature_clustering import FeatureClusteringConfig, Features, flat_features, hsae_features
from hsae.files import read_json, read_tensors, write_csv, write_figure, write_json
from hsae.hierarchical import HierarchicalSAE
from hsae.latent_classes import Text
from hsae.run import Stage
from hsae.sae import SAE
from hsae.samples import record
from hsae.streams import Stream
from stages.files import read_store
from stages.trained import read_flat, read_hsae, read_untrained_flat, read_untrained_hsae

Halves = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def main() -> None:
    """Run the stage."""
    with run.stage("feature_clustering") as stage:
        device = stage.device()
        config = stage.params(FeatureClusteringConfig, "feature_clustering")
        stream = stage.params(DictionaryConfig).stream("feature_clustering")
        test = read_store(stage, "test", device)
        # Clusters come from the first half of each document's tokens, classes from the second.
        halved = test.spread(max(config.n_tokens, 2 * test.context)).halves()
        parts = halved[0].scored(slice(None)), halved[1].scored(slice(None))
        first, second = (part.activations.offsets.numpy() for part in parts)
        whole = _text(stage, np.concatenate([first, second]))
        clustered, text = whole.part(slice(len(first))), whole.part(slice(len(first), None))
        halves = parts[0].x(slice(None)).split(4096), parts[1].x(slice(None)).split(4096)
        trained = _features(
            read_hsae(stage, device), read_flat(stage, "topk", device), halves, config, stream.of("trained")
        )
        at_start = read_untrained_hsae(stage, device), read_untrained_flat(stage, "topk", device)
        untrained = _features(*at_start, halves, config, stream.of("untrained"))
        analyses, before = (
            {name: analyse(own, clustered, text, config, stream.of(nulls, name)) for name, own in features.items()}
            for nulls, features in (("nulls", trained), ("nulls of the untrained", untrained))
        )
        compared = differences(trained["hsae"], trained["flat"], text, config, stream.of("halves of the latents"))
        found = headline(analyses, compared, before)
        samples = [
            one
            for what in ("clusterings, which are scored by classes", "classes of selective latents")
            for one in (record(what, "chosen", "test", first), record(what, "scored", "test", second))
        ]
        write_json(
            Path("metrics/feature_clustering.json"), {"n_tokens": sum(map(len, parts)), **found, "samples": samples}
        )
        write_csv(Path("plots/feature_clustering.csv"), detail_frame(analyses, compared))
        latents = latent_frame(trained["hsae"], text, config, stream.of("embedding"))
        shown = latents.query("group != 'other'").drop(columns=["x", "y"])
        figures = {
            "clustermap": clustering_plots.clustermap(trained["hsae"].phi[shown.index][:, shown.index], shown),
            "embedding": clustering_plots.embedding(latents),
            "agreement": clustering_plots.agreement(
                agreement_frame({"HSAE": analyses["hsae"], "flat SAE": analyses["flat"]})
            ),
        }
        for name, figure in figures.items():
            write_figure(Path(f"plots/{name}.png"), figure)


def _text(stage: Stage, offsets: Integer[ndarray, " token"]) -> Text:
    """The tokens at some offsets, the text of both halves."""
    tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"].numpy()
    return Text.at(tokens, offsets, read_json(stage.input("data/tokenizer.json"))["vocabulary"])


def _features(
    hsae: HierarchicalSAE, flat: SAE, halves: Halves, config: FeatureClusteringConfig, stream: Stream
) -> dict[str, Features]:
    """The latents of level 1 and of a flat SAE, clustered into as many clusters as level 2 makes groups by decoder."""
    measured = graph.measure(hsae, halves[0])
    parents = {by: measured.parents(by).numpy() for by in ("decoder", "coactivation")}
    W_dec1, W_dec2, W_flat = (sae.W_dec.detach().cpu().numpy() for sae in (hsae.level1, hsae.level2, flat))
    acts1, acts_flat = (
        (sparse_acts(sae.encode, halves[0]), sparse_acts(sae.encode, halves[1])) for sae in (hsae.level1, flat)
    )
    of_hsae = hsae_features(acts1, W_dec1, W_dec2, parents, config, stream.of("communities of level 1"))
    n_groups = int(of_hsae.partitions["groups_decoder"].max()) + 1
    of_flat = flat_features(acts_flat, W_flat, n_groups, config, stream.of("communities of the flat one"))
    return {"hsae": of_hsae, "flat": of_flat}


if __name__ == "__main__":
    main()
