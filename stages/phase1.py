"""Activations -> level 1 of the HSAE, trained alone."""

from hsae import run, variants
from hsae.checkpoint import Checkpoints
from hsae.dictionary import DictionaryConfig, LatentConfig
from hsae.losses import Coefficients
from hsae.metrics import summarize
from hsae.processes import leads, start, together
from hsae.sharpening import Sharpening, phase1
from hsae.training import Phase
from stages.files import read_store, write_trained
from stages.training_split import read_train


def main() -> None:
    """Run the stage."""
    with run.stage("phase1") as stage:
        device = stage.device()
        phase = stage.params(Phase, "phase1")
        sharpening = stage.params(Sharpening, "sharpening")
        c = stage.params(Coefficients)
        dictionary = stage.params(DictionaryConfig)
        latents = stage.params(LatentConfig)
        start(stage, device)
        train, val = read_train(stage, device), read_store(stage, "val", device)
        width = dictionary.width(1, train.d_in)
        kind, weights = latents.activation, dictionary.weights(1)
        model = variants.drawn(kind, train.d_in, width, k=latents.k1, beta=c.beta1, stream=weights).to(device)

        with together(stage, device) as folder:
            stream, dead_tokens = dictionary.stream("phase1"), latents.dead_tokens
            curve = phase1(model, train, c, phase, sharpening, dead_tokens, stream, Checkpoints(folder))
            if leads():
                metrics = {"level1": summarize(model.reconstruct, val.batches())}
                write_trained("phase1", model, model.header(), curve, metrics)


if __name__ == "__main__":
    main()
