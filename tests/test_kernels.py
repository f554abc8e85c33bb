"""The kernels are built once, and where they cannot be, all goes on without them."""

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hsae import kernels
from hsae.gradients import level_gradients
from hsae.training import Autograd
from hsae.variants import build


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    yield
    kernels.library.cache_clear()


def built(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file()]


def test_they_are_compiled_once_and_then_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if kernels.library() is None:
        pytest.skip("no compiler")
    (library,) = built(tmp_path)
    made = library.stat().st_mtime_ns
    kernels.library.cache_clear()
    assert isinstance(kernels.library(), ctypes.CDLL)
    assert built(tmp_path) == [library]
    assert library.stat().st_mtime_ns == made
    monkeypatch.setattr(kernels, "FLAGS", [*kernels.FLAGS, "-DOTHER"])
    kernels.library.cache_clear()
    kernels.library()
    assert len(built(tmp_path)) == 2


def test_without_a_compiler_autograd_trains_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert isinstance(level_gradients(build("topk", 8, 16, k=2, beta=0.0)), Autograd)
    out = capsys.readouterr().out
    assert out == (
        "kernels.cpp was not compiled (there is no no-such-compiler): autoencoders train several times slower\n"
    )
    kernels.library()
    assert capsys.readouterr().out == ""


def test_source_that_does_not_compile_is_reported_in_a_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if kernels.library() is None:
        pytest.skip("no compiler")
    kernels.library.cache_clear()
    capsys.readouterr()
    before = built(tmp_path)
    broken = tmp_path.parent / f"{tmp_path.name}.cpp"
    broken.write_text("this is not C++")
    monkeypatch.setattr(kernels, "SOURCE", broken)
    assert kernels.library() is None
    first, out = capsys.readouterr().out.split("\n", 1)
    assert first == f"compiling kernels.cpp with g++, once, into {tmp_path / 'hsae'}"
    assert out.startswith("kernels.cpp was not compiled (")
    assert out.count("\n") == 1
    assert built(tmp_path) == before


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert kernels.library() is None
    assert capsys.readouterr().out.startswith("kernels.cpp was not compiled (")


def test_a_compiler_that_cannot_say_its_version_is_no_error(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "g++", stderr="broken")

    monkeypatch.setattr(subprocess, "run", fail)
    assert kernels.library() is None


def test_an_argument_that_no_kernel_takes_is_refused_by_name():
    assert kernels._convert("decode", None) is None
    with pytest.raises(TypeError, match=r"decode: np.float32\(1.5\) of type float32 is no tensor, int, float or None"):
        kernels._convert("decode", np.float32(1.5))
