"""The search for the settings of the HSAE and its rivals on data whose hierarchy is known: `python -m hsae.search`.

Every kind is tried with as many settings (hsae/sweeps/search.yaml), on the same forests, and is scored on the choosing
samples, which no published score is of. It needs neither DVC nor OmegaConf; params.yaml is read by ruamel.yaml, as DVC
reads it. What is finished stands in metrics/search.jsonl, a line for each; a rerun does the rest. Each line has the
fingerprint of the code and of the parameters that it comes from: lines of others are stale, and count for nothing.
metrics/search.json has the scores of all settings, and what each kind's best scores on all choosing seeds.
"""

import argparse
import ast
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import pandas as pd
import yaml

from hsae import ground_truth, recovery
from hsae.config import PARAMS, TYPES, check, parse_params
from hsae.files import write_json
from hsae.ground_truth import ALONE, UNTRAINED, GroundTruthConfig
from hsae.ground_truth_scores import score
from hsae.streams import Stream
from hsae.workers import share, workers

T = TypeVar("T")
Setting = dict[str, Any]
HERE = Path(__file__).parent
SWEEPS = HERE / "sweeps"
DONE, RESULT = Path("metrics/search.jsonl"), Path("metrics/search.json")
TRIED, CHOSEN = "tried", "chosen"
DECIDES, THEN = "edge_ap", "mcc"
KEPT = (DECIDES, THEN, "l0")
OF_HSAE = ("start_l0", "phase1.batch_size", "phase1.lr")  # keys of the section on which no other kind depends


@dataclass
class Search:
    """What hsae/sweeps/search.yaml says: seeds of each difficulty, for the search and for what it chooses; grids."""

    tried: dict[str, list[int]]
    chosen: dict[str, list[int]]
    grids: dict[str, dict[str, list[Any]]]

    def __post_init__(self) -> None:
        sizes = {kind: len(self.settings(kind)) for kind in self.grids}
        check("grids", sizes, "of as many settings for each kind", len(set(sizes.values())) == 1)
        keys = list(self.grids.get("hsae", {}))
        check("grids.hsae", keys, f"of the keys {', '.join(OF_HSAE)}", set(keys) <= {*OF_HSAE})

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
        """All kinds at their start, each by its chosen setting, and the HSAE's level 1 alone by the HSAE's own.

        On all choosing seeds, a kind after the other.
        """
        untrained = {f"{UNTRAINED}{kind}": {} for kind in settings}
        return [
            Run(CHOSEN, kind, setting, difficulty, seed)
            for kind, setting in (untrained | settings | {ALONE: settings["hsae"]}).items()
            for difficulty, seeds in self.chosen.items()
            for seed in seeds
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
        """What the run changes in the section `synthetic`, with dotted keys. Raises ValueError for no difficulty."""
        check("difficulty", self.difficulty, f"one of {', '.join(difficulties)}", self.difficulty in difficulties)
        prefix = "" if self.kind in ("hsae", ALONE) else f"rival_settings.{self.kind}."
        return {**difficulties[self.difficulty], **{prefix + key: value for key, value in self.setting.items()}}

    def section(self, section: dict[str, Any], difficulties: dict[str, Setting]) -> dict[str, Any]:
        """The section `synthetic` as the run has it: without the settings of rivals that it does not train."""
        values = overridden(section, self.overrides(difficulties))
        own = {kind: settings for kind, settings in values["rival_settings"].items() if kind == self.kind}
        return {**values, "rivals": [], "rival_settings": own}


@dataclass(frozen=True)
class Inputs:
    """All that decides on a run's scores: the section `synthetic`, what difficulties change in it, and the code."""

    section: dict[str, Any]
    difficulties: dict[str, Setting]
    code: str

    def fingerprint(self, run: Run) -> str:
        """The same for the same parameters and the same code. Raises ValueError for a run that there cannot be."""
        section = run.section(self.section, self.difficulties)
        unused = {key: None for key in OF_HSAE if key not in run.setting}
        told = json.dumps([overridden(section, unused), self.code], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def code_of(module: Path) -> str:
    """A hash of all that a module of the project imports of it, and of the kernels; comments are no part of it."""
    found: dict[str, str] = {}
    new = [module]
    while new:
        file = new.pop()
        if (path := file.relative_to(HERE.parent).as_posix()) in found:
            continue
        tree, names = ast.parse(file.read_text(encoding="utf-8")), list[str]()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None  # a docstring
        found[path] = ast.dump(tree)
        files = [HERE.parent / f"{name.replace('.', '/')}.py" for name in names if name.startswith("hsae.")]
        new += [own for own in files if own.is_file()]
    kernels = {path.name: path.read_text(encoding="utf-8") for path in HERE.glob("*.cpp")}
    return hashlib.sha256(json.dumps(found | kernels, sort_keys=True).encode()).hexdigest()


def build(schema: type[T], values: dict[str, Any]) -> T:
    """A schema's instance of plain values; its own checks apply. Raises ValueError for a bad value or set of keys."""
    hints = get_type_hints(schema)
    names = [field.name for field in fields(schema)]  # pyright: ignore[reportArgumentType]
    check(schema.__name__, sorted(values), f"of the keys {', '.join(names)}", set(values) == set(names))
    return schema(**{name: _value(name, hints[name], value) for name, value in values.items()})


def _value(name: str, kind: Any, value: Any) -> Any:
    """A plain value, checked and as the hint `kind` asks for it."""
    of, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) or of is dict:
        check(name, value, "a mapping", isinstance(value, dict))
    if is_dataclass(kind):
        return build(kind, value)  # pyright: ignore[reportArgumentType]
    if of is dict:
        return {key: _value(f"{name}.{key}", arguments[1], item) for key, item in value.items()}
    if of is list:
        check(name, value, "a list", isinstance(value, list))
        return [_value(name, arguments[0], item) for item in value]
    if isinstance(kind, type) and issubclass(kind, Enum):
        check(name, value, f"one of {', '.join(kind.__members__)}", value in kind.__members__)
        return kind[value]
    if kind in TYPES:
        check(name, value, TYPES[kind], type(value) is kind or (kind is float and type(value) is int))
        return kind(value)
    return value


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


def scored(inputs: Inputs, done: Path, run: Run) -> dict[str, Any]:
    """Train and score; adds a line to `done`, and returns what it says.

    What is tried is scored on the choosing samples, what was chosen on the others.
    """
    start = time.monotonic()
    config = build(GroundTruthConfig, run.section(inputs.section, inputs.difficulties))
    stream = Stream(run.seed, "synthetic")
    drawn = ground_truth.draw(config, stream)
    model = ground_truth.model_of(run.kind, config, drawn, stream)
    scoring = drawn.choosing if run.purpose == TRIED else drawn.scoring
    scores = score(model, drawn.choosing, scoring, stream.of("scores", run.kind))
    truth = {"true_l0": drawn.l0s[0], "prevalence": recovery.prevalence(drawn.forest.parent_of)}
    kept = {key: scores[key] for key in KEPT} if run.purpose == TRIED else scores | truth
    seconds = round(time.monotonic() - start, 1)
    found = {**run._asdict(), **kept, "seconds": seconds, "fingerprint": inputs.fingerprint(run)}
    with done.open("a", encoding="utf-8") as file:  # one short write: processes may share the file
        file.write(f"\n{json.dumps(found)}\n")  # on a line of its own, even if the one before was half written
    return found


def read(done: Path, fingerprint: Callable[[Run], str]) -> tuple[dict[str, dict[str, Any]], int]:
    """What is finished, by the names of the runs, and how many lines are stale, or half written."""
    lines = done.read_text(encoding="utf-8").splitlines() if done.is_file() else []
    found, n_stale = {}, 0
    for line in filter(None, lines):
        try:
            one = json.loads(line)
            run = Run(*(one[key] for key in Run._fields))
            check("fingerprint", one["fingerprint"], "that of now", one["fingerprint"] == fingerprint(run))
            found[run.name] = one
        except (ValueError, KeyError):
            n_stale += 1
    return found, n_stale


def summarize(search: Search, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of each kind the scores of all settings that are finished, and the best of these."""
    kinds: dict[str, Any] = {}
    for kind in search.grids:
        settings = []
        for setting in search.settings(kind):
            runs = [run for run in search.runs() if (run.kind, run.setting) == (kind, setting)]
            if all(run.name in found for run in runs):
                scores = pd.DataFrame([found[run.name] for run in runs])
                means = {name: scores[name].mean() for name in KEPT}
                parts = scores.groupby("difficulty", sort=False)
                by_difficulty = {of: {name: part[name].mean() for name in KEPT} for of, part in parts}
                settings.append({"setting": setting, **means, **by_difficulty})
        best = max(settings, key=lambda one: (one[DECIDES], one[THEN])) if settings else None
        kinds[kind] = {"chosen": best and best["setting"], "settings": settings}
    return {"tried": search.tried, "kinds": kinds}


def summarize_chosen(search: Search, settings: dict[str, Setting], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """difficulty -> kind, trained by its chosen setting or at its start -> score -> mean and range over seeds."""
    told = ("purpose", "setting", "seconds", "fingerprint")
    runs = [found[run.name] for run in search.runs_of_chosen(settings) if run.name in found]
    scores = pd.DataFrame([{key: one[key] for key in one if key not in told} for one in runs])
    result: dict[str, Any] = {}
    if scores.empty:
        return result
    for (difficulty, kind), own in scores.groupby(["difficulty", "kind"], sort=False):  # pyright: ignore
        values = own.drop(columns=["difficulty", "kind", "seed"]).dropna(axis=1)
        summary = {name: {"mean": v.mean(), "least": v.min(), "most": v.max()} for name, v in values.items()}
        result.setdefault(difficulty, {})[kind] = {"n": len(own), **summary}
    return result


def read_inputs() -> tuple[Search, Inputs]:
    """The search, and of what it is: params.yaml's section `synthetic`, and the difficulties of the recovery sweep.

    Raises ValueError for a difficulty that the recovery sweep does not have.
    """
    search, recovery = (
        yaml.safe_load((SWEEPS / name).read_text(encoding="utf-8")) for name in ("search.yaml", "recovery.yaml")
    )
    difficulties = {
        name: {key.removeprefix("synthetic."): value for key, value in changed.items()}
        for name, changed in recovery["conditions"].items()
    }
    params = parse_params()
    section: Any = params.get("synthetic")
    check(f"{PARAMS}: synthetic", section, "a section", isinstance(section, dict))
    found: Search = _value("search.yaml", Search, search)
    for run in found.runs():
        run.overrides(difficulties)
    return found, Inputs(section, difficulties, code_of(Path(__file__)))


def main(arguments: list[str] | None = None) -> None:
    """Train what is not finished, or a share of it, and write the summary."""
    parser = argparse.ArgumentParser(description="Search for the settings of all kinds on known hierarchies.")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--share", metavar="I/N", default="1/1", help="train the I-th of N parts")
    options = parser.parse_args(arguments)
    try:
        search, inputs = read_inputs()
        DONE.parent.mkdir(exist_ok=True)
        of_share = share(options.share)

        def finish(runs: list[Run]) -> tuple[dict[str, dict[str, Any]], int]:
            before, _ = read(DONE, inputs.fingerprint)
            if wanted := [run for run in runs[of_share] if run.name not in before]:
                with workers("search", options.jobs) as each:
                    list(each(partial(scored, inputs, DONE), wanted))
            return read(DONE, inputs.fingerprint)

        found, n_stale = finish(search.runs())
        result = summarize(search, found)
        missing = [run for run in search.runs() if run.name not in found]
        if not missing:
            settings = {kind: own["chosen"] for kind, own in result["kinds"].items()}
            found, n_stale = finish(search.runs_of_chosen(settings))
            missing = [run for run in search.runs_of_chosen(settings) if run.name not in found]
            result["chosen"] = summarize_chosen(search, settings, found)
        write_json(RESULT, result)
    except (ValueError, OSError) as error:
        sys.exit(f"error: search: {error}")
    stale = f"; {n_stale} lines of {DONE} are stale" if n_stale else ""
    print(f"search: {len(missing)} trainings are missing{stale}" if missing else f"search: finished{stale}")


if __name__ == "__main__":
    main()
