"""The guard, the lock, and the one-line errors of a stage, each by doing it."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hsae import kernels, run
from hsae.losses import Coefficients
from hsae.run import Compute
from tests.torture import heed_interrupts

ROOT = Path(__file__).resolve().parent.parent
PARAMS = """\
device: cpu
threads: 1
beta1: 0.01
beta2: 0.1
lambda_cos: 0.0
gamma_group: 0.0
weight_coverage: 0.0
weight_x_from_h1: 1.0
weight_h1_from_h2: 1.0
weight_x_from_h2: 1.0
level1_grad_scale: 0.1
"""
KEYS = [line.split(":")[0] for line in PARAMS.splitlines()]
PIPELINE = f"""\
vars: [{{flat: {{topk: {{level: 1}}}}}}]
stages:
  phase1: {{params: [device, threads, beta1]}}
  phase2: {{params: [{", ".join(KEYS)}]}}
  flat_baseline: {{foreach: "${{flat}}", do: {{params: [device, threads, "beta${{item.level}}"]}}}}
"""


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "input").write_text("content")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(run, "die_with_parent", lambda: None)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_an_undisturbed_stage_ends_without_complaint():
    with run.stage("phase2") as stage:
        assert stage.params(Coefficients).beta2 == 0.1
        assert stage.input("input").read_text() == "content"


def test_editing_a_parameter_of_the_stage_voids_the_result(workspace: Path):
    changed = r"error: phase2: params.yaml \(beta2\) changed during the run"
    with pytest.raises(SystemExit, match=changed), run.stage("phase2") as stage:  # noqa: PT012
        stage.params(Coefficients)
        (workspace / "params.yaml").write_text(PARAMS.replace("beta2: 0.1", "beta2: 0.2"))


@pytest.mark.parametrize("name", ["phase1", "flat_baseline/topk"])
def test_editing_a_parameter_that_dvc_does_not_list_for_the_stage_does_no_harm(workspace: Path, name: str):
    folders = []
    for beta2 in ("0.1", "0.2"):
        (workspace / "params.yaml").write_text(PARAMS.replace("beta2: 0.1", f"beta2: {beta2}"))
        with run.stage(name) as stage:
            assert stage.params(Coefficients).beta1 == 0.01
            (workspace / "params.yaml").write_text(PARAMS.replace("beta2: 0.1", "beta2: 0.3"))
            folders.append(stage.folder())
    assert folders[0] == folders[1]


def test_what_was_read_once_stays_as_it_was(workspace: Path):
    with pytest.raises(SystemExit, match=r"\(beta1\) changed during the run"), run.stage("phase1") as stage:  # noqa: PT012
        stage.params(Compute)
        (workspace / "params.yaml").write_text(PARAMS.replace("beta1: 0.01", "beta1: 0.02"))
        assert stage.params(Coefficients).beta1 == 0.01


def test_using_a_parameter_that_dvc_does_not_list_for_the_stage_ends_it_in_one_line():
    used = "error: phase1: it uses `beta2`, which dvc.yaml does not list among its params"
    with pytest.raises(SystemExit, match=used), run.stage("phase1") as stage:
        _ = stage.params(Coefficients).beta2
    with pytest.raises(AttributeError, match="no attribute 'beta3'"), run.stage("phase1"):
        _ = Coefficients.beta3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_stage_that_dvc_does_not_know_is_refused():
    with pytest.raises(SystemExit, match=r"error: phase9: dvc\.yaml has no stage `phase9`"), run.stage("phase9"):
        pass


def test_another_version_than_the_one_that_the_stage_depends_on_is_refused(
    workspace: Path, capsys: pytest.CaptureFixture[str]
):
    (workspace / "versions").mkdir()
    versions = workspace / "versions/numerics.lock"
    (workspace / "dvc.yaml").write_text("stages: {phase2: {deps: [versions/numerics.lock], params: [seed]}}")
    versions.write_text(f"no-such-package==1.0\ntorch=={torch.__version__.partition('+')[0]}\n")
    with run.stage("phase2"):
        print("begun")
    assert capsys.readouterr().out == "begun\n"
    versions.write_text("torch==1.0.0\n")
    refusal = "error: phase2: `torch` must be 1.0.0, as versions/numerics.lock says: install requirements.lock, or"
    with pytest.raises(SystemExit, match=refusal), run.stage("phase2"):
        print("begun")
    assert capsys.readouterr().out == ""


def test_replacing_an_input_voids_the_result(workspace: Path):
    with pytest.raises(SystemExit, match="input changed during the run"), run.stage("phase2") as stage:  # noqa: PT012
        stage.input("input")
        (workspace / "input").write_text("other")


def test_editing_code_voids_the_result(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    module = workspace / "module.py"
    module.write_text("x = 1\n")
    monkeypatch.setattr(run, "_code", lambda: [module])
    with pytest.raises(SystemExit, match=r"module\.py changed during the run"), run.stage("phase2"):
        module.write_text("x = 2\n")


def test_the_guard_watches_every_imported_module_of_the_project():
    watched = {path.name for path in run._code()}
    assert kernels.SOURCE.is_file()
    assert {"run.py", "config.py", "losses.py", "kernels.cpp"} <= watched


@pytest.mark.parametrize("name", ["hsae/a.py", "hsae/a/b/c.py", "stages/a/b.py"])
def test_the_guard_watches_modules_at_any_depth(monkeypatch: pytest.MonkeyPatch, name: str):
    module = ModuleType("deep")
    module.__file__ = str(ROOT / name)
    monkeypatch.setitem(sys.modules, "deep", module)
    assert ROOT / name in run._code()
    module.__file__ = str(ROOT / "tests/a.py")
    assert ROOT / "tests/a.py" not in run._code()


def test_a_missing_input_is_named():
    with (
        pytest.raises(SystemExit, match=r"error: phase2: input nowhere is missing: run `dvc repro`"),
        run.stage("phase2") as stage,
    ):
        stage.input("nowhere")


LOCK = """\
schema: '2.0'
stages:
  make:
    outs:
    - path: other
      hash: md5
      md5: 00000000000000000000000000000000
      size: 3
    - path: input
      hash: md5
      md5: 9a0364b9e99bb480dd25e1f0284c8555
      size: 7
  use:
    deps:
    - path: input
      hash: md5
      md5: 11111111111111111111111111111111
      size: 5
"""


def test_an_input_is_compared_with_what_dvc_recorded_when_its_stage_wrote_it(workspace: Path):
    (workspace / "dvc.lock").write_text(LOCK)
    with run.stage("phase2") as stage:
        stage.input("input")
        stage.input("params.yaml")  # no output of a stage
    (workspace / "input").write_text("contend")
    with (
        pytest.raises(SystemExit, match=r"error: phase2: input input is not what dvc\.lock records: remove it and run"),
        run.stage("phase2") as stage,
    ):
        stage.input("input")


def test_of_tensors_only_the_size_is_compared_since_they_carry_a_sha256(workspace: Path):
    (workspace / "dvc.lock").write_text(LOCK.replace("path: input", "path: x.safetensors"))
    (workspace / "x.safetensors").write_text("contend")
    with run.stage("phase2") as stage:
        stage.input("x.safetensors")
    (workspace / "x.safetensors").write_text("more")
    with pytest.raises(SystemExit, match=r"x\.safetensors is not what dvc\.lock records"), run.stage("phase2") as stage:
        stage.input("x.safetensors")


def test_of_a_folder_the_size_of_all_and_the_number_of_files_are_compared(workspace: Path):
    entry = "path: folder\n      hash: md5\n      md5: 9a0364b9e99bb480dd25e1f0284c8555.dir"
    lock = LOCK.replace("path: input\n      hash: md5\n      md5: 9a0364b9e99bb480dd25e1f0284c8555", entry)
    (workspace / "dvc.lock").write_text(lock.replace("size: 7\n", "size: 7\n      nfiles: 2\n"))
    (workspace / "folder").mkdir()
    for name, content in (("a", "one"), ("b", "four")):
        (workspace / f"folder/{name}.safetensors").write_text(content)
    with run.stage("phase2") as stage:
        assert stage.input("folder") == Path("folder")
    refusal = r"input folder is not what dvc\.lock records: remove it and run"
    (workspace / "folder/b.safetensors").write_text("three")
    with pytest.raises(SystemExit, match=refusal), run.stage("phase2") as stage:
        stage.input("folder")
    (workspace / "folder/b.safetensors").write_text("fo")
    (workspace / "folder/c.safetensors").write_text("ur")
    with pytest.raises(SystemExit, match=refusal), run.stage("phase2") as stage:
        stage.input("folder")


def test_replacing_a_file_of_a_folder_voids_the_result_and_an_empty_folder_is_none(workspace: Path):
    (workspace / "folder").mkdir()
    with pytest.raises(SystemExit, match="input folder is missing"), run.stage("phase2") as stage:
        stage.input("folder")
    (workspace / "folder/a.safetensors").write_text("one")
    changed = r"folder/a\.safetensors changed during the run"
    with pytest.raises(SystemExit, match=changed), run.stage("phase2") as stage:  # noqa: PT012
        stage.input("folder")
        (workspace / "folder/a.safetensors").write_text("other")


def test_an_error_of_several_lines_becomes_one():
    with pytest.raises(SystemExit, match=r"error: phase2: one two$"), run.stage("phase2"):
        raise ValueError("one\n  two\n")


def test_another_exception_than_bad_input_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), run.stage("phase2"):
        _ = 1 / 0


def test_threads_are_pinned_and_algorithms_deterministic():
    with run.stage("phase2") as stage:
        assert stage.device() == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_keeping_memory_changes_no_result():
    a, b = torch.randn(300, 200), torch.randn(200, 100)
    before = a @ b
    run.keep_memory()
    assert torch.equal(a @ b, before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_is_refused_where_there_is_none(workspace: Path):
    (workspace / "params.yaml").write_text(PARAMS.replace("device: cpu", "device: cuda"))
    refusal = "`device` must be cpu or auto: there is no CUDA device here; not 'cuda'"
    with pytest.raises(SystemExit, match=refusal), run.stage("phase2") as stage:
        stage.device()


def test_the_checkpoint_folder_is_keyed_by_parameters_and_inputs_and_removed_at_the_end(workspace: Path):
    def folder() -> Path:
        with run.stage("phase2") as stage:
            stage.params(Coefficients)
            stage.input("input")
            with stage.checkpoints() as path:
                assert path.is_dir()
            assert not path.exists()
            return path

    first = folder()
    assert folder() == first
    (workspace / "input").write_text("other")
    second = folder()
    (workspace / "params.yaml").write_text(PARAMS.replace("0.1", "0.2"))
    assert len({first, second, folder()}) == 3


def test_the_checkpoint_folder_survives_a_failure():
    with pytest.raises(SystemExit), run.stage("phase2") as stage, stage.checkpoints() as path:  # noqa: PT012
        (path / "step").write_text("10")
        raise ValueError("the loss is nan")
    assert (path / "step").read_text() == "10"


def test_the_checkpoint_folder_lies_in_the_main_repository_of_a_temporary_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    with run.stage("phase2") as stage, stage.checkpoints() as path:
        assert path.is_relative_to(tmp_path / "main" / ".ckpt" / "phase2")


def test_what_other_parameters_left_is_removed_when_it_is_old_and_no_process_holds_it(workspace: Path):
    folders = {name: workspace / ".ckpt/phase2" / name for name in ("old", "held", "new")}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        for path in (folder / "lock", folder):
            path.touch()
            if name != "new":
                os.utime(path, (0, 0))
    with (folders["held"] / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with run.stage("phase2") as stage, stage.checkpoints():
            assert [name for name, folder in folders.items() if folder.exists()] == ["held", "new"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_told_to_stop_ends_a_stage_in_one_line_and_leaves_its_checkpoints(workspace: Path, number: int):
    with start("60", stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "in\n"
        process.send_signal(number)
        assert process.stderr.read() == "error: phase2: stopped before its end\n"
    assert process.returncode == 1
    assert len(list((workspace / ".ckpt/phase2").iterdir())) == 1


HOLD = """
import sys, time
from hsae import run
with run.stage("phase2") as stage, stage.checkpoints() as path:
    print("in", flush=True)
    time.sleep(float(sys.argv[1]))
    print("out", flush=True)
"""


def start(*arguments: str, stderr: int | None = None) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env, preexec_fn=heed_interrupts
    )


def test_a_second_writer_waits_for_the_first_whose_end_however_it_comes_frees_the_lock():
    with start("60") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in\n"
        with start("0") as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "phase2: another process is running exactly this; waiting for it\n"
            first.kill()
            assert second.stdout.read() == "in\nout\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_stage_dies_with_the_shell_that_dvc_started(tmp_path: Path):
    child = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); sys.argv = ['', '60']; exec({HOLD!r})"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {'import os, sys; ' + child!r}])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"in\n"
        parent.send_signal(signal.SIGKILL)
    pid = int((tmp_path / "pid").read_text())
    assert _ends(pid), "the orphan still runs"


def _ends(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


LOCK_OF_THREADS = """\
schema: '2.0'
stages:
  flat_baseline@topk:
    params:
      params.yaml:
        device: cpu
        threads: {}
  phase2:
    params:
      params.yaml:
        threads: 7
"""


@pytest.mark.parametrize(("recorded", "warned"), [(1, False), (3, True)])
def test_another_number_of_threads_than_dvc_recorded_is_warned_of(
    recorded: int, warned: bool, workspace: Path, capsys: pytest.CaptureFixture[str]
):
    (workspace / "dvc.lock").write_text(LOCK_OF_THREADS.format(recorded))
    with run.stage("flat_baseline/topk") as stage:
        stage.device()
    said = "flat_baseline/topk: `threads` is 1, and was 3 for the result in dvc.lock: sums are rounded otherwise"
    assert (said in capsys.readouterr().out) == warned
