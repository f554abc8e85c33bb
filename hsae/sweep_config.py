"""What hsae/sweeps describes: conditions, seeds, and what of them is compared."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hsae import claims, presets, variants
from hsae.claims import Claim
from hsae.config import check, check_positive, flatten

SWEEPS = Path(__file__).parent / "sweeps"
LANGUAGE_MODEL_SEEDS = ("train_transformer.seed", "extract_activations.seed")


@dataclass
class Sweep:
    """What every sweep has; hsae/sweeps/ablations.yaml explains the keys."""

    target: str
    metrics: list[str]
    seeds: list[int]
    budget: dict[str, Any]
    conditions: dict[str, dict[str, Any]]
    headline: dict[str, str]

    def __post_init__(self) -> None:
        check("seeds", self.seeds, "at least one, each once", 0 < len(set(self.seeds)) == len(self.seeds))
        for name in self.conditions:
            check("conditions", name, "named in lower case, digits and _", bool(re.fullmatch("[a-z0-9_]+", name)))

    def runs(self, params: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
        """What each condition and seed changes, one condition after the other: its seeds share no stage.

        `params` are those of params.yaml, with dotted keys; for what is refused, see `overrides`.
        """
        values = {condition: self.overrides(condition, params) for condition in self.conditions}
        return {
            (condition, seed): {**values[condition], "seed": seed}
            for condition in self.conditions
            for seed in self.seeds
        }

    def content(self, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What an experiment is known by, given its metrics files by their paths: the keys of all."""
        return {key: value for metrics in files.values() for key, value in metrics.items()}

    def overrides(self, condition: str, params: dict[str, Any]) -> dict[str, Any]:
        """What a condition changes beside the seed: the budget, then its preset, then its own values.

        Raises ValueError, naming the condition, for an unknown preset, a key that `params` does not have, or `seed`.
        """
        own = flatten(self.conditions[condition])
        preset = own.pop("preset", None)
        try:
            of_preset = presets.overrides([f"run={preset}"]) if preset else {}
        except ValueError as error:
            raise ValueError(f"condition {condition}: {error}") from None
        values = {**flatten(self.budget), **of_preset, **own}
        for key in values:
            if key == "seed" or key not in params:
                why = "is set by `seeds`" if key == "seed" else "is no key of params.yaml"
                raise ValueError(f"condition {condition}: `{key}` {why}.")
        return values


@dataclass
class Ablations(Sweep):
    """Conditions that are compared with one of them, the reference, seed by seed; `claims` are those of the docs."""

    reference: str
    claims: list[Claim]

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = f"one of the conditions {', '.join(self.conditions)}"
        check("reference", self.reference, allowed, self.reference in self.conditions)
        ablated = [condition for condition in self.conditions if condition != self.reference]
        for claim in self.claims:
            check("claims.condition", claim.condition, f"one of {', '.join(ablated)}", claim.condition in ablated)
        components = [claim.component for claim in self.claims]
        check("claims.component", components, "each once", len(set(components)) == len(components))


@dataclass
class Frontier(Sweep):
    """Sparsities, and the L0s of each level at which methods are compared with the method `reference`, seed by seed.

    `headline` has metrics of a dictionary.
    """

    reference: str
    matched_l0: dict[str, list[float]]

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = ["HSAE", *variants.VARIANTS]
        check("reference", self.reference, f"one of {', '.join(allowed)}", self.reference in allowed)
        for level in self.matched_l0:
            check("matched_l0", level, "level1 or level2", level in ("level1", "level2"))


@dataclass
class Comparison(Sweep):
    """One condition: methods against the method `reference`, seed by seed; features of `models` over the seeds."""

    reference: str
    models: dict[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        check("conditions", list(self.conditions), "one", len(self.conditions) == 1)
        methods = [name for name in self.models if not name.endswith(" level 2")]
        check("reference", self.reference, f"one of the models {', '.join(methods)}", self.reference in methods)


@dataclass
class GroundTruth(Sweep):
    """Difficulties of synthetic data, at each of which methods are compared with the method `reference`.

    `headline` has scores of hsae/ground_truth.py behind the difficulty: `easy.edge_ap`. The figure has the methods of
    `beside`, as far as there are results of them, next to the reference.
    """

    reference: str
    beside: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = ["hsae", "level1_alone", *variants.VARIANTS]
        check("reference", self.reference, f"one of {', '.join(allowed)}", self.reference in allowed)


@dataclass
class Controls(Sweep):
    """One condition: the HSAE proper, which is the `reference`, against its controls, seed by seed.

    Each language model, of a seed of its own, serves `seeds_per_language_model` seeds in turn. A metrics file is a
    control's, whose name it has.
    """

    reference: str
    seeds_per_language_model: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check("conditions", list(self.conditions), "one", len(self.conditions) == 1)
        check_positive(self, ["seeds_per_language_model"])
        allowed = [Path(path).stem for path in self.metrics]
        check("reference", self.reference, f"one of {', '.join(allowed)}", self.reference in allowed)

    def runs(self, params: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
        """As of every sweep, and the seeds of the language model."""
        return {
            run: values | dict.fromkeys(LANGUAGE_MODEL_SEEDS, run[1] // self.seeds_per_language_model)
            for run, values in super().runs(params).items()
        }

    def content(self, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The metrics of each control, by its name."""
        return {Path(path).stem: metrics for path, metrics in files.items()}


AnySweep = Ablations | Frontier | Comparison | GroundTruth | Controls
SCHEMAS: dict[str, type[AnySweep]] = {
    "ablations": Ablations,
    "frontier": Frontier,
    "comparison": Comparison,
    "final": Comparison,
    "recovery": GroundTruth,
    "controls": Controls,
}


def load(name: str) -> AnySweep:
    """Read a sweep from hsae/sweeps, the ablations with their claims, which are for the same seeds.

    Raises ValueError, in one line, for an unknown or missing key or a bad value.
    """
    path = SWEEPS / f"{name}.yaml"
    try:
        sweep = OmegaConf.merge(OmegaConf.structured(SCHEMAS[name]), OmegaConf.load(path))
        if SCHEMAS[name] is Ablations:
            written = claims.read()
            sweep = OmegaConf.merge(sweep, {"claims": written["claims"]})
            seeds = [int(seed) for seed in written["seeds"]]
            check("seeds", list(sweep.seeds), f"those of the claims, {seeds}", list(sweep.seeds) == seeds)
        return OmegaConf.to_object(sweep)  # pyright: ignore[reportReturnType]
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error
