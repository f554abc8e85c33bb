"""Checkpoints on the disk: what is written comes back, what is damaged does not."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hsae import checkpoint
from hsae.checkpoint import NOWHERE, Checkpoints, restore, tensors_of

TENSORS = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3), "c": torch.tensor([True]), "d": torch.zeros(0)}
STATE = {"curve": [{"step": 1, "loss": 1 / 3}], "steps": 2, "best": None}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Of a training, with those of steps 1 and 2."""
    found = Checkpoints(tmp_path).of("phase1")
    for step in (1, 2):
        found.save(step, TENSORS, STATE)
    return found


def files(checkpoints: Checkpoints) -> list[Path]:
    assert checkpoints.folder is not None
    return sorted(checkpoints.folder.iterdir())


def loaded_step(checkpoints: Checkpoints) -> int:
    saved = checkpoints.load()
    assert saved is not None
    return saved.step


def test_what_was_saved_is_loaded_with_a_line_that_says_from_where(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
):
    saved = checkpoints.load()
    assert saved is not None
    assert (saved.step, saved.state) == (2, STATE)
    assert saved.tensors.keys() == TENSORS.keys()
    for name, tensor in saved.tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
    assert capsys.readouterr().out == "phase1: going on from step 2\n"


def test_the_last_two_are_kept_and_nothing_else(checkpoints: Checkpoints):
    for step in (9, 10, 1000):
        checkpoints.save(step, TENSORS, STATE)
    assert [path.name for path in files(checkpoints)] == ["0000000010.safetensors", "0000001000.safetensors"]


def test_trainings_have_places_of_their_own(tmp_path: Path):
    whole = Checkpoints(tmp_path)
    whole.of("phase1").save(1, TENSORS, STATE)
    whole.of("flat_baseline/topk").save(2, TENSORS, STATE)
    assert loaded_step(whole.of("phase1")) == 1
    assert loaded_step(whole.of("flat_baseline/topk")) == 2
    assert whole.of("phase1, sharpening").load() is None


def test_without_a_folder_there_are_none():
    nowhere = NOWHERE.of("phase1")
    assert not nowhere.due()
    nowhere.save(1, TENSORS, STATE)
    assert nowhere.load() is None


def test_one_is_due_at_every_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, every=5.0)
    now = 104.0
    assert not checkpoints.due()
    now = 105.0
    assert checkpoints.due()
    checkpoints.save(1, TENSORS, STATE)
    assert not checkpoints.due()


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


FOREIGN = safetensors.torch.save({"a": torch.zeros(2)}, {"header": '{"kind": "relu"}'})
DAMAGES = {
    "empty": lambda _: b"",
    "torn": lambda content: content[: len(content) // 2],
    "last byte missing": lambda content: content[:-1],
    "longer": lambda content: content + b"0",
    "of zeros": lambda content: bytes(len(content)),
    "a huge header": lambda content: (1 << 62).to_bytes(8, "little") + content[8:],
    "a model": lambda _: FOREIGN,
    "a tensor without a header": lambda _: safetensors.torch.save({"a": torch.zeros(2)}),
    "text": lambda _: b"# a note",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_in_one_line_and_removed_and_the_one_before_is_used(
    damage: str, checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
):
    last = files(checkpoints)[-1]
    last.write_bytes(DAMAGES[damage](last.read_bytes()))
    assert loaded_step(checkpoints) == 1
    refusal, going_on = capsys.readouterr().out.splitlines()
    assert refusal == f"phase1: checkpoint {last} is damaged: it is not used and removed"
    assert going_on == "phase1: going on from step 1"
    assert not last.exists()


def test_no_flipped_bit_goes_unnoticed(checkpoints: Checkpoints):
    last = files(checkpoints)[-1]
    content = last.read_bytes()
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(len(content), (100,), generator=generator).tolist()
    for at in [*positions, 8, content.index(b"loss"), content.index(b"3333333333333333"), len(content) - 1]:
        if content[at : at + 1].isspace():  # JSON may be padded with anything
            continue
        last.write_bytes(flip(content, at))
        assert loaded_step(checkpoints) == 1, at
    last.write_bytes(content)
    assert loaded_step(checkpoints) == 2


def test_a_file_of_a_terabyte_is_refused_unread(checkpoints: Checkpoints):
    with files(checkpoints)[-1].open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    assert loaded_step(checkpoints) == 1


def test_if_all_are_damaged_training_starts_anew(checkpoints: Checkpoints):
    for path in files(checkpoints):
        path.write_bytes(b"")
    assert checkpoints.load() is None
    assert files(checkpoints) == []


def test_a_save_that_is_cut_short_leaves_the_last_one_as_it_is(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
):
    def cut(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(3, TENSORS, STATE)
    assert [path.name for path in files(checkpoints)][:2] == ["0000000001.safetensors", "0000000002.safetensors"]
    monkeypatch.undo()
    assert loaded_step(checkpoints) == 2
    checkpoints.save(3, TENSORS, STATE)
    assert [path.name for path in files(checkpoints)] == ["0000000002.safetensors", "0000000003.safetensors"]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_older_ones_go(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
):
    events: list[str] = []
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink
    monkeypatch.setattr(
        os, "fsync", lambda fd: events.append("sync " + os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd)
    )
    monkeypatch.setattr(Path, "replace", lambda a, b: events.append(f"rename {b}") or replace(a, b))

    def remove(path: Path, missing_ok: bool = False) -> None:
        if path.exists():  # a temporary file that has got its name is not there any more
            events.append(f"remove {path}")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", remove)
    folder = files(checkpoints)[0].parent
    checkpoints.save(3, TENSORS, STATE)
    assert events == [
        f"sync {folder}/.0000000003.safetensors.{os.getpid()}.tmp",
        f"rename {folder}/0000000003.safetensors",
        f"sync {folder}",
        f"remove {folder}/0000000001.safetensors",
    ]


def test_model_optimizer_and_random_numbers_go_on_as_they_would_have():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    generator = torch.Generator().manual_seed(1)

    def step() -> list[torch.Tensor]:
        optimizer.zero_grad()
        model(torch.rand(4, 3, generator=generator)).square().sum().backward()
        optimizer.step()
        return [*(p.detach().clone() for p in model.parameters()), torch.rand(2)]

    step()
    taken = {name: tensor.clone() for name, tensor in tensors_of(model, optimizer, {"order": generator}).items()}
    expected = [step(), step()]
    restore({name: tensor.clone() for name, tensor in taken.items()}, model, optimizer, {"order": generator})
    for before, after in zip(expected, [step(), step()], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
