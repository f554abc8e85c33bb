"""Activations -> an HSAE trained on a smaller budget, proper or as a control, and its headlines on the test split.

All have streams of their own, so that `recurrence` can ask which latents come both of the run's own HSAE and of the
one that is trained here. Argument: the item in dvc.yaml, one of `hsae.controls.Control`.
"""

import sys
from dataclasses import replace
from pathlib import Path

from hsae import controls, run
from hsae.checkpoint import Checkpoints
from hsae.controls import Control, ControlConfig
from hsae.feature_clustering import FeatureClusteringConfig
from hsae.files import read_json, read_tensors, write_json, write_tensors
from hsae.latent_classes import Text
from hsae.shared_information import InformationConfig
from stages.budget import read_training
from stages.files import read_store
from stages.training_split import read_train
from stages.transformer import read_transformer, read_untrained


def main(control: Control) -> None:
    """Run the stage."""
    with run.stage(f"control/{control}") as stage:
        device = stage.device()
        config = stage.params(ControlConfig, "control")
        information = replace(stage.params(InformationConfig, "mutual_information"), shifts=config.shifts)
        clustering = stage.params(FeatureClusteringConfig, "feature_clustering")
        training = read_training(stage).shortened(config.epochs_share)
        stream = training.dictionary.stream("control")
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        train = controls.contexts(read_train(stage, device).first(config.tokens), config.tokens)
        val, test = (read_store(stage, split, device).spread(config.test_tokens) for split in ("val", "test"))
        test = test.halves_in_turn()  # pairs that share information are chosen on one, and tested on the other
        if control == Control.random_transformer:
            untrained = read_untrained(stage, device, stream.of("random transformer"))
            train, val, test = controls.of_transformer(untrained, train, [val, test], tokens)
        elif control == Control.shuffled_activations:
            stores = {"train": train, "val": val, "test": test}
            shuffles = stream.of("shuffle of the activations")
            train, val, test = (controls.shuffled(store, shuffles.of(split)) for split, store in stores.items())

        with stage.checkpoints() as folder:
            model = controls.train(train, training, control == Control.random_decoder, stream, Checkpoints(folder))
            write_tensors(Path(f"models/control/{control}.safetensors"), model.state_dict(), model.header())
            kept = test.scored(slice(None)).activations.offsets
            text = Text.at(tokens.numpy(), kept.long().numpy(), vocabulary)
            measured = controls.measure(model, val, test, text, information, clustering, stream.of("headlines"))
            recovered = None
            if control in (Control.trained, Control.random_decoder):
                recovered = controls.loss_recovered(model, read_transformer(stage, device), test, tokens)
            result = {"n_train_tokens": len(train), **measured, "recovered": recovered}
            write_json(Path(f"metrics/control/{control}.json"), result)


if __name__ == "__main__":
    main(Control(sys.argv[1]))
