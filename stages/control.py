"""Activations -> an HSAE trained on a smaller budget, proper or as a control, and its headlines on the test split.

All are of another seed than the run's own HSAE, so that `recurrence` can ask which latents come of both.
Argument: the item in dvc.yaml, one of `hsae.controls.Control`.
"""

import sys
from dataclasses import replace
from pathlib import Path

from hsae import controls, run
from hsae.checkpoint import Checkpoints
from hsae.controls import Control, ControlConfig
from hsae.feature_clustering import FeatureClusteringConfig
from hsae.files import read_json, read_tensors, write_json, write_tensors
from hsae.language_model import TransformerConfig
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
        transformer_seed = stage.params(TransformerConfig, "train_transformer").seed
        training = read_training(stage).shortened(config.epochs_share)
        seed = training.dictionary.seed + 1
        training = replace(training, dictionary=replace(training.dictionary, seed=seed))
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        train = controls.contexts(read_train(stage, device).first(config.tokens), config.tokens)
        test = controls.contexts(read_store(stage, "test", device), config.test_tokens)
        if control == Control.random_transformer:
            train, test = controls.of_transformer(read_untrained(stage, device, transformer_seed), train, test, tokens)
        elif control == Control.shuffled_activations:
            train, test = (controls.shuffled(store, seed) for store in (train, test))

        with stage.checkpoints() as folder:
            model = controls.train(train, training, control == Control.random_decoder, Checkpoints(folder))
            write_tensors(Path(f"models/control/{control}.safetensors"), model.state_dict(), model.header())
            offsets = test.activations.offsets.long()
            text = Text.at(tokens.numpy(), offsets.numpy(), vocabulary)
            result = {"n_train_tokens": len(train), **controls.measure(model, test, text, information, clustering)}
            recovered = None
            if control in (Control.trained, Control.random_decoder):
                recovered = controls.loss_recovered(model, read_transformer(stage, device), test, tokens)
            write_json(Path(f"metrics/control/{control}.json"), {**result, "recovered": recovered})


if __name__ == "__main__":
    main(Control(sys.argv[1]))
