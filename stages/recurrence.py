"""The HSAE from another seed, on the controls' budget -> which latents of the run's own it finds again."""

from dataclasses import replace
from pathlib import Path

from hsae import controls, feature_plots, recurrence, run
from hsae.checkpoint import Checkpoints
from hsae.controls import ControlConfig
from hsae.files import write_csv, write_figure, write_json
from stages.budget import read_training
from stages.files import read_store
from stages.trained import read_hsae


def main() -> None:
    """Run the stage."""
    with run.stage("recurrence") as stage:
        device = stage.device()
        config = stage.params(ControlConfig, "control")
        training = read_training(stage)
        seed = training.dictionary.seed
        other = replace(training, dictionary=replace(training.dictionary, seed=seed + 1))
        train = controls.contexts(read_store(stage, "train", device), config.tokens)
        with stage.checkpoints() as folder:
            model = controls.train(train, other.shortened(config.epochs_share), False, Checkpoints(folder))
            table = recurrence.recurrence(read_hsae(stage, device), model, seed)
            write_json(Path("metrics/recurrence.json"), recurrence.summarize(table))
            write_csv(Path("plots/recurrence.csv"), table)
            write_figure(Path("plots/recurrence.png"), feature_plots.recurrence(table))


if __name__ == "__main__":
    main()
