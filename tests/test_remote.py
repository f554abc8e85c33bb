"""Clones that share an S3 remote take from it what others have computed; a sweep is run by several of them."""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.bucket import KEYS, Bucket
from tests.project import ROOT, Project, stages_run

STAGES = {"prepare_data", "train_transformer", "extract_activations", "phase1"}
MODEL = "models/phase1.safetensors"
SWEEP = {
    "target": "phase1",
    "metrics": ["metrics/phase1.json"],
    "seeds": [0],
    "budget": {"phase1.epochs": 0.5},
    "reference": "reference",
    "conditions": {"reference": {}, "dense": {"beta1": 0.001}},
    "headline": {"level1.l0": "level 1: L0"},
}


def shorten(project: Project) -> None:
    """Keep the first stages and a small sweep; one that does nothing uses the other parameters."""
    pipeline: Any = OmegaConf.load(project.path / "dvc.yaml")
    stages = {name: pipeline.stages[name] for name in pipeline.stages if name in STAGES}
    others = {"cmd": "false", "params": [*project.params()], "frozen": True}
    OmegaConf.save({"stages": {**stages, "others": others}}, project.path / "dvc.yaml")
    OmegaConf.save(SWEEP, project.path / "hsae/sweeps/ablations.yaml")
    OmegaConf.save({"seeds": SWEEP["seeds"], "claims": []}, project.path / "docs/claims.yaml")
    module = project.path / "hsae/experiments.py"
    patient = module.read_text()
    assert "POLL_SECONDS = 30.0" in patient
    module.write_text(patient.replace("POLL_SECONDS = 30.0", "POLL_SECONDS = 5.0"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, bucket: Bucket) -> Project:
    """A clone that was reproduced and pushed, to git and to the bucket."""
    folder = tmp_path_factory.mktemp("clones")
    project = Project.create(folder / "first", folder / "site")
    shorten(project)
    bucket.become_remote(project, "shared")
    assert stages_run(project.run("dvc", "repro")) == STAGES
    project.commit()
    project.run("dvc", "push")
    project.run("git", "clone", "--quiet", "--bare", ".", str(folder / "origin.git"))
    project.run("git", "remote", "add", "origin", str(folder / "origin.git"))
    return project


@pytest.fixture(scope="module")
def changed(first: Project) -> Project:
    """A copy of the first in which an experiment with another parameter was run."""
    project = first.clone(first.path.with_name("changed"))
    output = project.run("dvc", "exp", "run", "--name", "shorter", "-S", "phase1.epochs=0.5")
    assert stages_run(output) == {"phase1"}
    assert project.digests(MODEL) != first.digests(MODEL)
    return project


@pytest.fixture
def second(first: Project, tmp_path: Path) -> Project:
    """Another user's clone, with nothing in its cache."""
    return cloned(first, tmp_path / "second")


def cloned(project: Project, path: Path) -> Project:
    clone = project.git_clone(path)
    clone.run("git", "remote", "set-url", "origin", project.run("git", "remote", "get-url", "origin").strip())
    assert not (path / ".dvc/cache").exists()
    assert clone.digests("data", "models") == {}
    return clone


def test_a_second_clone_pulls_and_runs_nothing(first: Project, second: Project):
    second.run("dvc", "pull")
    assert stages_run(second.run("dvc", "repro")) == set()
    everything = ("data", "models", "metrics", "plots")
    assert second.digests(*everything) == first.digests(*everything)
    assert second.run("git", "status", "--porcelain") == ""


def test_what_another_clone_ran_with_other_parameters_is_not_run_again(changed: Project, second: Project):
    output = changed.run("python", "-m", "hsae.run_cache")
    sent = re.fullmatch(r"run_cache: .*, and (\d+) more outputs of earlier runs were sent\n", output)
    assert sent is not None
    assert int(sent[1]) > 0, "then `dvc push --run-cache` would do"
    second.set_params({"phase1": {"epochs": 0.5}})
    assert stages_run(second.run("dvc", "repro", "--pull")) == set()
    assert second.digests(MODEL, "metrics", "plots") == changed.digests(MODEL, "metrics", "plots")


def test_an_experiment_is_pushed_by_one_clone_and_pulled_and_applied_by_another(changed: Project, second: Project):
    changed.run("dvc", "exp", "push", "origin", "shorter")
    second.run("dvc", "exp", "pull", "origin", "shorter")
    second.run("dvc", "pull")
    second.run("dvc", "exp", "apply", "shorter")
    assert stages_run(second.run("dvc", "repro")) == set()
    assert second.digests(MODEL, "metrics", "plots") == changed.digests(MODEL, "metrics", "plots")


@pytest.mark.parametrize("lost", [True, False])
def test_an_object_that_is_lost_or_damaged_is_named_and_made_anew(
    first: Project, second: Project, bucket: Bucket, lost: bool
):
    lock: Any = OmegaConf.load(first.path / "dvc.lock")
    (md5,) = [out.md5 for out in lock.stages.phase1.outs if out.path == MODEL]
    with bucket.damaged(f"shared/files/md5/{md5[:2]}/{md5[2:]}", lost=lost):
        result = second.try_run("dvc", "pull")
    assert result.returncode == 1
    assert "ERROR: failed to pull data from the cloud" in result.stderr
    assert MODEL in result.stderr
    assert "Traceback" not in result.stderr
    pulled, whole = second.digests("data", "models"), first.digests("data", "models")
    assert pulled == {path: content for path, content in whole.items() if path != MODEL}
    assert second.run("git", "status", "--porcelain") == ""
    assert stages_run(second.run("dvc", "repro")) == {"phase1"}
    assert second.digests("data", "models") == whole


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address on loopback at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_remote_that_cannot_be_reached_is_told_and_leaves_all_files_alone(second: Project, nowhere: str):
    second.run("dvc", "remote", "modify", "--local", "storage", "endpointurl", nowhere)
    before = second.digests("data", "models", "metrics", "plots", "dvc.lock", "params.yaml")
    for command in (["dvc", "pull"], ["dvc", "repro", "--pull"], ["dvc", "push", "--run-cache"]):
        result = second.try_run(*command)
        assert result.returncode != 0, command
        assert f'Could not connect to the endpoint URL: "{nowhere}/bucket' in result.stderr
        assert "Traceback" not in result.stderr
    assert second.digests("data", "models", "metrics", "plots", "dvc.lock", "params.yaml") == before
    assert second.run("git", "status", "--porcelain") == ""


def test_a_run_cache_that_cannot_be_sent_is_told_in_one_line(changed: Project, nowhere: str, tmp_path: Path):
    project = changed.clone(tmp_path / "project")
    project.run("dvc", "remote", "modify", "--local", "storage", "endpointurl", nowhere)
    for message in ("ERROR: .*Could not connect to the endpoint URL", "ERROR: .*no remote specified"):
        result = project.try_run("python", "-m", "hsae.run_cache")
        assert result.returncode == 1
        assert re.fullmatch(f"error: run_cache: `dvc push` failed: {message}.*\n", result.stderr)
        assert result.stdout == ""
        project.run("dvc", "remote", "default", "--unset")


def experiments(project: Project) -> set[str]:
    """Labels of the sweep's experiments that a clone has."""
    names = project.run("git", "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps").split()
    return {name.rpartition("-")[0] for name in names if name.startswith("ablations-")}


def test_clones_run_a_share_of_a_sweep_each_and_one_collects_it(first: Project, second: Project, tmp_path: Path):
    machines = [cloned(first, tmp_path / f"machine{i}") for i in (1, 2)]
    shares = [["bash", "examples/share.sh", "ablations", f"{i}/2"] for i in (1, 2)]
    with ThreadPoolExecutor() as pool:
        outputs = pool.map(lambda machine, command: machine.run(*command), machines, shares)
    for machine, output, condition in zip(machines, outputs, SWEEP["conditions"], strict=True):
        assert "ablations: 1 of 1 experiments are finished; 0 are missing" in output
        assert experiments(machine) == {f"ablations-{condition}-0"}
        assert machine.run("git", "status", "--porcelain") == ""
    machines[0].run(*shares[0])
    assert machines[0].run("dvc", "queue", "status").count("Success") == 1, "nothing was run a second time"

    second.run("dvc", "exp", "pull", "origin")
    output = second.run("python", "-m", "hsae.sweep", "ablations", "--collect")
    assert "ablations: 2 of 2 experiments are finished; 0 are missing" in output
    conditions = json.loads((second.path / "metrics/ablations.json").read_text())["conditions"]
    assert conditions["dense"]["level1.l0"]["mean"] > conditions["reference"]["level1.l0"]["mean"]


def test_a_share_without_its_arguments_is_refused_in_one_line():
    result = subprocess.run(["bash", ROOT / "examples/share.sh", "ablations"], capture_output=True, text=True)
    assert result.returncode != 0
    assert result.stderr.endswith("usage: share.sh SWEEP I/N [JOBS]\n")
    assert len(result.stderr.splitlines()) == 1


def example(name: str) -> str:
    return (ROOT / "examples" / name).read_text(encoding="utf-8")


def sky() -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.create(example("skypilot.yaml")))  # pyright: ignore[reportReturnType]


def fake_commands(folder: Path, *names: str) -> str:
    """A PATH on which these commands only say how they were called."""
    for name in names:
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_array_of_slurm_runs_every_share_in_a_clone_of_its_own(tmp_path: Path):
    script = example("slurm.sh")
    assert "NOT RUN HERE" in script.splitlines()[1]
    (parts,) = re.findall(r"^#SBATCH --array=1-(\d+)$", script, re.MULTILINE)
    env = {"PATH": fake_commands(tmp_path, "git", "make", "bash"), "HSAE_GIT": "here", "HSAE_CLONES": str(tmp_path)}
    for task in range(1, int(parts) + 1):
        clone = tmp_path / str(task)
        clone.mkdir()
        run = [shutil.which("bash") or "bash", ROOT / "examples/slurm.sh"]
        task_env = {**env, "SLURM_ARRAY_TASK_ID": str(task)}
        output = subprocess.run(run, env=task_env, capture_output=True, check=True, text=True).stdout
        assert output.splitlines() == ["make .venv/installed", f"bash examples/share.sh ablations {task}/{parts}"]


def test_the_nodes_of_skypilot_run_every_share(tmp_path: Path):
    assert "NOT RUN HERE" in example("skypilot.yaml").splitlines()[0]
    task = sky()
    assert task.keys() == {"name", "num_nodes", "resources", "envs", "secrets", "setup", "run"}
    assert {**task["envs"], **task["secrets"]} == dict.fromkeys(["HSAE_GIT", *list(KEYS)[:2]])
    (tmp_path / "hsae").mkdir()
    env = {"PATH": fake_commands(tmp_path, "git", "make", "bash"), "HSAE_GIT": "here"}
    for rank in range(task["num_nodes"]):
        node = {**env, "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": str(task["num_nodes"])}
        lines = []
        for step in ("setup", "run"):
            run = [shutil.which("bash") or "bash", "-c", task[step]]
            result = subprocess.run(run, cwd=tmp_path, env=node, capture_output=True, check=True, text=True)
            lines += result.stdout.splitlines()
        share = f"{rank + 1}/{task['num_nodes']}"
        assert lines == ["make -C hsae .venv/installed", f"bash examples/share.sh ablations {share}"]
