"""Faults done to a small pipeline: damaged, foreign and planted inputs, a full disk, rivals, clocks, a killed parent.

Whatever happens, a stage ends with one line, and no output is changed or half-written.
"""

import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from hsae import files, run
from stages import (
    build_study,
    clustering_baseline,
    evaluate,
    evaluate_hsae,
    extract_activations,
    flat_baseline,
    phase1,
    phase2,
    phase3,
    prepare_data,
    score_study,
    train_transformer,
    untrained,
)
from tests.project import ROOT, TINY

PIPELINE = {
    "prepare_data": prepare_data.main,
    "train_transformer": train_transformer.main,
    "extract_activations": extract_activations.main,
    "phase1": phase1.main,
    "phase2": phase2.main,
    "phase3": phase3.main,
    "untrained": lambda: untrained.main(["topk"]),
    "flat_baseline/topk": lambda: flat_baseline.main("topk", "topk", 1),
    "clustering_baseline/kmeans": lambda: clustering_baseline.main("kmeans"),
    "evaluate_hsae": evaluate_hsae.main,
    "build_study": lambda: build_study.main("topk"),
    "score_study": score_study.main,
    "evaluate": lambda: evaluate.main(["topk"], ["kmeans"]),
}
READERS = {
    "data/tokens.safetensors": "train_transformer",
    "data/tokenizer.json": "train_transformer",
    "data/corpus.json": "train_transformer",
    "models/transformer.safetensors": "extract_activations",
    "data/activations/train/00001.safetensors": "phase1",
    "data/activations/train/plan.safetensors": "phase1",
    "data/activations/val.safetensors": "phase1",
    "data/activations/test.safetensors": "evaluate_hsae",
    "models/phase1.safetensors": "phase2",
    "models/phase2.safetensors": "phase3",
    "models/phase3.safetensors": "evaluate_hsae",
    "models/l0/level1.json": "flat_baseline/topk",
    "models/flat_baseline/topk.safetensors": "evaluate",
    "models/clustering_baseline/kmeans.safetensors": "evaluate",
    "plots/edges.csv": "build_study",
    "data/study/trials.json": "score_study",
    "metrics/hsae.json": "evaluate",
}
TENSORS = [path for path in READERS if path.endswith(".safetensors")]
TRAIN = "data/activations/train"  # a folder, which DVC records as a whole
BLOCK = f"{TRAIN}/00001.safetensors"
FOLDERS = ("data", "models", "metrics", "plots")


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """Stages set how torch computes."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stages of `PIPELINE` ran, with a dvc.lock that says so."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / "versions", folder / "versions")
    params = OmegaConf.merge(OmegaConf.load(ROOT / "params.yaml"), TINY, {"threads": 1, "device": "cpu"})
    params.extract_activations.block_tokens = 5000
    OmegaConf.save(params, folder / "params.yaml")
    (folder / "study").mkdir()
    (folder / "study/responses.jsonl").touch()
    with pytest.MonkeyPatch.context() as patch, torch_as_it_was():
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        patch.setattr(run, "die_with_parent", lambda: None)
        for main in PIPELINE.values():
            main()
    shutil.rmtree(folder / ".ckpt")
    lock, train = "schema: '2.0'\nstages:\n  all:\n    outs:\n", []
    for path, content in outputs(folder).items():
        if path.startswith(TRAIN):
            train.append(len(content))
        else:
            lock += entry(path, md5(content).hexdigest(), len(content))
    assert len(train) == 3
    lock += entry(TRAIN, f"{'0' * 32}.dir", sum(train)) + "      nfiles: 3\n"
    (folder / "dvc.lock").write_text(lock)
    return folder


def entry(path: str, digest: str, size: int) -> str:
    return f"    - path: {path}\n      hash: md5\n      md5: {digest}\n      size: {size}\n"


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, to spoil."""
    folder = shutil.copytree(made, tmp_path / "workspace")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(run, "die_with_parent", lambda: None)
    with torch_as_it_was():
        yield folder


def outputs(folder: Path) -> dict[str, bytes]:
    found = (path for name in FOLDERS for path in sorted((folder / name).rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def recorded(path: str) -> str:
    """What dvc.lock records a file as, or as a part of."""
    return TRAIN if path.startswith(TRAIN) else path


def refused(stage: str) -> str:
    """The one line with which a stage ends; it has changed nothing."""
    before = outputs(Path())
    with pytest.raises(SystemExit) as end:
        PIPELINE[stage]()
    line = str(end.value)
    assert re.fullmatch(f"error: {stage}: .+", line), line  # a dot is no newline
    assert outputs(Path()) == before
    return line


def set_params(values: dict[str, object]) -> None:
    OmegaConf.save(OmegaConf.merge(OmegaConf.load("params.yaml"), values), "params.yaml")


@pytest.mark.parametrize("path", READERS)
def test_a_truncated_file_is_refused_by_the_stage_that_reads_it(workspace: Path, path: str):
    content = (workspace / path).read_bytes()
    (workspace / path).write_bytes(content[:-2])
    assert f"{recorded(path)} is not what dvc.lock records" in refused(READERS[path])
    (workspace / "dvc.lock").unlink()
    if path not in TENSORS:  # then nothing tells where a table ends
        return
    for keep in (0, 9, len(content) // 2, len(content) - 2):
        (workspace / path).write_bytes(content[:keep])
        assert f"{path} is damaged" in refused(READERS[path])


@pytest.mark.parametrize("path", READERS)
def test_any_flipped_bit_is_refused(workspace: Path, path: str):
    content = (workspace / path).read_bytes()
    draw = random.Random(0)
    for at in (len(content) - 1, draw.randrange(len(content)), draw.randrange(len(content))):
        flipped = bytearray(content)
        flipped[at] ^= 1 << draw.randrange(8)
        (workspace / path).write_bytes(flipped)
        assert path in refused(READERS[path])


@pytest.mark.parametrize("path", TENSORS)
def test_another_stages_file_is_refused_with_and_without_a_record(workspace: Path, path: str):
    transformer, phase1 = "models/transformer.safetensors", "models/phase1.safetensors"
    shutil.copy(phase1 if path == transformer else transformer, path)
    assert f"{recorded(path)} is not what dvc.lock records" in refused(READERS[path])
    (workspace / "dvc.lock").unlink()
    expected = "is not what its stage writes|lacks `" if path != BLOCK else "is damaged .it is not the one that"
    assert re.search(expected, refused(READERS[path]))


def test_a_block_that_is_missing_is_refused_with_and_without_a_record(workspace: Path):
    (workspace / BLOCK).unlink()
    assert f"{TRAIN} is not what dvc.lock records" in refused("phase1")
    (workspace / "dvc.lock").unlink()
    assert f"{BLOCK} is damaged (it is not the one that {TRAIN}/plan.safetensors names)" in refused("phase1")
    shutil.rmtree(workspace / TRAIN)
    assert f"input {TRAIN} is missing" in refused("phase1")


@pytest.mark.usefixtures("workspace")
def test_blocks_in_each_others_places_are_refused():
    first, second = Path(TRAIN, "00000.safetensors"), Path(BLOCK)
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    assert f"{first} is damaged (it is not the one that" in refused("phase1")


@pytest.mark.usefixtures("workspace")
def test_training_without_kept_blocks_is_the_same_and_refuses_another_transformer():
    before = outputs(Path())
    Path("dvc.lock").unlink()
    set_params({"extract_activations": {"keep": False}})
    PIPELINE["extract_activations"]()
    assert sorted(Path(TRAIN).iterdir()) == [Path(TRAIN, "plan.safetensors")]
    for name in ("phase1", "phase2", "phase3", "flat_baseline/topk", "clustering_baseline/kmeans"):
        PIPELINE[name]()
    after = outputs(Path())
    assert {path: after.get(path) for path in before if TRAIN not in path} == {
        path: content for path, content in before.items() if TRAIN not in path
    }
    tensors, header = files.read_tensors(Path("models/transformer.safetensors"))
    files.write_tensors(Path("models/transformer.safetensors"), {n: t.clone() + 1 for n, t in tensors.items()}, header)
    expected = f"models/transformer.safetensors is not the one that {TRAIN} was planned for: run `dvc repro`"
    assert expected in refused("phase1")


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("path", [path for path in TENSORS[1:] if path != BLOCK])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch, path: str, bad: float):
    tensors, header = files.read_tensors(Path(path))
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    planted = {**tensors, name: tensors[name].clone()}
    planted[name].view(-1)[-1] = bad
    with pytest.raises(ValueError, match="not finite"):
        files.write_tensors(Path(path), planted, header)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_check_finite", lambda *_: None)
        files.write_tensors(Path(path), planted, header)
    assert f"{path}: `{name}` holds values that are not finite" in refused(READERS[path])


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("stage", ["phase1", "train_transformer"])
def test_a_loss_that_is_not_finite_ends_the_training(stage: str):
    set_params({stage: {"lr": 1.0e30}})
    assert re.search("the loss is (inf|nan)|finite", refused(stage))


@pytest.mark.parametrize("stage", ["prepare_data", "extract_activations", "phase1", "evaluate_hsae"])
def test_a_full_disk_leaves_the_old_files(workspace: Path, stage: str):
    """Files of more than 4 kB cannot be written, as if the disk were full; Python ignores the signal that says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = outputs(workspace)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SystemExit, match=f"error: {stage}: cannot write .*File too large"):
            PIPELINE[stage]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = outputs(workspace)
    assert after.keys() == before.keys(), "something half-written was left"
    assert all(len(after[path]) == len(before[path]) for path in before)


def test_a_disk_that_is_really_full_leaves_the_old_file(tmp_path: Path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        path = tmp_path / "model.safetensors"
        files.write_tensors(path, {"w": torch.zeros(10)})
        with pytest.raises(OSError, match=r"cannot write .*model\.safetensors: .*No space left on device"):
            files.write_tensors(path, {"w": torch.zeros(100_000)})
        with pytest.raises(OSError, match=r"cannot write .*a\.txt: .*No space left on device"):
            files.write_text(tmp_path / "a.txt", "a" * 100_000)
        assert list(tmp_path.iterdir()) == [path]
        assert len(files.read_tensors(path)[0]["w"]) == 10
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_file_in_the_place_of_a_folder_is_named(workspace: Path):
    shutil.rmtree(workspace / "data/activations")
    (workspace / "data/activations").touch()
    assert "cannot write data/activations/val.safetensors" in refused("extract_activations")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_must_not_be_written_to_is_named(workspace: Path):
    (workspace / "data").chmod(0o555)
    try:
        assert "cannot write data/" in refused("prepare_data")
    finally:
        (workspace / "data").chmod(0o755)


def test_clocks_that_run_backwards_change_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    before = outputs(workspace)
    seconds = iter(range(10**9, 0, -1000))
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: float(next(seconds)))
    monkeypatch.setattr("tqdm.std.time", time.time)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    os.utime(BLOCK, (2**33, 2**33))
    os.utime("data/activations/val.safetensors", (0, 0))
    PIPELINE["phase1"]()
    assert outputs(workspace) == before


def start(*arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def test_two_runs_of_a_stage_at_once_give_what_one_gives(workspace: Path):
    before = outputs(workspace)
    both = [start("-m", "stages.phase1") for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert outputs(workspace) == before


def test_a_process_ends_with_one_line_and_status_1(workspace: Path):
    path = workspace / "models/transformer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    process = start("-m", "stages.extract_activations")
    assert re.fullmatch(
        "error: extract_activations: input models/transformer.* dvc.lock .*\n", process.communicate()[0]
    )
    assert process.returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_stage_that_computes_ends_within_seconds_of_its_parent(workspace: Path):
    set_params({"phase1": {"epochs": 100_000}})
    script = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'stages.phase1'])"
    before = outputs(workspace)
    with start("-c", script) as parent:
        assert parent.stdout is not None
        locks = workspace / ".ckpt/phase1"
        wait_for(lambda: any(locks.glob("*/lock")), 120)
        parent.kill()
        start_of_end = time.monotonic()
        parent.stdout.read()  # to the end of whoever holds the pipe: the stage
        assert time.monotonic() - start_of_end < 10
    assert outputs(workspace) == before


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    for _ in range(int(seconds * 20)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")
