"""The stability over seeds of what a sweep has trained: models of finished experiments, read from DVC's cache."""

from pathlib import Path

import torch

from hsae import activations, feature_plots, hierarchical, variants
from hsae.activations import Store
from hsae.experiments import read_tensors
from hsae.files import write_csv, write_figure, write_json
from hsae.hierarchical import HierarchicalSAE
from hsae.sae import SAE
from hsae.stability import Directions, living, stability, summarize
from hsae.streams import Stream

VALIDATION = "data/activations/val.safetensors"


def read_models(commit: str, paths: dict[str, str]) -> dict[str, Directions]:
    """Dictionary -> its directions in the models that a commit has at `paths` (name of a dictionary -> path).

    Nothing is checked out. The file of an HSAE holds three: level 1; level 2 by its directions in the space of x; and
    level 2 by its weights on level-1 latents. Raises OSError for a file that is in no cache or remote storage.
    """
    store = activations.read(*read_tensors(commit, VALIDATION), torch.device("cpu"))
    found: dict[str, Directions] = {}
    for name, path in paths.items():
        tensors, header = read_tensors(commit, path)
        is_flat = "W_dec" in tensors
        model = variants.load(tensors, header) if is_flat else hierarchical.load(tensors, header)
        found |= directions(name, model, store)
    return found


def directions(name: str, model: SAE | HierarchicalSAE, store: Store) -> dict[str, Directions]:
    """Directions of the latents of a flat autoencoder, called `name`, or of an HSAE's levels, that live on a store."""
    if isinstance(model, SAE):
        return {name: living(model.encode, model.W_dec, store.batches())}
    level2 = living(model.encode_h2, model.level2.W_dec, store.batches())
    of_level1 = model.level1.W_dec.detach().double().cpu().numpy()
    return {
        f"{name} level 1": living(model.level1.encode, model.level1.W_dec, store.batches()),
        f"{name} level 2": Directions(level2.rows @ of_level1, level2.latents),
        f"{name} level 2 in h1": Directions(level2.rows, level2.latents, basis=of_level1),
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
    pairs, latents = stability(models, Stream(0, f"seed_models/{name}/nulls"))
    write_csv(Path(f"metrics/{name}.csv"), pairs)
    write_json(Path(f"metrics/{name}.json"), summarize(pairs, latents, Stream(0, f"seed_models/{name}/intervals")))
    write_csv(Path(f"metrics/{name}_latents.csv"), latents)
    level2 = latents.query("dictionary.str.contains('level 2')")
    write_figure(Path(f"plots/{name}.png"), feature_plots.stability(pairs, level2))
