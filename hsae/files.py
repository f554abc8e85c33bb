"""Reading and writing of the pipeline's files: JSON, CSV, text, PNG and safetensors; never pickle.

Every write goes to a temporary file that is renamed once it is complete and on the disk, so no file is ever
half-written, whenever the power fails.

A safetensors file carries an envelope in its metadata: the format's version, the header proper, and a sha256 of the
header and of all tensors. Reading checks it in full, which takes 0.65 s for the 512 MB that a million activations are.
"""

import hashlib
import json
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

if TYPE_CHECKING:  # importing these costs a stage that makes no plots half a second
    import pandas as pd
    from matplotlib.figure import Figure

FORMAT = 1  # of the envelope


class Content(dict[str, Any]):
    """What a file holds, by name. Raises ValueError, which names the file, for a name that is not there."""

    def __init__(self, path: Path, values: Mapping[str, Any]):
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} lacks `{name}`: remove it and run `dvc checkout` or `dvc repro`.")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def fingerprint(path: Path) -> str:
    """sha256 of the head of a safetensors file, in hexadecimal digits.

    The head has a sha256 of all the rest: whatever `read_tensors` accepts is told apart by it, and no tensor is read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return hashlib.sha256(file.read(min(length, path.stat().st_size))).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write JSON, indented and with a final newline. Raises ValueError for NaN or infinity."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, frame: "pd.DataFrame") -> None:
    """Write a frame without its index; floats to six significant digits."""
    _write(path, lambda temporary: frame.to_csv(temporary, index=False, float_format="%.6g"))


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG."""
    _write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight"))


def write_tensors(path: Path, tensors: dict[str, Tensor], header: object = None) -> None:
    """Write tensors as safetensors, with `header` (anything JSON can hold) in its metadata.

    Raises ValueError for a tensor that is not finite.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _check_finite(path, contiguous)
    envelope = {"format": FORMAT, "sha256": _sha256(contiguous, header), "header": header}
    # One metadata key: safetensors writes several in an order that differs from run to run.
    metadata = {"header": json.dumps(envelope)}
    _write(path, lambda temporary: safetensors.torch.save_file(contiguous, temporary, metadata))


def replace_folder(made: Path, path: Path) -> None:
    """Put a folder that is complete in the place of `path`. Raises OSError, which names `path`."""
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{which}.tmp") for which in ("new", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, new)  # copies it, if that is another disk
        if path.exists():
            path.rename(old)
        new.rename(path)
        _sync(path.parent)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise OSError(f"cannot write {path}: {error}") from error
    shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Read JSON; its objects are `Content`. Raises ValueError, in one line, if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=partial(Content, path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and header of a safetensors file; the tensors are mapped, not copied, and must not be written to.

    Raises ValueError, in one line, if the file is truncated, damaged in any bit, of another format or not finite.
    """
    try:
        # This compares names, types, shapes and the file's size before anything is allocated.
        with safe_open(path, framework="pt") as file:
            envelope = json.loads((file.metadata() or {}).get("header", "null"), object_hook=partial(Content, path))
            tensors = Content(path, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    written = envelope.get("format") if isinstance(envelope, dict) else None
    if written != FORMAT:
        raise ValueError(f"{path} has no envelope of format {FORMAT}, an older hsae wrote it: run `dvc repro`.")
    header = envelope.get("header")
    if envelope.get("sha256") != _sha256(tensors, header):
        raise damaged(path, "its sha256 is not the one that was written")
    _check_finite(path, tensors)
    return tensors, header


@contextmanager
def understanding(what: str) -> Iterator[None]:
    """Around what builds an object from a file's content: an error of it means that this is another file's content.

    Raises ValueError, in one line.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"{what} is not what its stage writes ({reason}): run `dvc repro`.") from error


def damaged(path: Path, reason: object) -> ValueError:
    """The error that says so."""
    shortened = textwrap.shorten(str(reason), 200)
    return ValueError(f"{path} is damaged ({shortened}); remove it and run `dvc checkout` or `dvc repro`.")


def _sha256(tensors: dict[str, Tensor], header: object) -> str:
    """Of the header and of the tensors' names, types, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def _check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # Not isfinite, whose mask takes seconds for half a gigabyte; both ends are nan if anything is.
        ends = tensor.aminmax() if tensor.is_floating_point() and tensor.numel() else ()
        if not all(end.isfinite() for end in ends):
            raise ValueError(f"{path}: `{name}` holds values that are not finite: what wrote it went wrong.")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary file, then put it in the place of `path`. Raises OSError, which names `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # the one that the user's umask gives: safetensors sets another
            write(temporary)
            temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}") from error


def _sync(path: Path) -> None:
    """Have the system put a file's content, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
