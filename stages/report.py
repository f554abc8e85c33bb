"""Metrics, curves and models -> pictures and one self-contained page, report.html."""

import argparse
from pathlib import Path

import pandas as pd

from hsae import config, control_plots, plots, report, run
from hsae.files import read_json, read_tensors, write_figure, write_text
from hsae.report import ReportConfig
from stages.files import read_store
from stages.trained import read_hsae

FIGURES = {
    "Loss recovered by each dictionary": "dictionaries",
    "Parents and children": "forest",
    "How often latents are active": "densities",
    "Level-2 decoder": "decoder",
    "Mutual information between the levels": "mutual_information",
    "Mutual information and decoder weight": "information_weight",
    "What representations tell of labels": "probe_bounds",
    "Clusters, communities and groups: agreement": "agreement",
    "Co-activation of level-1 latents": "clustermap",
    "Decoder directions of level 1": "embedding",
    "Concepts: best latent and absorption": "absorption",
    "Short rules for latents (proxies, no human judgement)": "interpretability_proxy",
    "What people found (the study)": "study",
    "Latents that another seed finds again": "recurrence",
    "What changes if a latent is removed": "latent_effects",
    "Causal tracing: where the clean stream restores the answer": "causal_map",
    "Causal tracing: mean faithfulness of each method (CPR)": "causal_effects",
    "Causal tracing: faithfulness over the number of restored nodes": "causal_curves",
    "Causal tracing: shares of levels and errors": "causal_shares",
    "Causal tracing: paths through the levels": "causal_paths",
    "Steering with the latents that matter most": "steering",
    "Data whose hierarchy is known": "synthetic",
    "Training of the autoencoders": "training_curves",
    "Training of the transformer": "train_transformer",
}


def main(curves: list[str], controls: list[str]) -> None:
    """Run the stage."""
    with run.stage("report") as stage:
        device = stage.device()
        settings = stage.params(ReportConfig, "report")
        evaluation = read_json(stage.input("metrics/evaluate.json"))
        corpus = read_json(stage.input("data/corpus.json"))
        hsae = read_hsae(stage, device)
        test = read_store(stage, "test", device)
        h1, h2 = report.encode(hsae, test)
        kept = test.kept.to(device)
        rows = report.rows(evaluation)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        edges = pd.read_csv(stage.input("plots/edges.csv"))
        total = report.encode(hsae, read_store(stage, "val", device))[1].double().sum(0)
        latents = report.hierarchy(edges, total, h1, h2, test, tokens, vocabulary, settings)
        results = {name: read_json(stage.input(f"metrics/control/{name}.json")) for name in controls}
        untrained = read_json(stage.input("metrics/hsae.json"))["untrained"]
        results["untrained"] = {**untrained, "recovered": untrained}
        figures = {
            "train_transformer": plots.loss_curve(pd.read_csv(stage.input("plots/train_transformer.csv"))),
            "dictionaries": plots.dictionaries(rows, "ce_recovered_mean", "loss recovered (mean ablation)"),
            "densities": plots.densities(
                report.densities({"HSAE level 1": h1[kept], "HSAE level 2": h2[kept]}), settings.density_bins
            ),
            "forest": plots.forest(report.forest(latents)),
            "decoder": plots.decoder_heatmap(hsae.level2.W_dec.detach().cpu().numpy()),
            "training_curves": plots.training_curves(_curves(stage, curves)),
            "controls": control_plots.controls(report.controls(results)),
        }
        for name, figure in figures.items():
            write_figure(Path(f"plots/{name}.png"), figure)
        pictures = {title: Path(f"plots/{name}.png") for title, name in FIGURES.items()}
        for picture in pictures.values():
            if picture.stem not in figures:
                stage.input(str(picture))
        html = report.page(
            corpus=corpus["name"],
            evaluation=evaluation,
            layer=test.layer,
            rows=rows.to_dict("records"),
            figures=[(title, report.data_uri(picture)) for title, picture in pictures.items()],
            controls=report.data_uri(Path("plots/controls.png")),
            latents=latents,
            sample=stage.input("models/transformer_sample.txt").read_text(encoding="utf-8"),
            params=config.flatten(config.read_params()),
        )
        write_text(Path("report.html"), html)


def _curves(stage: run.Stage, names: list[str]) -> pd.DataFrame:
    """The curves of all training stages as one tidy frame."""
    frames = [pd.read_csv(stage.input(f"plots/{name}.csv")).assign(stage=name) for name in names]
    return pd.concat(frames).melt(["stage", "step"], var_name="term", value_name="value").dropna()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--curves", nargs="*", default=[])
    parser.add_argument("--controls", nargs="*", default=[])
    main(**vars(parser.parse_args()))
