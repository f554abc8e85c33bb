"""Level 1 -> the whole HSAE: level 2 is initialised from data and trained while level 1 is frozen."""

from hsae import run, variants
from hsae.checkpoint import Checkpoints
from hsae.curriculum import phase2
from hsae.dictionary import DictionaryConfig, LatentConfig
from hsae.files import read_tensors
from hsae.hierarchical import validate
from hsae.losses import Coefficients
from hsae.processes import leads, start, together
from hsae.training import Phase
from stages.files import read_store, write_trained
from stages.training_split import read_train


def main() -> None:
    """Run the stage."""
    with run.stage("phase2") as stage:
        device = stage.device()
        phase = stage.params(Phase, "phase2")
        c = stage.params(Coefficients)
        dictionary = stage.params(DictionaryConfig)
        latents = stage.params(LatentConfig)
        start(stage, device)
        level1 = variants.load(*read_tensors(stage.input("models/phase1.safetensors"))).to(device)
        train, val = read_train(stage, device), read_store(stage, "val", device)
        width = dictionary.width(2, train.d_in)

        with together(stage, device) as folder:
            stream = dictionary.stream("phase2")
            model, curve = phase2(level1, width, train, c, phase, latents, stream, Checkpoints(folder))
            if leads():
                write_trained("phase2", model, model.header(), curve, validate(model, val.batches()))


if __name__ == "__main__":
    main()
