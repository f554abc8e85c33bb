"""Data whose features and hierarchy are known: how much of them the HSAE and flat autoencoders find."""

from pathlib import Path

from hsae import run
from hsae.dictionary import DictionaryConfig
from hsae.files import write_figure, write_json
from hsae.ground_truth import GroundTruthConfig, score_all
from hsae.ground_truth_plots import recovery
from hsae.run import Compute
from hsae.workers import workers


def main() -> None:
    """Run the stage."""
    with run.stage("synthetic") as stage:
        n_workers = stage.params(Compute).threads
        stream = stage.params(DictionaryConfig).stream("synthetic")
        config = stage.params(GroundTruthConfig, "synthetic")
        with workers("synthetic", n_workers) as each:
            scores = score_all(config, stream, each)
        write_json(Path("metrics/synthetic.json"), scores)
        write_figure(Path("plots/synthetic.png"), recovery(scores))


if __name__ == "__main__":
    main()
