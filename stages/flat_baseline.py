"""Activations -> a flat autoencoder as wide and as sparse as one HSAE level, and trained on as many tokens.

Arguments: the name of the item in dvc.yaml, its variant, and the level (1 or 2) that it is matched with.
"""

import sys
from dataclasses import replace

from hsae import flat, run
from hsae.checkpoint import Checkpoints
from hsae.dictionary import DictionaryConfig, LatentConfig
from hsae.files import read_json
from hsae.flat import FlatConfig
from hsae.metrics import summarize
from hsae.processes import leads, start, together
from hsae.sharpening import Sharpening
from hsae.training import Phase, fit
from stages.files import read_store, write_trained
from stages.training_split import read_train


def main(name: str, variant: str, level: int) -> None:
    """Run the stage."""
    with run.stage(f"flat_baseline/{name}") as stage:
        device = stage.device()
        config = stage.params(FlatConfig, "flat_baseline")
        dictionary = stage.params(DictionaryConfig)
        # Level 1 trains in phase 1, while it is sharpened, and in phase 3; level 2 in phases 2 and 3.
        phase, phase3 = stage.params(Phase, f"phase{level}"), stage.params(Phase, "phase3")
        sharpened = (level == 1) * stage.params(Sharpening, "sharpening").epochs
        phase = replace(phase, epochs=phase.epochs + sharpened + phase3.epochs)
        dead_tokens = stage.params(LatentConfig).dead_tokens
        start(stage, device)
        l0 = read_json(stage.input(f"models/l0/level{level}.json"))["l0"]
        train, val = read_train(stage, device), read_store(stage, "val", device)
        # The start and the batches of the HSAE's level, as far as that trains: they are compared pair by pair.
        width, weights = dictionary.width(level, train.d_in), dictionary.weights(level)
        model = flat.drawn(variant, train.d_in, width, l0, config.initial_beta, weights).to(device)
        gradients, stream = flat.SteeredGradients(model, l0), dictionary.stream(f"phase{level}")
        with together(stage, device) as folder:
            curve = fit(stage.name, model, train, gradients, phase, stream, dead_tokens, Checkpoints(folder))
            if leads():
                metrics = summarize(model.reconstruct, val.batches())
                write_trained(stage.name, model, model.header(), curve, metrics)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
