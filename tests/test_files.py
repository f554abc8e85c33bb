import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from hsae import files

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.int32)}
HEADER = {"variant": "topk", "k": 3, "nested": {"x": [1, None]}}


class WriteError(Exception):
    pass


class BrokenFrame(pd.DataFrame):
    """A frame whose writing stops midway."""

    def to_csv(self, path: Path, **_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        path.write_text("half of")
        raise WriteError


def test_tensors_and_header_come_back_as_they_were_written(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "model.safetensors"
    files.write_tensors(path, TENSORS, HEADER)
    tensors, header = files.read_tensors(path)
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_a_transposed_tensor_is_written_as_what_it_shows(tmp_path: Path):
    files.write_tensors(tmp_path / "t", {"w": TENSORS["b"].T})
    assert torch.equal(files.read_tensors(tmp_path / "t")[0]["w"], TENSORS["b"].T)


def test_writing_the_same_tensors_twice_gives_the_same_bytes(tmp_path: Path):
    files.write_tensors(tmp_path / "one", TENSORS, HEADER)
    files.write_tensors(tmp_path / "two", TENSORS, HEADER)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_what_is_written_may_be_read_by_whom_the_umask_lets(tmp_path: Path, mask: int, mode: int):
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "text", "a")
        files.write_tensors(tmp_path / "tensors", TENSORS, HEADER)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("text", "tensors")] == [mode, mode]


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_tensor_file_is_refused_in_one_line(tmp_path: Path, keep: int):
    path = tmp_path / "model.safetensors"
    files.write_tensors(path, TENSORS, HEADER)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged") as refusal:
        files.read_tensors(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("position", [0, 3, 7, 8])
def test_a_bit_flipped_in_the_frame_of_a_tensor_file_is_refused_in_one_line(tmp_path: Path, position: int):
    path = tmp_path / "model.safetensors"
    files.write_tensors(path, TENSORS, HEADER)
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged") as refusal:
        files.read_tensors(path)
    assert "\n" not in str(refusal.value)


def test_a_header_that_is_no_json_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    files.write_tensors(path, TENSORS, HEADER)
    # The header is JSON inside the file's own JSON: here only the inner one is broken.
    path.write_bytes(path.read_bytes().replace(rb"\"k\": 3", rb"\"k\"; 3"))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged") as refusal:
        files.read_tensors(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_numbers_that_json_does_not_have_and_leaves_the_old_file(tmp_path: Path, bad: float):
    path = tmp_path / "metrics.json"
    files.write_json(path, {"fvu": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"fvu": [bad]})
    assert files.read_json(path) == {"fvu": 0.5}


def test_json_comes_back_and_keeps_its_characters(tmp_path: Path):
    content = {"alphabet": "\n —é", "n": 3, "x": None}
    files.write_json(tmp_path / "a.json", content)
    assert files.read_json(tmp_path / "a.json") == content
    assert "—é" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe", b""])
def test_damaged_json_is_refused_in_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is damaged") as refusal:
        files.read_json(tmp_path / "a.json")
    assert "\n" not in str(refusal.value)


def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "curve.csv"
    files.write_csv(path, pd.DataFrame({"a": [1]}))
    with pytest.raises(WriteError):
        files.write_csv(path, BrokenFrame({"a": [2]}))
    assert path.read_text() == "a\n1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_successful_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path):
    for text in ("old", "new é"):
        files.write_text(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new é"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_a_write_does_not_reach_through_a_link_into_a_cache(tmp_path: Path):
    path, cached = tmp_path / "a.txt", tmp_path / "cache"
    files.write_text(path, "old")
    cached.hardlink_to(path)
    files.write_text(path, "new")
    assert cached.read_text() == "old"


def test_csv_has_no_index_and_six_significant_digits(tmp_path: Path):
    files.write_csv(tmp_path / "a.csv", pd.DataFrame({"step": [1, 2], "loss": [1 / 3, 12345.678]}))
    assert (tmp_path / "a.csv").read_text() == "step,loss\n1,0.333333\n2,12345.7\n"


def test_a_figure_is_written_as_png(tmp_path: Path):
    files.write_figure(tmp_path / "a.png", Figure(figsize=(1, 1)))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_takes_the_place_of_another_or_of_none(tmp_path: Path):
    for content in ("first", "second"):
        made = tmp_path / "elsewhere"
        made.mkdir()
        (made / content).write_text(content)
        files.replace_folder(made, tmp_path / "data/train")
        assert [path.name for path in (tmp_path / "data").rglob("*")] == ["train", content]
        assert not made.exists()


def test_a_folder_that_cannot_be_put_in_its_place_is_named_and_the_old_one_stays(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/old").touch()
    with pytest.raises(OSError, match=r"cannot write .*/train: .*No such file"):
        files.replace_folder(tmp_path / "nowhere", tmp_path / "train")
    assert [path.name for path in tmp_path.rglob("*")] == ["train", "old"]
