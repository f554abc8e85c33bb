"""The stability over seeds of what a sweep has trained: models of finished experiments, read from DVC's cache."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hsae import feature_plots
from hsae.experiments import read_tensors
from hsae.files import write_csv, write_figure, write_json
from hsae.stability import Directions, stability, summarize

IDLE_TOKENS = 100_000  # a latent that was silent on so many of the last training tokens is dead


def read_models(commit: str, paths: dict[str, str]) -> dict[str, Directions]:
    """Dictionary -> its directions in the models that a commit has at `paths` (name of a dictionary -> path).

    Nothing is checked out. The file of an HSAE holds three: level 1; level 2 by its directions in the space of x; and
    level 2 by its weights on level-1 latents. Raises OSError for a file that is in no cache or remote storage.
    """
    found: dict[str, Directions] = {}
    for name, path in paths.items():
        found |= directions(name, read_tensors(commit, path))
    return found


def directions(name: str, tensors: dict[str, Tensor]) -> dict[str, Directions]:
    """Directions of the living latents of a flat autoencoder, called `name`, or of an HSAE's levels."""
    if "W_dec" in tensors:
        return {name: _living(tensors, "")}
    level1, level2 = _living(tensors, "level1."), _living(tensors, "level2.")
    all_of_level1 = tensors["level1.W_dec"].double().numpy()
    return {
        f"{name} level 1": level1,
        f"{name} level 2": replace(level2, rows=level2.rows @ all_of_level1),
        f"{name} level 2 in h1": replace(level2, basis=all_of_level1),
    }


def collect(commits: dict[int, str], paths: dict[str, str], name: str = "stability") -> None:
    """Write the stability of the models of some commits (seed -> commit) to metrics/ and plots/, under a name.

    metrics/<name>.csv has the pairs of seeds, metrics/<name>_latents.csv the latents of the first seed
    (`stability.stability`).
    """
    models: dict[str, dict[int, Directions]] = {}
    for seed, commit in commits.items():
        for dictionary, found in read_models(commit, paths).items():
            models.setdefault(dictionary, {})[seed] = found
    pairs, latents = stability(models, seed=0)
    write_csv(Path(f"metrics/{name}.csv"), pairs)
    write_json(Path(f"metrics/{name}.json"), summarize(pairs, latents))
    write_csv(Path(f"metrics/{name}_latents.csv"), latents)
    level2 = latents.query("dictionary.str.contains('level 2')")
    write_figure(Path(f"plots/{name}.png"), feature_plots.stability(pairs, level2))


def _living(tensors: dict[str, Tensor], prefix: str) -> Directions:
    latents = (tensors[f"{prefix}idle_tokens"] < IDLE_TOKENS).nonzero().squeeze(1)
    return Directions(tensors[f"{prefix}W_dec"][latents].double().numpy(), latents.numpy())
