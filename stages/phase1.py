"""Activations -> level 1 of the HSAE, trained alone."""

import torch

from hsae import run
from hsae.dictionary import DictionaryConfig
from hsae.hierarchical import level1_objective
from hsae.losses import Coefficients
from hsae.metrics import summarize
from hsae.sae import SAE
from hsae.training import Phase, fit
from stages.files import read_store, write_trained


def main() -> None:
    """Run the stage."""
    with run.stage("phase1") as stage:
        device = stage.device()
        phase = stage.params(Phase, "phase1")
        c = stage.params(Coefficients)
        dictionary = stage.params(DictionaryConfig)
        train, val = (read_store(stage, split, device) for split in ("train", "val"))
        torch.manual_seed(dictionary.seed)
        model = SAE(train.d_in, dictionary.widths(train.d_in)[0]).to(device)
        with stage.checkpoints():
            curve = fit("phase1", model, train, lambda x: level1_objective(model, x, c), phase, dictionary.seed)
        write_trained("phase1", model, model.header(), curve, {"level1": summarize(model, val.batches())})


if __name__ == "__main__":
    main()
