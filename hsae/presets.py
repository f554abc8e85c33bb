"""Presets as `-S` flags: `dvc exp run $(python -m hsae.presets run=run_3 scale=small)`.

Hydra composes the groups of hsae/conf; params.yaml stays the only truth, and `dvc exp run` writes the values into it.
"""

import json
import sys
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from hsae.config import flatten

CONF = Path(__file__).parent / "conf"


def overrides(choices: list[str]) -> dict[str, object]:
    """Dotted keys of params.yaml and their values under the chosen presets, such as ["run=run_3", "data=kjv"].

    Raises ValueError, naming what there is to choose from, for a group or preset that does not exist.
    """
    groups = {folder.name: sorted(file.stem for file in folder.glob("[!_]*")) for folder in sorted(CONF.glob("*/"))}
    for choice in choices:
        group, _, preset = choice.partition("=")
        if preset not in groups.get(group, []):
            allowed = "; ".join(f"{name}={'|'.join(presets)}" for name, presets in groups.items())
            raise ValueError(f"no preset `{choice}`; allowed: {allowed}.")
    with initialize_config_dir(str(CONF), version_base=None):
        return flatten(cast(dict[str, Any], OmegaConf.to_container(compose("presets", choices))))


def flags(values: dict[str, object]) -> list[str]:
    """The arguments by which `dvc exp run` writes values into params.yaml; numbers and lists without a blank."""
    texts = {k: v if isinstance(v, str) else json.dumps(v, separators=(",", ":")) for k, v in values.items()}
    return [part for key, text in texts.items() for part in ("-S", f"{key}={text}")]


def main(choices: list[str]) -> None:
    """Print the flags on one line."""
    try:
        print(" ".join(flags(overrides(choices))))
    except (ValueError, HydraException) as error:
        sys.exit(f"error: presets: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
