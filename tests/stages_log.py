"""What tests/logging_stages/sitecustomize.py logged of a pipeline, and what is wrong with it."""

import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "logging_stages"


def logging_to(folder: Path, env: dict[str, str]) -> dict[str, str]:
    """An environment in which stages log there."""
    folder.mkdir(exist_ok=True)
    paths = [str(FOLDER), *filter(None, [env.get("PYTHONPATH")])]
    return env | {"LOG_OF_STAGES": str(folder), "PYTHONPATH": os.pathsep.join(paths)}


def read(folder: Path) -> list[dict[str, Any]]:
    """All entries of all processes."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def offences(log: list[dict[str, Any]]) -> list[str]:
    """One line for each thing that no pipeline may do.

    That is: to seed a generator with nothing, or with a number that no stream gave in that process; to seed generators
    at two places of the code with one number; to give one number to two streams; and to draw from a global generator
    but as a stream.
    """
    given, streams, places = set(), {}, {}
    for entry in log:
        if "given" in entry:
            given.add((entry["process"], entry["stage"], entry["given"]))
            streams.setdefault(entry["given"], set()).add(entry["stream"])
    found = set()
    for entry in log:
        if "seeder" in entry:
            places.setdefault(entry["seed"], set()).add(entry["place"])
            if entry["seed"] is None:
                found.add(f"{entry['place']}: {entry['seeder']} without a seed")
            elif (entry["process"], entry["stage"], entry["seed"]) not in given:
                found.add(f"{entry['place']}: {entry['seeder']} with {entry['seed']}, which no stream gave")
        elif "moved" in entry:
            found.add(f"{entry['stage'].split()[0]}: drew from the global generator of {entry['moved']}")
    for seed, those in places.items():
        if seed is not None and len(those) > 1:
            of = " and ".join(sorted(streams.get(seed, {"no stream"})))
            found.add(f"{' and '.join(sorted(those))}: one number, {seed} ({of})")
    for number, names in streams.items():
        if len(names) > 1:
            found.add(f"{' and '.join(sorted(names))}: two streams of one number, {number}")
    return sorted(found)


def unused(log: list[dict[str, Any]], listed: dict[str, list[str]]) -> list[str]:
    """A line for each parameter that dvc.yaml lists for a stage, here by its name, and that this stage did not use."""
    used = {stage: {entry["used"] for entry in log if entry.get("by") == stage} for stage in listed}
    return [
        f"{stage}: {entry}"
        for stage, entries in listed.items()
        for entry in entries
        if not any(key == entry or key.startswith(f"{entry}.") for key in used[stage])
    ]
