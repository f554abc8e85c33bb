from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

from hsae import config

PIPELINE = """
stages:
  paint:
    cmd: python -m stages.paint
    params: [seed, scale, paint]
  every:
    foreach: [1, 2]
    do:
      cmd: python -m stages.every
      params: [width, "width${item}", paint.layers]
"""

GOOD = """
seed: 0
scale: 0.5
width: 3
paint:
  color: red
  layers: 2
  gloss: 0.5
  name: null
"""


class Color(StrEnum):
    red = "red"
    blue = "blue"


@dataclass
class Paint:
    color: Color
    layers: int
    gloss: float
    name: str | None

    def __post_init__(self) -> None:
        config.check_positive(self, ["layers"])
        config.check("gloss", self.gloss, "in [0, 1]", 0 <= self.gloss <= 1)


@dataclass
class Top:
    seed: int
    scale: float

    def __post_init__(self) -> None:
        config.check_positive(self, ["scale"])


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(GOOD)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)


def edit(old: str, new: str) -> None:
    assert old in GOOD
    Path("params.yaml").write_text(GOOD.replace(old, new))


def test_a_section_becomes_the_typed_values_of_its_schema():
    assert config.load(Paint, "paint") == Paint(Color.red, 2, 0.5, None)


def test_top_level_keys_are_those_that_the_schema_names():
    assert config.load(Top) == Top(seed=0, scale=0.5)


@pytest.mark.parametrize("written", ["3e-4", "3.0e-4", "0.0003"])
def test_exponents_are_numbers_with_and_without_a_point(written: str):
    edit("scale: 0.5", f"scale: {written}")
    assert config.load(Top).scale == 3.0e-4


@pytest.mark.parametrize(
    ("old", "new", "section", "fragments"),
    [
        ("layers: 2", "layres: 2", "paint", ["unknown key `paint.layres`", "allowed: color, layers, gloss, name"]),
        ("  layers: 2\n", "", "paint", ["`paint.layers` is missing"]),
        ("scale: 0.5\n", "", None, ["`scale` is missing"]),
        ("layers: 2", "layers: two", "paint", ["`paint.layers`", "'two'", "Integer"]),
        ("layers: 2", "layers: 2.5", "paint", ["`paint.layers`", "'2.5'", "Integer"]),
        ("layers: 2", "layers: null", "paint", ["`paint.layers`", "None"]),
        ("layers: 2", "layers: [2]", "paint", ["`paint.layers`", "[2]"]),
        ("scale: 0.5", "scale: half", None, ["`scale`", "'half'", "Float"]),
        ("color: red", "color: green", "paint", ["`paint.color`", "'green'", "red", "blue"]),
        ("layers: 2", "layers: 0", "paint", ["section paint", "`layers` must be above 0; not 0."]),
        ("gloss: 0.5", "gloss: .nan", "paint", ["`gloss` must be in [0, 1]; not nan."]),
        ("scale: 0.5", "scale: -1", None, ["`scale` must be above 0; not -1.0."]),
        ("seed: 0", "sede: 0", None, ["unknown key `sede`", "allowed: paint, scale, seed, width"]),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_the_key_and_what_is_allowed(
    old: str, new: str, section: str | None, fragments: list[str]
):
    edit(old, new)
    with pytest.raises(ValueError, match=r"^params\.yaml: ") as refusal:
        config.load(Paint if section else Top, section)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize("value", ["5", "null", "[red, 2]"])
def test_a_section_that_is_not_a_mapping_is_refused_with_its_keys(value: str):
    head = GOOD.split("paint:")[0]
    Path("params.yaml").write_text(f"{head}paint: {value}\n")
    with pytest.raises(ValueError, match="section `paint` must be a mapping with the keys color, layers, gloss, name"):
        config.load(Paint, "paint")


def test_a_section_that_is_absent_is_refused_with_its_keys():
    Path("params.yaml").write_text(GOOD.split("paint:")[0])
    with pytest.raises(ValueError, match="section `paint` must be a mapping"):
        config.load(Paint, "paint")


@pytest.mark.parametrize(
    ("content", "expected"),
    [("a: [1\nb: }", "params.yaml is not valid YAML"), ("- a\n- b\n", "params.yaml must be a mapping")],
)
def test_a_file_that_is_no_yaml_mapping_is_refused_in_one_line(content: str, expected: str):
    Path("params.yaml").write_text(content)
    with pytest.raises(ValueError, match=expected) as refusal:
        config.load(Top)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_a_missing_file_is_named(name: str):
    Path(name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        config.load(Top)


def test_a_key_is_known_if_any_stage_reads_it_or_a_part_of_it():
    assert config.read_params().keys() == {"seed", "scale", "width", "paint"}


def test_flatten_joins_nested_keys_with_dots():
    nested = {"a": 1, "b": {"c": None, "d": {"e": [1, 2]}}}
    assert config.flatten(nested) == {"a": 1, "b.c": None, "b.d.e": [1, 2]}


@pytest.mark.parametrize("layers", [0, -1])
def test_check_positive_names_the_first_value_that_is_not_above_zero(layers: int):
    paint = Paint(Color.red, 1, 0.0, None)
    paint.layers = layers
    with pytest.raises(ValueError, match=f"`layers` must be above 0; not {layers}"):
        config.check_positive(paint, ["layers", "gloss"])
