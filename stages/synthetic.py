"""Data whose features and hierarchy are known: how much of them the HSAE and flat autoencoders find."""

from pathlib import Path

import torch

from hsae import run
from hsae.dictionary import DictionaryConfig
from hsae.files import write_figure, write_json
from hsae.ground_truth import GroundTruthConfig, score_all
from hsae.ground_truth_plots import recovery


def main() -> None:
    """Run the stage."""
    with run.stage("synthetic") as stage:
        stage.device()
        torch.set_num_threads(1)  # the matrices are small: a second thread waits more than it works
        seed = stage.params(DictionaryConfig).seed
        scores = score_all(stage.params(GroundTruthConfig, "synthetic"), seed)
        write_json(Path("metrics/synthetic.json"), scores)
        write_figure(Path("plots/synthetic.png"), recovery(scores))


if __name__ == "__main__":
    main()
