"""What tests/logging_stages/sitecustomize.py logged of a pipeline, and what is wrong with it."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent / "logging_stages"


class Shared(NamedTuple):
    """Streams that are used twice on purpose."""

    streams: str
    """An expression for their names, without the seed."""
    routes: str
    """One for the functions that may seed with them, as `route` writes them, from the innermost on."""
    why: str
    one_line: bool = True
    """Whether each route's functions call each other from one line alone."""


DRAWN, BATCHES = "hsae/variants.py drawn", "hsae/training.py fit"
TRUTH = "hsae/ground_truth.py"
SHARED = (
    Shared(
        "weights of level [12]",
        f"{DRAWN} < (stages/phase1.py main|hsae/flat.py drawn < stages/flat_baseline.py main)",
        "flat autoencoders start as the HSAE's level 1 does, to be compared pair by pair",
    ),
    Shared(
        "phase1/(order of batches|revival)",
        f"{BATCHES} < (hsae/sharpening.py phase1 < stages/phase1.py|stages/flat_baseline.py) main",
        "flat autoencoders see the batches of the level that they are compared with",
    ),
    Shared(
        "phase2/(order of batches|revival)",
        f"{BATCHES} < (hsae/curriculum.py train_level2 < hsae/curriculum.py phase2 < stages/phase2.py"
        "|stages/flat_baseline.py) main",
        "the same of level 2",
    ),
    Shared(
        "clustering_baseline/k-means",
        "hsae/clustering.py clustered < (hsae/clustering.py fit < )?hsae/clustering.py fit_clusters < "
        "stages/clustering_baseline.py main",
        "Ward's tree is over the clusters of k-means",
    ),
    Shared(
        "synthetic/(forest|(training|choosing|scoring) samples)",
        f"({TRUTH} <genexpr> < )?{TRUTH} draw < {TRUTH} score_(all|method)( |$)",
        "all methods are trained and scored on one forest, which each process draws anew",
    ),
    Shared(
        "synthetic/weights of level 1",
        f"{DRAWN} < hsae/flat.py drawn < {TRUTH} drawn_model < {TRUTH} train_(level1|flat) ",
        "flat autoencoders start as the HSAE's level 1 does",
    ),
    Shared(
        "synthetic/phase1/(order of batches|revival)",
        f"{BATCHES} < {TRUTH} train_(level1|flat) ",
        "and see its batches",
    ),
    Shared(
        "synthetic/sharpening/(order of batches|revival)",
        f"{BATCHES} < hsae/sharpening.py sharpen < {TRUTH} train_level1 ",
        "so does level 1 that is trained alone",
    ),
    Shared(
        "mutual_information/probes/order of batches",
        "hsae/probes.py _train < hsae/probes.py try_all < hsae/probes.py fit_probe < hsae/probes.py compare ",
        "settings and inputs of a probe are compared on the same batches",
        one_line=False,
    ),
)


def logging_to(folder: Path, env: dict[str, str]) -> dict[str, str]:
    """An environment in which stages log there."""
    folder.mkdir(exist_ok=True)
    paths = [str(FOLDER), *filter(None, [env.get("PYTHONPATH")])]
    return env | {"LOG_OF_STAGES": str(folder), "PYTHONPATH": os.pathsep.join(paths)}


def read(folder: Path) -> list[dict[str, Any]]:
    """All entries of all processes; those of seeders with the `frames` that led to them, from the innermost on."""
    files = sorted(folder.glob("*.jsonl"))
    entries = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    frames = {entry["chain"]: entry["frames"] for entry in entries if "frames" in entry}
    return [
        {**entry, "frames": frames[entry["chain"]]} if "seeder" in entry else entry
        for entry in entries
        if "frames" not in entry
    ]


def offences(log: list[dict[str, Any]]) -> list[str]:
    """One line for each thing that no pipeline may do.

    That is: to seed a generator with nothing, or with a number that no stream gave in that process; to seed generators
    from two places of the code with one number (`twice`); to give one number to two streams; and to draw from a global
    generator but as a stream.
    """
    given, streams, chains = set(), {}, {}
    for entry in log:
        if "given" in entry:
            given.add((entry["process"], entry["stage"], entry["given"]))
            streams.setdefault(entry["given"], set()).add(entry["stream"])
    found = set()
    for entry in log:
        if "seeder" in entry:
            place = entry["frames"][0].split()[0]
            if entry["seed"] is None:
                found.add(f"{place}: {entry['seeder']} without a seed")
                continue
            own = chains.setdefault(entry["seed"], {}).setdefault(entry["stage"].split()[0], set())
            own.add(tuple(entry["frames"]))
            if (entry["process"], entry["stage"], entry["seed"]) not in given:
                found.add(f"{place}: {entry['seeder']} with {entry['seed']}, which no stream gave")
        elif "moved" in entry:
            found.add(f"{entry['stage'].split()[0]}: drew from the global generator of {entry['moved']}")
    for seed, by_stage in chains.items():
        names = sorted(streams.get(seed, {"no stream"}))
        if those := twice(by_stage, [name.partition("/")[2] for name in names]):
            places = " and ".join(sorted(" < ".join(chain) for chain in those))
            found.add(f"{places}: one number, {seed} ({' and '.join(names)})")
    for number, names in streams.items():
        if len(names) > 1:
            found.add(f"{' and '.join(sorted(names))}: two streams of one number, {number}")
    return sorted(found)


def twice(by_stage: dict[str, set[tuple[str, ...]]], streams: list[str]) -> set[tuple[str, ...]]:
    """The chains of frames that seed with one number of these streams, if they are not one, and not by `SHARED`.

    One place is all frames that lead there. Of two stages it is those below their own modules: both may repeat what
    some code of the project derives.
    """
    chains = set().union(*by_stage.values())
    below = {
        tuple(frame for frame in chain if not frame.startswith(f"{stage.replace('.', '/')}.py:")) or chain
        for stage, own in by_stage.items()
        for chain in own
    }
    if all(len(own) == 1 for own in by_stage.values()) and len(below) == 1:
        return set()
    for shared in SHARED:
        if all(re.fullmatch(shared.streams, name) for name in streams):
            routes = [route(chain) for chain in chains]
            if all(re.match(shared.routes, one) for one in routes) and (
                not shared.one_line or len({*routes}) == len(routes)
            ):
                return set()
    return chains


def route(chain: tuple[str, ...]) -> str:
    """A chain's files and functions, without lines."""
    return " < ".join(re.sub(r":\d+ ", " ", frame) for frame in chain)


def unused(log: list[dict[str, Any]], listed: dict[str, list[str]]) -> list[str]:
    """A line for each parameter that dvc.yaml lists for a stage, here by its name, and that this stage did not use."""
    used = {stage: {entry["used"] for entry in log if entry.get("by") == stage} for stage in listed}
    return [
        f"{stage}: {entry}"
        for stage, entries in listed.items()
        for entry in entries
        if not any(key == entry or key.startswith(f"{entry}.") for key in used[stage])
    ]
