"""A stage of several processes: how it starts, what it says when one is lost, and that it goes on to the same bytes."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hsae.files import digest
from tests.project import ROOT, Project
from tests.torture import (
    LOST,
    heed_interrupts,
    make_frequent,
    processes,
    start,
    wait_for_a_checkpoint,
)

STAGE = """
import os, signal, sys, torch
from hsae import parallel, run
from hsae.processes import leads, start, together
with run.stage("phase2") as stage:
    start(stage, torch.device("cpu"))
    with together(stage, torch.device("cpu")) as folder:
        {}
        parallel.total(torch.ones(1))
        if leads():
            print("done")
"""
PARAMS = "processes: 2\n"
PIPELINE = "stages: {phase2: {params: [processes]}}\n"
AGAIN = "run it again, and it goes on from its last checkpoint."


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    return tmp_path


def run(workspace: Path, body: str, **env: str) -> tuple[int, str, str]:
    """Exit status, output and complaints of a stage whose processes each do `body` once they have met."""
    command = [sys.executable, "-c", STAGE.format(body)]
    found = subprocess.run(
        command, cwd=workspace, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True
    )
    return found.returncode, found.stdout, found.stderr


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)",
         f"error: phase2: process 1 of 0 to 1 was lost (SIGKILL): {AGAIN}\n"),
        ("leads() and os.kill(os.getpid(), signal.SIGKILL)",
         f"error: phase2: process 0 of 0 to 1 was lost (SIGKILL): {AGAIN}\n"),
        ("parallel.check_batch(3)",  # both say so
         "error: phase2: `batch_size` must be a multiple of `processes` (=2); not 3.\n"),
        ("leads() or parallel.check_batch(5)",
         "error: phase2: `batch_size` must be a multiple of `processes` (=2); not 5.\n"),
        ("os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGTERM)",
         f"error: phase2: its 2 processes lost contact with each other: {AGAIN}\n"),
    ],
    ids=["rank 1 is killed", "rank 0 is killed", "both fail", "rank 1 fails", "rank 1 is told to stop"],
)  # fmt: skip
def test_whatever_ends_a_process_ends_all_with_one_line(body: str, complaint: str, workspace: Path):
    status, said, complaints = run(workspace, body)
    assert (status, said, complaints) == (1, "", complaint)


def test_processes_meet_and_the_first_one_speaks_and_clears_up(workspace: Path):
    assert run(workspace, "print(os.environ['RANK'], parallel.size())") == (0, "0 2\ndone\n", "")
    assert list((workspace / ".ckpt/phase2").iterdir()) == []


def test_another_number_of_processes_than_torchrun_started_is_refused(workspace: Path):
    refusal = "error: phase2: `processes` must be 3, as many as were started; not 2.\n"
    assert run(workspace, "", RANK="0", WORLD_SIZE="3") == (1, "", refusal)


def test_no_processes_are_refused(workspace: Path):
    (workspace / "params.yaml").write_text("processes: 0\n")
    assert run(workspace, "")[2] == "error: phase2: params.yaml: `processes` must be above 0; not 0.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_told_to_stop_ends_all_in_one_line(number: int, workspace: Path):
    body = "leads() and print(os.getpid(), flush=True) or parallel.total(torch.ones(1)) and signal.pause()"
    command = [sys.executable, "-c", STAGE.format(body)]
    with subprocess.Popen(
        command, cwd=workspace, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=heed_interrupts,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        first = int(process.stdout.readline())
        process.send_signal(number)
        assert process.stderr.read() == "error: phase2: stopped before its end\n"
    assert process.returncode == 1
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """After a repro of phase 1 by two processes, with revivals, whose checkpoints are a moment apart."""
    folder = tmp_path_factory.mktemp("project")
    project = Project.create(folder, tmp_path_factory.mktemp("site"))
    project.set_params({"processes": 2, "dead_tokens": 4000, "phase1": {"epochs": 20}, "sharpening": {"epochs": 5}})
    project.set_params({"extract_activations": {"block_tokens": 6144}})  # one block by both, the other by one of them
    make_frequent(project)
    project.run("dvc", "repro", "phase1")
    return project


def results(project: Project) -> dict[str, str]:
    return {name: digest(project.path / name) for name in ("models/phase1.safetensors", "metrics/phase1.json")}


def test_dvc_records_the_processes_and_torchrun_comes_to_the_same_bytes(project: Project):
    assert re.search(r"  phase1:\n(    .*\n)*        processes: 2\n", (project.path / "dvc.lock").read_text())
    expected = results(project)
    (project.path / "models/phase1.safetensors").unlink()
    said = project.run("python", "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "stages.phase1")
    assert results(project) == expected
    assert said.count("phase1, sharpening: 20/20") == 1  # one of them speaks


def test_activations_extracted_by_two_processes_are_those_of_one(project: Project):
    expected = project.digests("data/activations")
    assert len(expected) == 6  # two blocks, their plan, and three splits
    shutil.rmtree(project.path / "data/activations")
    project.set_params({"processes": 1})
    project.run("python", "-m", "stages.extract_activations")
    project.set_params({"processes": 2})
    assert project.digests("data/activations") == expected


def test_a_stage_that_lost_a_process_says_so_and_goes_on_to_the_same_bytes(project: Project):
    expected = results(project)
    (project.path / "models/phase1.safetensors").unlink()
    with start(project, ["python", "-m", "stages.phase1"]) as process:
        wait_for_a_checkpoint(project, "phase1", process)
        ranks = sorted(set(processes(project, "phase1")) - {process.pid})
        assert len(ranks) == 2
        os.kill(ranks[-1], signal.SIGKILL)
        said = process.communicate()[0]
    assert process.returncode == 1
    assert len(LOST.findall(said)) == said.count("error:") == 1
    assert "Traceback" not in said
    assert processes(project, "phase1") == []
    assert "phase1: going on from step" in project.run("python", "-m", "stages.phase1")
    assert results(project) == expected
