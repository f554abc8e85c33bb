"""Level 1 -> the whole HSAE: level 2 is initialised from data and trained while level 1 is frozen."""

import torch

from hsae import run, sae
from hsae.dictionary import DictionaryConfig
from hsae.files import read_tensors
from hsae.hierarchical import HierarchicalSAE, objective, validate
from hsae.losses import Coefficients
from hsae.training import Phase, fit
from stages.files import read_store, write_trained

INIT_TOKENS = 16384


def main() -> None:
    """Run the stage."""
    with run.stage("phase2") as stage:
        device = stage.device()
        phase = stage.params(Phase, "phase2")
        c = stage.params(Coefficients)
        dictionary = stage.params(DictionaryConfig)
        level1 = sae.load(*read_tensors(stage.input("models/phase1.safetensors")))
        train, val = (read_store(stage, split, device) for split in ("train", "val"))
        torch.manual_seed(dictionary.seed)
        model = HierarchicalSAE(level1, dictionary.widths(train.d_in)[1]).to(device)
        model.init_level2(train.x(slice(0, INIT_TOKENS)))
        model.level1.requires_grad_(False)
        with stage.checkpoints():
            curve = fit("phase2", model, train, lambda x: objective(model, x, c), phase, dictionary.seed)
        write_trained("phase2", model, model.header(), curve, validate(model, val.batches()))


if __name__ == "__main__":
    main()
