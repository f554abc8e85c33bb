"""The compiled parts of a training step, kernels.cpp: built at first use, called with tensors."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = [
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC"),
    # Sums may be reordered into vectors; NaN and infinity keep their meaning.
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
]
RETURNS = {
    **dict.fromkeys(("decode", "activity", "upper_forward", "upper_entries"), ctypes.c_double),
    "nth_largest": ctypes.c_float,
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, after a message, where no compiler can build them.

    They are kept in the user's cache folder, under a hash of the source, the flags, the compiler and the processor.
    """
    compiler = os.environ.get("CXX", "g++")
    try:
        if not shutil.which(compiler):
            raise OSError(f"there is no {compiler}")
        cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hsae"
        built = cache_folder / f"kernels-{_key(compiler)}.so"
        if not built.is_file():
            _build(compiler, built)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"kernels.cpp was not compiled ({_reason(error)}): autoencoders train several times slower", flush=True)
        return None


def call(name: str, *arguments: Tensor | float | None) -> float:
    """Call a kernel: tensors as pointers to their memory, which must be contiguous; int as int64, float as float.

    None is a pointer to nothing. Returns what it returns, or 0. Raises TypeError for any other argument.
    """
    function = getattr(library(), name)
    function.restype = RETURNS.get(name)
    return function(*(_convert(name, argument) for argument in arguments)) or 0.0


def _convert(name: str, argument: object) -> object:
    match argument:
        case Tensor():
            assert argument.is_contiguous()
            assert argument.dtype in (torch.float32, torch.int32, torch.int64)
            return ctypes.c_void_p(argument.data_ptr())
        case int():
            return ctypes.c_int64(argument)
        case float():
            return ctypes.c_float(argument)
        case None:
            return None
    raise TypeError(f"{name}: {argument!r} of type {type(argument).__name__} is no tensor, int, float or None.")


def _build(compiler: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"compiling kernels.cpp with {compiler}, once, into {target.parent}", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        subprocess.run([compiler, *FLAGS, SOURCE, "-o", built], check=True, capture_output=True, text=True)
        built.replace(target)


def _key(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    cpuinfo = Path("/proc/cpuinfo")  # -march=native: machines may share a home directory
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = next((line for line in lines if line.startswith("flags")), "")
    parts = [SOURCE.read_text(), *FLAGS, version, platform.machine(), features]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _reason(error: OSError | subprocess.CalledProcessError) -> str:
    output = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return next(iter(output.strip().splitlines()), type(error).__name__)
