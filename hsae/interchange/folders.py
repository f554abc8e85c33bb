"""Whole models as folders: both levels of an HSAE, or a flat autoencoder, written in a format and read from it."""

import pickle
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from hsae import hierarchical, variants
from hsae.activations import Normalizer
from hsae.files import read_tensors, write_tensors
from hsae.hierarchical import HierarchicalSAE
from hsae.interchange import dictionary_learning, saelens, sparsify
from hsae.interchange.site import Site
from hsae.interchange.weights import fold, unfold
from hsae.sae import SAE

FORMATS = {"saelens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}


def load(path: Path) -> SAE | HierarchicalSAE:
    """The HSAE or flat autoencoder of one of our own files. Raises ValueError for any other file."""
    tensors, header = read_tensors(path)
    is_hsae = isinstance(header, dict) and "level1" in header
    return hierarchical.load(tensors, header) if is_hsae else variants.load(tensors, header)


@torch.no_grad()
def write(model: SAE | HierarchicalSAE, folder: Path, form: str, normalizer: Normalizer, site: Site) -> None:
    """Write a model, whose input becomes raw activations at `site`; the latents' activations stay as they are.

    A flat autoencoder lies in the folder itself. Of an HSAE, level1/ reads activations, level2/ reads what level 1
    makes of them, and hierarchy.safetensors holds W_dec2 [d_sae2, d_sae1], how much of each child is in each parent,
    and directions_h2 [d_sae2, d_in], the parents' directions in the residual stream. Raises ValueError for a kind of
    autoencoder that the format does not have.
    """
    if isinstance(model, SAE):
        FORMATS[form].write(fold(model, normalizer), folder, site)
        return
    folded = HierarchicalSAE(fold(model.level1, normalizer), model.level2)
    FORMATS[form].write(folded.level1, folder / "level1", site)
    FORMATS[form].write(folded.level2, folder / "level2", site.latents)
    hierarchy = {"W_dec2": folded.level2.W_dec, "directions_h2": folded.directions_h2}
    write_tensors(folder / "hierarchy.safetensors", hierarchy)


def read(folder: Path, form: str, normalizer: Normalizer) -> SAE | HierarchicalSAE:
    """The inverse of `write`: a model on normalised activations, in evaluation mode.

    Two folders level1/ and level2/ are an HSAE, all else a flat autoencoder. What a format does not tell apart comes
    back as the format has it: BatchTopK may become JumpReLU, with the same outputs. Raises ValueError if the folder is
    not of the format, or the levels are not those of an HSAE.
    """
    if not (folder / "level2").is_dir():
        return unfold(_read(folder, form), normalizer)
    level1 = unfold(_read(folder / "level1", form), normalizer)
    level2 = _read(folder / "level2", form, nonnegative=True)
    if level2.d_in != level1.d_sae:
        raise ValueError(f"{folder}: level 2 has {level2.d_in} inputs; level 1 has {level1.d_sae} latents.")
    if (level2.W_dec < 0).any():
        raise ValueError(f"{folder}: level 2's decoder has negative entries; an HSAE's parents are sums of children.")
    return HierarchicalSAE(level1, level2).eval()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, that appears as `path` when the block ends well; else nothing is left of it.

    Raises ValueError if there is something at `path` already, but for an empty folder.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists already: remove it, or choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as beside:
        folder = Path(beside, path.name)
        folder.mkdir()
        yield folder
        folder.rename(path)


def _read(folder: Path, form: str, nonnegative: bool = False) -> SAE:
    try:
        return FORMATS[form].read(folder, nonnegative=nonnegative)
    except (LookupError, TypeError, AttributeError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    except (SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error)
    raise ValueError(f"{folder} cannot be read as {form}: {textwrap.shorten(reason, 200)}")
