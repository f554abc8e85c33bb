"""Reading of all that phases 1 to 3 are told, for stages that train an HSAE on a smaller budget."""

from hsae.controls import Training
from hsae.dictionary import DictionaryConfig, LatentConfig
from hsae.losses import Coefficients
from hsae.run import Stage
from hsae.sharpening import Sharpening
from hsae.training import Phase


def read_training(stage: Stage) -> Training:
    """Coefficients, kinds and widths of latents, and the four phases."""
    return Training(
        stage.params(Coefficients),
        stage.params(LatentConfig),
        stage.params(DictionaryConfig),
        stage.params(Phase, "phase1"),
        stage.params(Sharpening, "sharpening"),
        stage.params(Phase, "phase2"),
        stage.params(Phase, "phase3"),
    )
