"""Checkpoints of a training: from its last one, a run that was killed goes on to the bytes that it would have given."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hsae.files import read_tensors, understanding, write_tensors

EVERY = 20.0  # seconds from one to the next: saving takes some hundredths of one
KEPT = 2


class Saved(NamedTuple):
    """What a checkpoint holds."""

    step: int
    """Number of steps done."""
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """All else, as JSON."""


class Checkpoints:
    """The checkpoints of the training called `label`, in a folder that no other process writes; the last two are kept.

    Without a folder there are none: nothing is due, saved or loaded.
    """

    def __init__(self, folder: Path | None = None, label: str = "", every: float = EVERY):
        self.folder, self.label, self.every = folder, label, every
        self._due = time.monotonic() + every

    def of(self, label: str) -> "Checkpoints":
        """Those of one of several trainings, in a folder below this one."""
        return Checkpoints(self.folder and self.folder / label.replace("/", " "), label, self.every)

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.folder is not None and time.monotonic() >= self._due

    def save(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Write the state after `step` steps; once this returns, it outlives a loss of power."""
        if self.folder is None:
            return
        write_tensors(self._file(step), dict(tensors), {"step": step, "state": state})
        for old in self._files()[:-KEPT]:
            old.unlink()
        self._due = time.monotonic() + self.every

    def load(self) -> Saved | None:
        """The last good one, if there is one, after a line that says so; damaged ones are named and removed."""
        for path in reversed(self._files()):
            try:
                saved = _read(path)
            except ValueError:
                print(f"{self.label}: checkpoint {path} is damaged: it is not used and removed", flush=True)
                path.unlink()
            else:
                print(f"{self.label}: going on from step {saved.step}", flush=True)
                return saved
        return None

    def of_step(self, step: int) -> Saved:
        """The one of a step. Raises ValueError if it is damaged, and FileNotFoundError if there is none."""
        return _read(self._file(step))

    def _file(self, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{step:010d}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors")) if self.folder else []


NOWHERE = Checkpoints()


def tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, generators: dict[str, torch.Generator]
) -> dict[str, Tensor]:
    """All tensors that training changes: parameters and buffers, the optimizer's, and the random generators' states."""
    found = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{name}": tensor for name, tensor in values.items()}
    found |= {f"generator.{name}": generator.get_state() for name, generator in generators.items()}
    found["random"] = torch.get_rng_state()
    device = next(model.parameters()).device
    return found | ({"random.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generators: dict[str, torch.Generator],
) -> None:
    """Put everything that `tensors_of` took back to where it was."""
    model.load_state_dict(named(tensors, "model"))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in named(tensors, "optimizer").items():
        i, name = key.split(".")
        state.setdefault(int(i), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for name, generator in generators.items():
        generator.set_state(tensors[f"generator.{name}"])
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], next(model.parameters()).device)


def named(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names start with `name` and a dot, without these."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _read(path: Path) -> Saved:
    """Raises ValueError for what is no whole checkpoint."""
    tensors, header = read_tensors(path)
    with understanding(str(path)):
        # Copied out of the mapped file, which must not be written to.
        return Saved(header["step"], {name: tensor.clone() for name, tensor in tensors.items()}, header["state"])
