"""Reading and writing of the pipeline's files: JSON, CSV, text, PNG and safetensors; never pickle.

Every write goes to a temporary file that is renamed once it is complete, so no file is ever half-written.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

if TYPE_CHECKING:  # importing these costs a stage that makes no plots half a second
    import pandas as pd
    from matplotlib.figure import Figure


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
    """Write tensors as safetensors, with `header` (anything JSON can hold) in its metadata."""
    # One metadata key: safetensors writes several in an order that differs from run to run.
    metadata = {"header": json.dumps(header)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write(path, lambda temporary: safetensors.torch.save_file(contiguous, temporary, metadata))


def read_json(path: Path) -> Any:
    """Read JSON. Raises ValueError, in one line, if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run `dvc checkout` or `dvc repro`.") from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and header of a safetensors file; the tensors are mapped, not copied, and must not be written to.

    Raises ValueError, in one line, if the file is truncated or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("header", "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (not a mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run `dvc checkout` or `dvc repro`.") from None


def _write(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
