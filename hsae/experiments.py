"""DVC experiments whose names say what their results depend on: queued, run by DVC's workers, found when finished."""

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvc.api import DVCFileSystem
from omegaconf import OmegaConf
from torch import Tensor

from hsae import files
from hsae.config import PIPELINE, check, flatten, read_params
from hsae.files import digest
from hsae.presets import flags
from hsae.progress import Progress

POLL_SECONDS = 30.0  # a look at the queue costs a second of CPU time, and three with 200 tasks in it
PATIENCE = 10  # looks at a queue that no worker serves, before giving up

TASK = re.compile(r"^[0-9a-f]{7} +(\S+) .* (\w+)\s*$", re.MULTILINE)
WORKERS = re.compile(r"^Worker status: (\d+) active, (\d+) idle", re.MULTILINE)


@dataclass(frozen=True)
class Recipe:
    """All that the result of a stage depends on: the stages from it upward, their files, and params.yaml."""

    target: str
    stages: dict[str, Any]  # as dvc.yaml defines them, and what its templates take from `vars`
    files: dict[str, str]  # path -> sha256 of what no stage makes: code
    params: dict[str, Any]  # dotted keys of params.yaml, those that these stages do not use too

    def name(self, label: str, overrides: dict[str, Any]) -> str:
        """`label` and a hash: another one as soon as code, pipeline or parameters are others than they were."""
        entries = [_pattern(entry) for stage in self.stages.values() for entry in stage.get("params", [])]
        values = {
            key: value
            for key, value in (self.params | overrides).items()
            if any(fnmatchcase(key, entry) or fnmatchcase(key, f"{entry}.*") for entry in entries)
        }
        content = json.dumps([self.target, self.stages, self.files, values], sort_keys=True)
        return f"{label}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def read_recipe(target: str) -> Recipe:
    """The recipe of a stage as the working tree has it. Raises ValueError for an unknown stage or a missing file."""
    params = flatten(read_params())
    pipeline: Any = OmegaConf.to_container(OmegaConf.load(PIPELINE), resolve=False)
    definitions = {name: stage.get("do", stage) for name, stage in pipeline["stages"].items()}
    check("target", target, f"one of the stages {', '.join(definitions)}", target in definitions)
    makers = [
        (_pattern(out if isinstance(out, str) else next(iter(out))), name)
        for name, stage in definitions.items()
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
    ]
    stages, files, left = {}, set(), [target]
    while left:
        name = left.pop()
        stages[name] = definitions[name]
        for dep in map(_pattern, definitions[name].get("deps", [])):
            above = {maker for out, maker in makers if fnmatchcase(dep, out) or fnmatchcase(out, dep)}
            left += above - stages.keys()
            files |= set() if above else {dep}
    if "${" in json.dumps(stages):
        stages["vars"] = {"vars": pipeline.get("vars")}
    missing = [file for file in sorted(files) if not Path(file).is_file()]
    if missing:
        raise ValueError(f"{missing[0]}, on which `{target}` depends, is missing.")
    return Recipe(target, stages, {file: digest(Path(file)) for file in files}, params)


def finished(names: Iterable[str]) -> dict[str, str]:
    """The experiments that have a result, and the commit that holds it, whatever commit they started from."""
    refs = git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    commits = dict(ref.rpartition("/")[2].split() for ref in refs)
    return {name: commits[name] for name in names if name in commits}


def run(experiments: dict[str, dict[str, Any]], recipe: Recipe, jobs: int, label: str) -> dict[str, str]:
    """Queue what has no result yet, wait for it, `jobs` at a time, and return what is finished then.

    `experiments`: name (see Recipe.name) -> overrides. What is queued already is not queued again, and what failed is
    tried again. Raises ValueError for code that git does not know (the queue would run without it), and for an edit
    while experiments are being queued: DVC takes the working tree back and forth then, and edits may be lost.
    """
    check("jobs", jobs, "above 0", jobs > 0)
    left = [name for name in experiments if name not in finished(experiments)]
    if not left:
        return finished(experiments)
    unknown = sorted(recipe.files.keys() - set(git("ls-files").splitlines()))
    if unknown:
        raise ValueError(f"{unknown[0]} is unknown to git, so that the queue would run without it: `git add` it.")
    tasks = _living_tasks(left)
    waiting = {name for name in left if tasks.get(name) in ("Queued", "Running")}
    labels = {name.rpartition("-")[0] for name in left}
    void = [name for name, status in tasks.items() if status == "Queued" and name.rpartition("-")[0] in labels]
    # DVC refuses a name that an earlier task has.
    old = [name for name in [*void, *left] if name in tasks and name not in waiting]
    if old:
        dvc("queue", "remove", *old)
    with Progress(f"{label}: queueing", len(left) - len(waiting)) as bar:
        for name in left:
            if name in waiting:
                continue
            if read_recipe(recipe.target) != recipe:
                raise ValueError("code or parameters changed during queueing: run this again.")
            dvc("exp", "run", "--queue", "--name", name, *flags(experiments[name]), recipe.target)
            bar.advance()
    _wait(left, len(experiments), jobs, label)
    return finished(experiments)


def read_tensors(commit: str, path: str) -> tuple[dict[str, Tensor], Any]:
    """Tensors and header of a file as a commit has it, from DVC's cache: nothing is checked out.

    Raises OSError for a file that is in no cache or remote storage, ValueError for a damaged one.
    """
    content: Any = DVCFileSystem(rev=commit).read_bytes(path)
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "tensors.safetensors"
        copy.write_bytes(content)
        tensors, header = files.read_tensors(copy)
        return {name: tensor.clone() for name, tensor in tensors.items()}, header


def git(*arguments: str) -> str:
    """Standard output of git. Raises ValueError with git's own words if it fails."""
    return _output("git", *arguments)


def dvc(*arguments: str) -> str:
    """Standard output of dvc. Raises ValueError with dvc's own words if it fails."""
    return _output("dvc", *arguments)


def queue() -> tuple[dict[str, str], int]:
    """DVC's queue: name of each task -> Queued | Running | Failed | Success; and the number of workers."""
    output = dvc("queue", "status")
    workers = WORKERS.search(output)
    tasks = dict(reversed(TASK.findall(output)))  # what is running stands first, and counts
    return tasks, sum(map(int, workers.groups())) if workers else 0


def start_workers(jobs: int) -> None:
    """Have so many workers serve DVC's queue, in the background; each quits when it finds the queue empty."""
    # Not through a pipe: the workers would inherit it, and hold it open to their end.
    subprocess.run(["dvc", "queue", "start", "--jobs", str(jobs)], stdout=subprocess.DEVNULL, check=True)


def _pattern(template: str) -> str:
    return re.sub(r"\$\{.*?\}", "*", template)


def _living_tasks(names: list[str]) -> dict[str, str]:
    """The tasks of the queue, after declaring dead those whose worker was killed: they would run for ever."""
    for look in range(3):  # a busy worker may answer late
        tasks, workers = queue()
        running = [name for name in names if tasks.get(name) == "Running"]
        if workers or not running:
            return tasks
        if look == 2:
            dvc("queue", "kill", *running)
    return queue()[0]


def _wait(names: list[str], total: int, jobs: int, label: str) -> None:
    """Return when nothing is queued or running; until then, see to it that the workers are at work."""
    unserved = missed = 0
    with Progress(label, total) as bar:
        while unserved < PATIENCE:
            tasks, workers = queue()
            states = [tasks.get(name) for name in names]  # None while it goes from queued to running
            n_open = len(states) - states.count("Failed") - states.count("Success")
            bar.advance(total - n_open - bar.done, f"({states.count('Failed')} failed)" * ("Failed" in states))
            if not n_open:
                return
            unserved = 0 if workers else unserved + 1
            # A worker quits when it finds the queue empty for a moment, and others may have come since. A busy one may
            # answer late, and started again it would be two: while tasks run, one must be missed twice in a row.
            missed = missed + 1 if workers < jobs else 0
            if "Queued" in states and missed and (missed > 1 or "Running" not in states):
                start_workers(jobs)
            time.sleep(POLL_SECONDS)


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith(("fatal:", "ERROR:"))]
        raise ValueError(f"`{' '.join(command[:3])}` failed: {' '.join(lines) or result.stderr.strip()}")
    return result.stdout
