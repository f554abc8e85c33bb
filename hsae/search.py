"""The search for the settings of the HSAE and its rivals on data whose hierarchy is known: `python -m hsae.search`.

Every kind is tried with as many settings (hsae/sweeps/search.yaml), on the same forests, and is scored on the choosing
samples, which no published score is of. It needs neither DVC nor OmegaConf. What is finished stands in
metrics/search.jsonl, a line for each; a rerun does the rest. The lines say nothing of code and other parameters: remove
the file when these have changed. metrics/search.json has the scores of all settings, and what each kind's best
scores on all choosing seeds.
"""

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import pandas as pd
import yaml

from hsae import ground_truth, recovery
from hsae.config import PARAMS, check
from hsae.files import write_json
from hsae.ground_truth import ALONE, UNTRAINED, GroundTruthConfig
from hsae.ground_truth_scores import score
from hsae.streams import Stream
from hsae.workers import share, workers

T = TypeVar("T")
Setting = dict[str, Any]
SWEEPS = Path(__file__).parent / "sweeps"
DONE, RESULT = Path("metrics/search.jsonl"), Path("metrics/search.json")
TRIED, CHOSEN = "tried", "chosen"
DECIDES, THEN = "edge_ap", "mcc"
KEPT = (DECIDES, THEN, "l0")


@dataclass
class Search:
    """What hsae/sweeps/search.yaml says: seeds of each difficulty, for the search and for what it chooses; grids."""

    tried: dict[str, list[int]]
    chosen: dict[str, list[int]]
    grids: dict[str, dict[str, list[Any]]]

    def __post_init__(self) -> None:
        sizes = {kind: len(self.settings(kind)) for kind in self.grids}
        check("grids", sizes, "of as many settings for each kind", len(set(sizes.values())) == 1)

    def settings(self, kind: str) -> list[Setting]:
        """All combinations of a kind's values."""
        grid = self.grids[kind]
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def runs(self) -> list["Run"]:
        """All that is tried: the settings of one seed and difficulty, which all kinds share, stand together."""
        return [
            Run(TRIED, kind, setting, difficulty, seed)
            for difficulty, seeds in self.tried.items()
            for seed in seeds
            for kind in self.grids
            for setting in self.settings(kind)
        ]

    def runs_of_chosen(self, settings: dict[str, Setting]) -> list["Run"]:
        """Trainings by each kind's chosen setting, and kinds at their start, on all choosing seeds."""
        at_start = {f"{UNTRAINED}{kind}": {} for kind in settings if kind != ALONE}
        return [
            Run(CHOSEN, kind, setting, difficulty, seed)
            for difficulty, seeds in self.chosen.items()
            for seed in seeds
            for kind, setting in (settings | at_start).items()
        ]


class Run(NamedTuple):
    """A training, for a purpose: of a kind, by a setting, on a difficulty, from a seed."""

    purpose: str
    kind: str
    setting: Setting
    difficulty: str
    seed: int

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return json.dumps(list(self))

    def overrides(self, difficulties: dict[str, Setting]) -> Setting:
        """What the run changes in the section `synthetic`, with dotted keys."""
        prefix = "" if self.kind == "hsae" else f"rival_settings.{self.kind}."
        return {**difficulties[self.difficulty], **{prefix + key: value for key, value in self.setting.items()}}


def build(schema: type[T], values: dict[str, Any]) -> T:
    """A schema's instance of plain values; its own checks apply. Raises ValueError for unknown or missing keys."""
    hints = get_type_hints(schema)
    names = [field.name for field in fields(schema)]  # pyright: ignore[reportArgumentType]
    check(schema.__name__, sorted(values), f"of the keys {', '.join(names)}", set(values) == set(names))
    return schema(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        return build(kind, value)  # pyright: ignore[reportArgumentType]
    if get_origin(kind) is dict:
        return {key: _value(get_args(kind)[1], item) for key, item in value.items()}
    return kind(value) if isinstance(kind, type) and issubclass(kind, Enum) else value


def overridden(values: dict[str, Any], overrides: Setting) -> dict[str, Any]:
    """A copy of nested values in which those of some dotted keys are others. Raises ValueError for an unknown key."""
    changed = json.loads(json.dumps(values))
    for key, value in overrides.items():
        *path, last = key.split(".")
        section = changed
        for name in path:
            section = section.get(name, {})
        check("override", key, "a key of the section `synthetic`", last in section)
        section[last] = value
    return changed


def scored(section: dict[str, Any], difficulties: dict[str, Setting], done: Path, run: Run) -> dict[str, Any]:
    """Train and score; adds a line to `done`, and returns what it says.

    What is tried is scored on the choosing samples, what was chosen on the others.
    """
    start = time.monotonic()
    config = build(GroundTruthConfig, overridden(section, run.overrides(difficulties)))
    stream = Stream(run.seed, "synthetic")
    drawn = ground_truth.draw(config, stream)
    model = ground_truth.model_of(run.kind, config, drawn, stream)
    scoring = drawn.choosing if run.purpose == TRIED else drawn.scoring
    scores = score(model, drawn.choosing, scoring, stream.of("scores", run.kind))
    truth = {"true_l0": drawn.l0s[0], "prevalence": recovery.prevalence(drawn.forest.parent_of)}
    kept = {key: scores[key] for key in KEPT} if run.purpose == TRIED else scores | truth
    found = {**run._asdict(), **kept, "seconds": round(time.monotonic() - start, 1)}
    with done.open("a", encoding="utf-8") as file:  # one short write: processes may share the file
        file.write(json.dumps(found) + "\n")
    return found


def read(done: Path) -> dict[str, dict[str, Any]]:
    """What is finished, by the names of the runs."""
    lines = done.read_text(encoding="utf-8").splitlines() if done.is_file() else []
    found = [json.loads(line) for line in lines]
    return {Run(*(one[key] for key in Run._fields)).name: one for one in found}


def summarize(search: Search, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of each kind the scores of all settings that are finished, and the best of these."""
    kinds: dict[str, Any] = {}
    for kind in search.grids:
        settings = []
        for setting in search.settings(kind):
            runs = [run for run in search.runs() if (run.kind, run.setting) == (kind, setting)]
            if all(run.name in found for run in runs):
                scores = pd.DataFrame([found[run.name] for run in runs])
                by_difficulty = scores.groupby("difficulty", sort=False)[list(KEPT)].mean().to_dict("index")
                settings.append({"setting": setting, **scores[list(KEPT)].mean().to_dict(), **by_difficulty})
        best = max(settings, key=lambda one: (one[DECIDES], one[THEN])) if settings else None
        kinds[kind] = {"chosen": best and best["setting"], "settings": settings}
    return {"tried": search.tried, "kinds": kinds}


def summarize_chosen(search: Search, settings: dict[str, Setting], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """difficulty -> kind, trained by its chosen setting or at its start -> score -> mean and range over seeds."""
    runs = [found[run.name] for run in search.runs_of_chosen(settings) if run.name in found]
    result: dict[str, Any] = {}
    scores = pd.DataFrame(runs).drop(columns=["purpose", "setting", "seconds"])
    for (difficulty, kind), own in scores.groupby(["difficulty", "kind"], sort=False):  # pyright: ignore
        values = own.drop(columns=["difficulty", "kind", "seed"]).dropna(axis=1)
        summary = {name: {"mean": v.mean(), "least": v.min(), "most": v.max()} for name, v in values.items()}
        result.setdefault(difficulty, {})[kind] = {"n": len(own), **summary}
    return result


def read_inputs() -> tuple[Search, dict[str, Any], dict[str, Setting]]:
    """The search, params.yaml's section `synthetic`, and what the difficulties of the recovery sweep change in it."""
    search, recovery, params = (
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (SWEEPS / "search.yaml", SWEEPS / "recovery.yaml", PARAMS)
    )
    difficulties = {
        name: {key.removeprefix("synthetic."): value for key, value in changed.items()}
        for name, changed in recovery["conditions"].items()
    }
    return build(Search, search), params["synthetic"], difficulties


def main(arguments: list[str] | None = None) -> None:
    """Train what is not finished, or a share of it, and write the summary."""
    parser = argparse.ArgumentParser(description="Search for the settings of all kinds on known hierarchies.")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--share", metavar="I/N", default="1/1", help="train the I-th of N parts")
    options = parser.parse_args(arguments)
    try:
        search, section, difficulties = read_inputs()
        train = partial(scored, section, difficulties, DONE)
        DONE.parent.mkdir(exist_ok=True)
        of_share = share(options.share)

        def finish(runs: list[Run]) -> dict[str, dict[str, Any]]:
            before = read(DONE)
            if wanted := [run for run in runs[of_share] if run.name not in before]:
                with workers("search", options.jobs) as each:
                    list(each(train, wanted))
            return read(DONE)

        result = summarize(search, found := finish(search.runs()))
        missing = [run for run in search.runs() if run.name not in found]
        if not missing:
            settings = {kind: own["chosen"] for kind, own in result["kinds"].items()}
            found = finish(search.runs_of_chosen(settings))
            missing = [run for run in search.runs_of_chosen(settings) if run.name not in found]
            result["chosen"] = summarize_chosen(search, settings, found)
        write_json(RESULT, result)
    except (ValueError, OSError) as error:
        sys.exit(f"error: search: {error}")
    print(f"search: {len(missing)} trainings are missing" if missing else "search: finished")


if __name__ == "__main__":
    main()
