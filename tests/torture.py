"""Kills trainings at random, again and again, and looks whether each ends as one that was let alone.

python -m tests.torture KILLS RESULT [PROCESSES]

All is done on a copy of the project with tiny parameters, whose checkpoints are a moment apart. A kill hits the process
of a stage, or `dvc repro`, whose stage must die with it; a SIGINT to dvc goes to both, as Ctrl-C in a terminal does.
With several processes, which train autoencoders together, every other kill is a SIGKILL to one of these alone: then the
others must end too, with one line that says so.
"""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from hsae.files import write_json
from tests.project import Project

STAGES = {
    "train_transformer": [],
    "phase1": [],
    "phase2": [],
    "phase3": [],
    "flat_baseline@relu_l1": ["relu_l1", "relu", "1"],
    "flat_baseline@batchtopk": ["batchtopk", "batchtopk", "1"],
    "control@random_decoder": ["random_decoder"],
    "flat_baseline@jumprelu": ["jumprelu", "jumprelu", "1"],
}
SHARED = ("phase1", "phase2", "phase3", "flat_baseline@relu_l1", "flat_baseline@batchtopk", "flat_baseline@jumprelu")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGER = {  # so that training is half of a stage's time; the other half is imports, mostly
    "train_transformer": {"steps": 800, "dropout": 0.1},
    "phase1": {"epochs": 90},
    "sharpening": {"epochs": 30},
    "phase2": {"epochs": 90},
    "phase3": {"epochs": 60},
    "control": {"epochs_share": 0.5},
}
LOST = re.compile(r"(?m)^error: .* process \d of 0 to \d was lost \(SIGKILL\): run it again, and it goes on")
GOING_ON = re.compile(r"going on from step \d+")


def make_frequent(project: Project) -> None:
    """Have the project's copy of the code save a checkpoint every twentieth of a second."""
    module = project.path / "hsae/checkpoint.py"
    text, n = re.subn(r"(?m)^EVERY = [\d.]+", "EVERY = 0.05", module.read_text())
    assert n == 1
    module.write_text(text)


def killed_and_resumed(project: Project, module: str, *arguments: str) -> str:
    """Kill a stage with SIGKILL a moment after its first checkpoint, and run it again; what that says."""
    with start(project, ["python", "-m", f"stages.{module}", *arguments]) as process:
        wait_for_a_checkpoint(project, module, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    again = project.stage(module, *arguments)
    assert again.returncode == 0, again.stderr
    return again.stdout


def start(project: Project, command: list[str]) -> subprocess.Popen[str]:
    """Start a command in the project, in a session of its own."""
    return subprocess.Popen(
        command, cwd=project.path, env=project.env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heed_interrupts,
    )  # fmt: skip


def heed_interrupts() -> None:
    """Undo what a shell does to its jobs in the background: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes(project: Project, module: str) -> list[int]:
    """The processes that run a stage's module in the project."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            inside = (folder / "cwd").resolve() == project.path.resolve()
        except OSError:  # it has just ended
            continue
        if inside and f"stages.{module}".encode() in command:
            found.append(int(folder.name))
    return found


class Torture:
    """A project in which every stage has run once, and what its outputs were."""

    def __init__(self, project: Project, draw: random.Random, n: int):
        self.project, self.draw, self.n = project, draw, n
        project.set_params({**LONGER, "processes": n})
        make_frequent(project)
        project.run("dvc", "repro", *STAGES)
        self.expected = self.digests()
        self.seconds = {name: self._time(name) for name in self.stages}

    @property
    def stages(self) -> list[str]:
        """The stages to be killed."""
        return list(STAGES if self.n == 1 else SHARED)

    def digests(self) -> dict[str, str]:
        """sha256 of all outputs."""
        files = self.project.digests("models", "metrics", "plots")
        return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}

    def kill(self, name: str, number: signal.Signals, victim: str) -> dict[str, Any]:
        """Run a stage, kill it at random, run it again, and compare."""
        module = name.split("@")[0]
        with start(self.project, self._command(name, victim)) as process:
            pids = self._wait_for_the_stage(module, process)
            time.sleep(self.draw.uniform(0.2, 1.0) * self.seconds[name])
            hit = process.poll() is None
            pids += processes(self.project, module)
            ranks = sorted(set(pids) - {process.pid})
            if victim == "rank" and ranks:
                with suppress(ProcessLookupError):
                    os.kill(self.draw.choice(ranks), number)
            elif victim != "dvc":
                process.send_signal(number)
            elif number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            said = process.communicate()[0]
        orphans = self._orphans(module, pids)
        again = self.project.try_run(*self._command(name, victim))
        return {
            "stage": name,
            "signal": number.name,
            "victim": victim,
            "hit": hit and process.returncode != 0,
            "resumed": bool(GOING_ON.search(again.stdout)),
            "traceback": "Traceback" in said,
            "unclear": bool(victim == "rank" and ranks and process.returncode and len(LOST.findall(said)) != 1),
            "orphans": orphans,
            "failed": again.returncode != 0,
            "mismatches": [path for path, digest in self.digests().items() if self.expected.get(path) != digest]
            + [path for path in self.expected if not (self.project.path / path).is_file()],
        }

    def _command(self, name: str, victim: str) -> list[str]:
        if victim == "dvc":
            return ["dvc", "repro", "--force", "--single-item", name]
        return ["python", "-m", f"stages.{name.split('@')[0]}", *STAGES[name]]

    def _time(self, name: str) -> float:
        before = time.monotonic()
        assert self.project.stage(name.split("@")[0], *STAGES[name]).returncode == 0
        return time.monotonic() - before

    def _wait_for_the_stage(self, module: str, process: subprocess.Popen[str]) -> list[int]:
        while process.poll() is None:
            if pids := processes(self.project, module):
                return pids
            time.sleep(0.01)
        return []

    def _orphans(self, module: str, pids: list[int]) -> int:
        """How many of a killed run's processes are still there after five seconds; they are ended."""
        patience = time.monotonic() + 5
        while left := set(pids) & set(processes(self.project, module)):
            if time.monotonic() > patience:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return len(left)
            time.sleep(0.05)
        return 0


def wait_for_a_checkpoint(project: Project, module: str, process: subprocess.Popen[str]) -> None:
    """Wait until a stage has saved its state, and up to .3 s more."""
    while not list((project.path / ".ckpt" / module).glob("**/*.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))


def summarize(rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Kills by stage and by signal, and what came of them."""
    hits = [row for row in rows if row["hit"]]
    return {
        "kills": len(hits),
        "ended_before_the_kill": len(rows) - len(hits),
        "by_stage": Counter(row["stage"] for row in hits),
        "by_signal": Counter(f"{row['signal']} to {row['victim']}" for row in hits),
        "resumed_from_a_checkpoint": sum(row["resumed"] for row in hits),
        "with_traceback": sum(row["traceback"] and row["victim"] != "dvc" for row in hits),
        "unclear_ends": sum(row["unclear"] for row in rows),
        "failed_again": sum(row["failed"] for row in rows),
        "orphans": sum(row["orphans"] for row in rows),
        "mismatches": sum(bool(row["mismatches"]) for row in rows),
        "seconds": round(seconds),
    }


def main(kills: str, result: str, n: str = "1") -> None:
    """Kill, compare, write; exit status 1 if anything was not as it should be."""
    before = time.monotonic()
    draw = random.Random(time.time_ns())
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(Project.create(Path(folder) / "project", Path(folder) / "site"), draw, int(n))
        print(f"set up in {time.monotonic() - before:.0f} s", flush=True)
        rows = []
        for i in range(int(kills)):
            name = torture.stages[i % len(torture.stages)]
            number, victim = draw.choice(SIGNALS), draw.choice(["stage", "dvc"])
            if torture.n > 1 and draw.random() < 0.5:
                number, victim = signal.SIGKILL, "rank"
            rows.append(torture.kill(name, number, victim))
            print(i + 1, {key: value for key, value in rows[-1].items() if value}, flush=True)
    found = summarize(rows, time.monotonic() - before)
    print(found)
    write_json(Path(result), found)
    bad = [row for row in rows if row["failed"] or row["orphans"] or row["mismatches"] or row["unclear"]]
    sys.exit(f"error: {len(bad)} of {len(rows)} runs are not as they should be: {bad[0]}" if bad else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
