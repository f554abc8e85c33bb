"""The model card of an exported folder: what the model is, how it was trained and measured, how to load it."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hsae import config
from hsae.files import digest, read_json, write_text
from hsae.hierarchical import HierarchicalSAE
from hsae.interchange.folders import FORMATS
from hsae.interchange.site import Site
from hsae.run import LOCK, lock_entry
from hsae.sae import SAE


def write(folder: Path, source: Path, model: SAE | HierarchicalSAE, form: str, site: Site, name: str) -> bool:
    """Write README.md and a copy of params.yaml; whether the card has metrics.

    `source` is the pipeline's file that `model` was read from, `name` what the folder will be called. Raises ValueError
    outside of the project's root, where params.yaml and dvc.lock are.
    """
    if not LOCK.is_file():
        raise ValueError(f"{LOCK} is missing; run from the project's root, after `dvc repro`.")
    params = config.read_params()
    metrics = measured(source, model)
    content = {
        "form": form,
        "levels": _levels(model),
        "hierarchical": isinstance(model, HierarchicalSAE),
        "site": site,
        "source": source,
        "source_sha256": digest(source),
        "lock_sha256": digest(LOCK),
        "corpus": params["prepare_data"]["corpus"],
        "metrics": config.flatten(metrics),
        "name": name,
        "importing": FORMATS[form].IMPORT,
        "loading": FORMATS[form].LOAD,
        "version": version("hsae"),
    }
    environment = Environment(
        loader=PackageLoader("hsae"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    write_text(folder / "README.md", environment.get_template("model_card.md").render(**content).rstrip() + "\n")
    write_text(folder / "params.yaml", config.PARAMS.read_text(encoding="utf-8"))
    return bool(metrics)


def measured(source: Path, model: SAE | HierarchicalSAE) -> dict[str, Any]:
    """The model's metrics on the test split; none unless dvc.lock records that they were computed from this very file.

    Otherwise they may be those of the model that lay there before.
    """
    hierarchical = isinstance(model, HierarchicalSAE)
    stage, path = ("evaluate_hsae", "metrics/hsae.json") if hierarchical else ("evaluate", "metrics/evaluate.json")
    recorded = lock_entry(stage)
    files = source, Path(path)
    if not all(file.is_file() and digest(file, "md5") in recorded for file in files):
        return {}
    found = read_json(Path(path))
    return found if hierarchical else found["flat"].get(source.stem, {})


def _levels(model: SAE | HierarchicalSAE) -> dict[str, SAE]:
    """The autoencoders by the folders that they lie in."""
    return {".": model} if isinstance(model, SAE) else {"level1": model.level1, "level2": model.level2}
