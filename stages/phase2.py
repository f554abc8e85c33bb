"""Level 1 -> the whole HSAE: level 2 is initialised from data and trained while level 1 is frozen."""

import torch

from hsae import run, two_level, variants
from hsae.dictionary import DictionaryConfig, LatentConfig
from hsae.files import read_tensors
from hsae.hierarchical import HierarchicalSAE, validate
from hsae.losses import Coefficients
from hsae.training import Phase, fit
from stages.files import read_store, write_trained


def main() -> None:
    """Run the stage."""
    with run.stage("phase2") as stage:
        device = stage.device()
        phase = stage.params(Phase, "phase2")
        c = stage.params(Coefficients)
        dictionary = stage.params(DictionaryConfig)
        latents = stage.params(LatentConfig)
        level1 = variants.load(*read_tensors(stage.input("models/phase1.safetensors")))
        train, val = (read_store(stage, split, device) for split in ("train", "val"))
        torch.manual_seed(dictionary.seed)
        width = dictionary.widths(train.d_in)[1]
        level2 = variants.build(latents.activation, level1.d_sae, width, k=latents.k2, beta=c.beta2, nonnegative=True)
        model = HierarchicalSAE(level1, level2).to(device)
        if latents.init_tokens:
            model.init_level2(train.x(slice(0, latents.init_tokens)))
        model.level1.requires_grad_(False)

        with stage.checkpoints():
            gradients = two_level.gradients(model, c)
            curve = fit("phase2", model, train, gradients, phase, dictionary.seed, latents.dead_tokens)
        write_trained("phase2", model, model.header(), curve, validate(model, val.batches()))


if __name__ == "__main__":
    main()
