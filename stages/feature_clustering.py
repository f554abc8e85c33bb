"""Level-1 latents and a flat SAE's, clustered in several ways -> a headline, all its detail, three figures."""

from pathlib import Path

from hsae import clustering_plots, graph, run
from hsae.coactivation import sparse_acts
from hsae.feature_analysis import agreement_frame, analyse, detail_frame, differences, headline, latent_frame
from hsae.feature_clustering import FeatureClusteringConfig, flat_features, hsae_features
from hsae.files import read_json, read_tensors, write_csv, write_figure, write_json
from hsae.latent_classes import Text
from stages.files import read_store
from stages.trained import read_flat, read_hsae


def main() -> None:
    """Run the stage."""
    with run.stage("feature_clustering") as stage:
        device = stage.device()
        config = stage.params(FeatureClusteringConfig, "feature_clustering")
        model = read_hsae(stage, device)
        topk = read_flat(stage, "topk", device)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"].numpy()
        test = read_store(stage, "test", device)
        half = min(config.n_tokens, len(test)) // 2  # of the tokens: clusters from the first, classes from the second
        offsets = test.activations.offsets[half : 2 * half].numpy()
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        text = Text.at(tokens, offsets, vocabulary)
        halves = [test.x(slice(start, start + half)).split(4096) for start in (0, half)]
        measured = graph.measure(model, halves[0])
        parents = {by: measured.parents(by).numpy() for by in ("decoder", "coactivation")}
        W_dec1, W_dec2, W_flat = (sae.W_dec.detach().cpu().numpy() for sae in (model.level1, model.level2, topk))
        of_hsae, of_flat = (
            (sparse_acts(sae.encode, halves[0]), sparse_acts(sae.encode, halves[1])) for sae in (model.level1, topk)
        )
        hsae = hsae_features(of_hsae, W_dec1, W_dec2, parents, config)
        n_groups = int(hsae.partitions["groups_decoder"].max()) + 1
        flat = flat_features(of_flat, W_flat, n_groups, config)
        analyses = {"hsae": analyse(hsae, text, config), "flat": analyse(flat, text, config)}
        compared = differences(hsae, flat, text, config)
        write_json(Path("metrics/feature_clustering.json"), {"n_tokens": 2 * half, **headline(analyses, compared)})
        write_csv(Path("plots/feature_clustering.csv"), detail_frame(analyses, compared))
        latents = latent_frame(hsae, text, config)
        shown = latents.query("group != 'other'").drop(columns=["x", "y"])
        figures = {
            "clustermap": clustering_plots.clustermap(hsae.phi[shown.index][:, shown.index], shown),
            "embedding": clustering_plots.embedding(latents),
            "agreement": clustering_plots.agreement(
                agreement_frame({"HSAE": analyses["hsae"], "flat SAE": analyses["flat"]})
            ),
        }
        for name, figure in figures.items():
            write_figure(Path(f"plots/{name}.png"), figure)


if __name__ == "__main__":
    main()
