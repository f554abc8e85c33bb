"""What every stage runs inside: parameters, recorded inputs, the guard against edits, the writer lock, the device.

DVC notes in dvc.lock the code and parameters as they are when a command ends; an edit made while it ran would be noted
as if it had been used (DVC issue 11058). So a stage remembers what it read and fails at its end if any of that changed.
"""

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from hsae import config
from hsae.config import check
from hsae.files import digest, fingerprint
from hsae.signals import die_with_parent, interruptible

T = TypeVar("T")
LOCK = Path("dvc.lock")
ABANDONED = 86_400.0  # seconds: checkpoints that are older; to newer ones a queue may still come


class Device(StrEnum):
    """Where tensors live; auto is cuda where there is one, else cpu."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass
class Compute:
    """Top-level keys `device` and `threads`. Results repeat to the bit only for the same number of threads."""

    device: Device
    threads: int

    def __post_init__(self) -> None:
        check("threads", self.threads, "above 0", self.threads > 0)
        wants_cuda = self.device == Device.cuda
        check("device", self.device.value, "cpu or auto: there is no CUDA device here", not wants_cuda or _has_cuda())


class Stage:
    """A running stage: the only way by which it gets parameters and input files, so that all of them are known."""

    def __init__(self, name: str):
        self.name = name
        self.root = Path(os.environ.get("DVC_ROOT", "."))
        self._given: list[object] = []
        self._code = {path: digest(path) for path in _code()}
        self._inputs: dict[Path, tuple[int, ...]] = {}

    def params(self, schema: type[T], section: str | None = None) -> T:
        """One section of params.yaml, or the top-level keys that `schema` names, checked.

        It lacks the attributes that dvc.yaml does not list among this stage's params: to use one of them ends the
        stage. So dvc.yaml says the truth of what the result depends on.
        """
        value = config.load(schema, section, self._params)
        config.withhold(value, section, self._listed)
        self._given.append(value)
        return value

    def input(self, path: str) -> Path:
        """A file, or a folder, that another stage wrote.

        Raises ValueError if it is not there, or not the one that DVC recorded. Of tensors, which are large and carry a
        sha256 of their own, only the size is compared with that; of a folder of them the number of files, too.
        """
        given = Path(path)
        files = sorted(file for file in (given, *given.rglob("*")) if file.is_file())
        if not files:
            raise ValueError(f"input {given} is missing: run `dvc repro` (or `dvc checkout`).")
        self._inputs |= {file: _signature(file) for file in files}
        if recorded := in_lock(path):
            md5, size, n = recorded
            same = (size, n) == (sum(file.stat().st_size for file in files), len(files))
            has_sha256 = all(file.suffix == ".safetensors" for file in files)
            if not same or not (has_sha256 or md5 == digest(given, "md5")):
                raise ValueError(
                    f"input {given} is not what {LOCK} records: remove it and run `dvc checkout` or `dvc repro`."
                )
        return given

    def device(self) -> torch.device:
        """Choose the device, and set how torch computes: number of threads, deterministically, TF32 on a GPU."""
        compute = self.params(Compute)
        self._warn_of_other_threads(compute.threads)
        compute_with(compute.threads)
        chosen = compute.device.value
        if compute.device == Device.auto:
            chosen = "cuda" if _has_cuda() else "cpu"
        if chosen == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without
            torch.set_float32_matmul_precision("high")
        return torch.device(chosen)

    def folder(self) -> Path:
        """Where the checkpoints of this stage, its code, parameters and inputs lie."""
        return self.root / ".ckpt" / self.name / self._key()

    @contextmanager
    def checkpoints(self) -> Iterator[Path]:
        """A directory of this stage, its code, parameters and inputs alone, which one process at a time may write.

        It lies in the main repository also when DVC runs the stage in a temporary copy of it. It is removed at the end
        of a block that succeeds; what other code, parameters or inputs left there is removed when it is a day old.
        """
        folder = self.folder()
        with _exclusive(folder, self.name):
            _prune(folder)
            yield folder
            shutil.rmtree(folder)

    def check_unchanged(self) -> None:
        """Raise ValueError if code, parameters or inputs are no longer what this stage read."""
        changed: list[object] = [
            path for path, before in self._code.items() if not path.is_file() or digest(path) != before
        ]
        changed += [path for path, signature in self._inputs.items() if _signature(path) != signature]
        if self._given:
            before, after = (config.covered(self._listed, params) for params in (self._params, config.parse_params()))
            keys = [key for key in before | after if before.get(key) != after.get(key)]
            changed += [f"{config.PARAMS} ({', '.join(keys)})"] if keys else []
        if changed:
            raise ValueError(f"{changed[0]} changed during the run; its result is void: run `dvc repro` again.")

    def missing(self, error: AttributeError) -> bool:
        """Whether the error is that a parameter is used which dvc.yaml does not list."""
        return any(error.obj is value for value in self._given)

    @cached_property
    def _listed(self) -> list[str]:
        """The params that dvc.yaml lists for this stage."""
        return config.listed(self.name, "params")

    @cached_property
    def _params(self) -> dict[str, Any]:
        """All of params.yaml as it was when it was first asked for."""
        return config.read_params()

    def _warn_of_other_threads(self, threads: int) -> None:
        """Say so if the result that dvc.lock has of this stage was computed by another number of threads."""
        recorded = re.search(r"^        threads: (\d+)$", lock_entry(self.name.replace("/", "@")), re.MULTILINE)
        if recorded and int(recorded[1]) != threads:
            note = f"`threads` is {threads}, and was {recorded[1]} for the result in {LOCK}"
            print(f"{self.name}: {note}: sums are rounded otherwise, results differ a little", flush=True)

    def _key(self) -> str:
        """Hash of the code, torch's version, the parameters and the content of the inputs."""
        read = [repr(sorted(config.covered(self._listed, self._params).items()))]
        read += [f"{path}: {_content(path)}" for path in self._inputs]
        read.append(torch.__version__)
        return hashlib.sha256("\n".join([*read, *self._code.values()]).encode()).hexdigest()[:16]


@contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Run a stage's body; ValueError, OSError, Ctrl-C and SIGTERM end the process with one line and exit status 1."""
    die_with_parent()
    running = None
    try:
        with interruptible():
            check_versions(name)
            running = Stage(name)
            yield running
            running.check_unchanged()
    except AttributeError as error:
        if not (running and running.missing(error)):
            raise
        sys.exit(f"error: {name}: it uses `{error.name}`, which dvc.yaml does not list among its params")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {name}: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(f"error: {name}: stopped before its end")


def check_versions(stage: str) -> None:
    """Raise ValueError if a package is installed in another version than a file says that the stage depends on.

    Those files, versions/*.lock, name the packages that can change a number. What is not installed is not used.
    """
    for dep in config.listed(stage, "deps"):
        if dep.startswith("versions/"):
            for line in Path(dep).read_text(encoding="utf-8").splitlines():
                package, _, expected = line.partition("==")
                with suppress(PackageNotFoundError):
                    installed = version(package).partition("+")[0]  # what follows says for which device it was built
                    what = f"{expected}, as {dep} says: install requirements.lock, or write the version into that file"
                    check(package, installed, what, installed == expected)


def compute_with(threads: int) -> None:
    """Set how torch computes on a CPU: by so many threads, deterministically, its memory kept."""
    torch.set_num_threads(threads)
    # This, unlike `use_deterministic_algorithms`, does not import torch's compiler, which takes a second.
    torch.set_deterministic_debug_mode("error")
    # Else every new tensor costs a pass through its memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    keep_memory()


def lock_entry(stage: str) -> str:
    """What dvc.lock records of a stage, as it stands there; empty if it records nothing."""
    entry = re.search(rf"^  {re.escape(stage)}:\n(?:    .*\n)+", _lock(), re.MULTILINE)
    return entry[0] if entry else ""


def keep_memory() -> None:
    """Have the C library keep what is freed for the next step, instead of asking the system for it page by page.

    Where it is glibc's: a step's large tensors cost half a millisecond per megabyte otherwise.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the most that it accepts
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _code() -> list[Path]:
    """The project's own modules that this process has imported, with what they compile."""
    here = Path(__file__).resolve().parent
    names = (getattr(module, "__file__", None) for module in sys.modules.values())
    files = [Path(name) for name in names if name]
    own = [file for file in files if any(file.is_relative_to(folder) for folder in (here, here.parent / "stages"))]
    return sorted([*own, *(file.with_suffix(".cpp") for file in own if file.with_suffix(".cpp").is_file())])


@contextmanager
def _exclusive(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of `folder`, made if need be, waiting for whoever holds it; its end, however it comes, frees it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / "lock").open("w")
        except FileNotFoundError:  # another process, pruning, has just removed the folder
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{name}: another process is running exactly this; waiting for it", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever held it may have removed the folder meanwhile: then this lock is on nothing.
            if (folder / "lock").exists() and (folder / "lock").stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield
                return


def _prune(folder: Path) -> None:
    """Remove what lies beside `folder`, is abandoned, and is held by no process."""
    for other in set(folder.parent.iterdir()) - {folder}:
        # Held by a process; or removed, by another that prunes or by its owner, while it is looked at.
        with suppress(BlockingIOError, FileNotFoundError):
            newest = max(path.stat().st_mtime for path in [other, *other.rglob("*")])
            if time.time() - newest > ABANDONED:
                with (other / "lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(other, ignore_errors=True)


def _signature(path: Path) -> tuple[int, ...]:
    """Size, time of change and inode: what tells, without reading it, that a file was replaced or written to."""
    if not path.is_file():
        return ()
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _lock() -> str:
    """What DVC has recorded of all stages: YAML, but a parser of it takes a quarter of a second."""
    return LOCK.read_text(encoding="utf-8") if LOCK.is_file() else ""


def _content(path: Path) -> str:
    """A hash of a file's content."""
    return fingerprint(path) if path.suffix == ".safetensors" else digest(path)


def in_lock(path: str) -> tuple[str, int, int] | None:
    """The MD5, size and number of files that dvc.lock has for an output.

    Nothing for what is no output, or where DVC never ran. The MD5 of a folder is that of a list of its files' MD5.
    """
    numbers = r"\n +hash: md5\n +md5: (\w{32})(?:\.dir)?\n +size: (\d+)\n(?: +nfiles: (\d+)\n)?"
    for section in re.findall(r"^    outs:\n((?:    [- ].*\n)+)", _lock(), re.MULTILINE):
        if entry := re.search(rf"- path: {re.escape(path)}{numbers}", section):
            return entry[1], int(entry[2]), int(entry[3] or 1)
    return None


def _has_cuda() -> bool:
    return torch.cuda.is_available()
