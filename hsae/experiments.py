"""Named DVC experiments: queued, run by DVC's workers, and recognised when they are finished."""

import functools
import hashlib
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hsae.config import check, flatten, read_params
from hsae.presets import flags
from hsae.progress import Progress

POLL_SECONDS = 15  # a look at the queue costs a second of CPU time
PATIENCE = 10  # looks at a queue that no worker serves, before giving up

TASK = re.compile(r"^([0-9a-f]{7}) +(\S+) .* (\w+)\s*$", re.MULTILINE)
WORKERS = re.compile(r"^Worker status: (\d+) active, (\d+) idle", re.MULTILINE)


@dataclass(frozen=True)
class Experiment:
    """A name and what it changes in params.yaml: dotted keys and their values."""

    name: str
    overrides: dict[str, Any]


def finished(experiments: list[Experiment], target: str) -> dict[str, str]:
    """The experiments that need no run, with the commit that holds their result, whatever commit they started from.

    A commit counts if its dvc.lock says that the stage `target` is up to date (`up_to_date`) with the experiment's
    parameters and the project's files as they are now: results survive commits that leave the code of these stages
    alone, and are never taken from other code.
    """
    commits: dict[str, list[str]] = {}
    for line in git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines():
        commit, ref = line.split()
        commits.setdefault(ref.rpartition("/")[2], []).append(commit)
    params, digest = flatten(read_params()), functools.cache(_digest)
    found = {}
    for experiment in experiments:
        for commit in commits.get(experiment.name, []):
            if up_to_date(_lock(commit), target, params | experiment.overrides, digest):
                found[experiment.name] = commit
    return found


def up_to_date(lock: dict[str, Any], target: str, params: dict[str, Any], digest: Callable[[str], str | None]) -> bool:
    """Whether dvc.lock records that a stage, and each above it, ran with these parameters (dotted keys) and files.

    A file that a recorded stage makes must be as that stage made it; any other (code) must have the md5 that `digest`
    gives.
    """
    made = {out["path"]: (name, out["md5"]) for name, stage in lock.items() for out in stage.get("outs", [])}
    seen, left = set(), [target]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in lock:
            return False
        for key, value in lock[name].get("params", {}).get("params.yaml", {}).items():
            wanted = {k: v for k, v in params.items() if f"{k}.".startswith(f"{key}.")}
            if _texts(wanted) != _texts(flatten({key: value})):
                return False
        for dep in lock[name]["deps"]:
            maker, md5 = made.get(dep["path"], (None, None))
            if dep["md5"] != (md5 if maker else digest(dep["path"])):
                return False
            left += [maker] if maker else []
    return True


def run(experiments: list[Experiment], target: str, jobs: int, label: str) -> dict[str, str]:
    """Bring what is not finished up to date, `jobs` at a time, and return what is finished then, as `finished` does.

    What waits in DVC's queue already is not queued again, unless code or parameters have changed since; what failed,
    is tried again. While it queues, DVC takes the working tree back and forth between its states, so that an edit made
    meanwhile may be lost. Raises ValueError for code that git does not know: the queue would run without it.
    """
    check("jobs", jobs, "above 0", jobs > 0)
    done = finished(experiments, target)
    left = [experiment for experiment in experiments if experiment.name not in done]
    if not left:
        return done
    unknown = git("ls-files", "--others", "--exclude-standard", "hsae", "stages").splitlines()
    if unknown:
        raise ValueError(f"{unknown[0]} is unknown to git, so that the queue would run without it: `git add` it.")
    names = [experiment.name for experiment in left]
    tasks = _living_tasks(names)
    params = flatten(read_params())
    queued = {e.name for e in left if _is_queued(params | e.overrides, *tasks.get(e.name, ("", "")))}
    _forget([name for name in names if name not in queued], tasks)
    with Progress(f"{label}: queueing", len(left) - len(queued)) as bar:
        for experiment in left:
            if experiment.name not in queued:
                dvc("exp", "run", "--queue", "--name", experiment.name, *flags(experiment.overrides), target)
                bar.advance()
    _wait(names, len(experiments), jobs, label)
    return finished(experiments, target)


def git(*arguments: str) -> str:
    """Standard output of git. Raises ValueError with git's own words if it fails."""
    return _output("git", *arguments)


def dvc(*arguments: str) -> str:
    """Standard output of dvc. Raises ValueError with dvc's own words if it fails."""
    return _output("dvc", *arguments)


def queue() -> tuple[dict[str, tuple[str, str]], int]:
    """DVC's queue: name -> (commit that holds the task, Queued | Running | Failed | Success); number of workers."""
    output = dvc("queue", "status")
    tasks: dict[str, tuple[str, str]] = {}
    for commit, name, status in TASK.findall(output):
        tasks.setdefault(name, (commit, status))
    workers = WORKERS.search(output)
    return tasks, sum(map(int, workers.groups())) if workers else 0


def _living_tasks(names: list[str]) -> dict[str, tuple[str, str]]:
    """The tasks of the queue, after declaring dead those whose worker was killed: they would run for ever."""
    looks = [queue() for _ in range(3)]  # a busy worker may answer late
    tasks = looks[-1][0]
    running = [name for name in names if name in tasks and tasks[name][1] == "Running"]
    if running and not any(workers for _, workers in looks):
        dvc("queue", "kill", *running)
        tasks = queue()[0]
    return tasks


def _is_queued(params: dict[str, Any], commit: str, status: str) -> bool:
    """Whether a task of the queue will run, or is running, these parameters with the present code."""
    if status not in ("Queued", "Running"):
        return False
    stashed = flatten(_yaml(git("show", f"{commit}:params.yaml")))
    same_code = not git("diff", "--name-only", commit, "--", "*.py", "dvc.yaml")
    return same_code and _texts(stashed) == _texts(params)


def _forget(names: list[str], tasks: dict[str, tuple[str, str]]) -> None:
    """Free the names: DVC refuses one that is taken by an earlier task, or by an experiment from the same commit."""
    for name in names:
        if tasks.get(name, ("", ""))[1] == "Running":
            raise ValueError(f"{name} is running with other code or parameters: wait, or `dvc queue kill {name}`.")
    old_tasks = [name for name in names if name in tasks]
    if old_tasks:
        dvc("queue", "remove", *old_tasks)
    head = git("rev-parse", "HEAD").strip()
    refs = git("for-each-ref", "--format=%(refname)", f"refs/exps/{head[:2]}/{head[2:]}").splitlines()
    for ref in refs:
        if ref.rpartition("/")[2] in names:
            git("update-ref", "-d", ref)


def _wait(names: list[str], total: int, jobs: int, label: str) -> None:
    """Return when nothing is queued or running; until then, see to it that the workers are at work."""
    unserved = 0
    with Progress(label, total) as bar:
        while unserved < PATIENCE:
            tasks, workers = queue()
            states = [tasks[name][1] for name in names if name in tasks]
            n_open = states.count("Queued") + states.count("Running")
            bar.advance(total - n_open - bar.done, f"({states.count('Failed')} failed)" * ("Failed" in states))
            if not n_open:
                return
            unserved = 0 if workers else unserved + 1
            # A worker quits when it finds the queue empty for a moment, and others may have come since.
            if "Queued" in states and workers < jobs:
                # Not through a pipe: the worker would inherit it, and hold it open to its end.
                subprocess.run(["dvc", "queue", "start", "--jobs", str(jobs)], stdout=subprocess.DEVNULL, check=True)
            time.sleep(POLL_SECONDS)


@functools.cache
def _lock(commit: str) -> dict[str, Any]:
    return _yaml(git("show", f"{commit}:dvc.lock")).get("stages", {})


def _yaml(text: str) -> dict[str, Any]:
    # libyaml's parser: OmegaConf takes a third of a second for one dvc.lock.
    return yaml.load(text, yaml.CSafeLoader)


def _texts(params: dict[str, Any]) -> dict[str, str]:
    # DVC writes 1e-05, which YAML 1.1 does not take for a number.
    return {key: str(value) for key, value in params.items()}


def _digest(path: str) -> str | None:
    file = Path(path)
    return hashlib.md5(file.read_bytes()).hexdigest() if file.is_file() else None


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        words = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
        raise ValueError(f"`{' '.join(command[:3])}` failed: {words[-1]}")
    return result.stdout
