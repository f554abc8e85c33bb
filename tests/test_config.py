from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest
from dvc.utils.serialize import parse_yaml

from hsae import config

PIPELINE = """
vars:
  - coats:
      first: {level: 1}
      second: {level: 2}
  - colors: [red, blue]
stages:
  paint:
    cmd: python -m stages.paint
    deps: [brush]
    params: [seed, scale, paint]
  every:
    foreach: [1, 2]
    do:
      cmd: python -m stages.every
      params: [width, "width${item}", paint.layers]
  coat:
    foreach: ${coats}
    do:
      cmd: python -m stages.coat
      deps: ["${key}/brush"]
      params: ["width${item.level}", "${item.color}"]
  mix:
    matrix: {color: "${colors}", water: [1, 2]}
    cmd: python -m stages.mix
    params: ["${item.color}.w${item.water}"]
  dry:
    cmd: python -m stages.dry
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
  wet: false
  rates: [1, 0.5]
  inner: {n: 1}
"""


class Color(StrEnum):
    red = "red"
    blue = "blue"


@dataclass
class Inner:
    n: int


@dataclass
class Paint:
    color: Color
    layers: int
    gloss: float
    name: str | None
    wet: bool
    rates: list[float]
    inner: Inner

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
    assert config.load(Paint, "paint") == Paint(Color.red, 2, 0.5, None, False, [1.0, 0.5], Inner(1))


def test_top_level_keys_are_those_that_the_schema_names():
    assert config.load(Top) == Top(seed=0, scale=0.5)


@pytest.mark.parametrize("written", ["3e-4", "3.0e-4", "0.0003"])
def test_exponents_are_numbers_with_and_without_a_point(written: str):
    edit("scale: 0.5", f"scale: {written}")
    assert config.load(Top).scale == 3.0e-4


@pytest.mark.parametrize(("written", "value"), [("010", 10), ("0o10", 8), ("0x10", 16), ("1_000", 1000), ("+1", 1)])
def test_numbers_are_those_that_dvc_reads(written: str, value: int):
    edit("seed: 0", f"seed: {written}")
    text = Path("params.yaml").read_text()
    assert config.load(Top).seed == value == parse_yaml(text, "params.yaml")["seed"]


def test_an_integer_may_stand_where_a_number_is_asked_for():
    edit("scale: 0.5", "scale: 2")
    assert config.load(Top).scale == 2.0


@pytest.mark.parametrize(
    ("old", "new", "section", "fragments"),
    [
        (
            "layers: 2",
            "layres: 2",
            "paint",
            ["unknown key `paint.layres`", "allowed: color, layers, gloss, name, wet, rates, inner"],
        ),
        ("  layers: 2\n", "", "paint", ["`paint.layers` is missing"]),
        ("scale: 0.5\n", "", None, ["`scale` is missing"]),
        ("layers: 2", "layers: two", "paint", ["`paint.layers`", "'two'", "Integer"]),
        ("layers: 2", "layers: 2.5", "paint", ["`paint.layers`", "'2.5'", "Integer"]),
        ("layers: 2", "layers: 2.0", "paint", ["`paint.layers`", "'2.0'", "Integer"]),
        ("layers: 2", "layers: true", "paint", ["`paint.layers`", "'True'", "Integer"]),
        ("layers: 2", "layers: '010'", "paint", ["section paint: `layers` must be an integer; not '010'"]),
        ("gloss: 0.5", "gloss: true", "paint", ["`paint.gloss`", "'True'", "Float"]),
        ("gloss: 0.5", "gloss: '0.5'", "paint", ["section paint: `gloss` must be a number; not '0.5'"]),
        ("name: null", "name: 7", "paint", ["section paint: `name` must be a text; not 7"]),
        ("name: null", "name: '${color}'", "paint", ["`name` must be a value, not a reference; not '${color}'"]),
        ("wet: false", "wet: 0", "paint", ["section paint: `wet` must be true or false; not 0"]),
        ("wet: false", "wet: no", "paint", ["section paint: `wet` must be true or false; not 'no'"]),
        ("rates: [1, 0.5]", "rates: [1, true]", "paint", ["`paint.rates[1]`", "'True'", "Float"]),
        ("inner: {n: 1}", "inner: {n: '1'}", "paint", ["section paint: `inner.n` must be an integer; not '1'"]),
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
    with pytest.raises(
        ValueError, match="section `paint` must be a mapping with the keys color, layers, gloss, name, wet"
    ):
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


def test_a_stage_without_parameters_breaks_no_other():
    assert config.listed("dry", "params") == []
    assert config.load(Top).seed == 0


@pytest.mark.parametrize(
    ("stage", "kind", "expected"),
    [
        ("paint", "params", ["seed", "scale", "paint"]),
        ("paint", "deps", ["brush"]),
        ("every/2", "params", ["width", "width2", "paint.layers"]),
        ("coat/second", "deps", ["second/brush"]),
        ("mix/red-2", "params", ["red.w2"]),
    ],
)
def test_a_stage_s_lists_are_those_of_its_item(stage: str, kind: str, expected: list[str]):
    assert config.listed(stage, kind) == expected


@pytest.mark.parametrize("stage", ["varnish", "every/3", "coat/third", "mix/red", "coat/first"])
def test_an_unknown_stage_item_or_template_is_refused(stage: str):
    with pytest.raises(ValueError, match=f"dvc.yaml.* stage `{stage}`"):
        config.listed(stage, "params")


def test_what_a_list_covers_are_its_keys_and_all_below_them():
    params = {"seed": 0, "paint": {"layers": 2, "inner": {"n": 1, "m": 2}}, "painter": 3}
    assert config.covered(["seed", "paint.inner.n", "nothing"], params) == {"seed": 0, "paint.inner.n": 1}
    assert config.covered(["paint"], params) == {"paint.layers": 2, "paint.inner.n": 1, "paint.inner.m": 2}


def test_what_a_list_does_not_cover_is_withheld():
    paint, whole, top = config.load(Paint, "paint"), config.load(Paint, "paint"), config.load(Top)
    config.withhold(paint, "paint", ["paint.layers", "paint.inner.m", "gloss"])
    assert vars(paint) == {"layers": 2, "inner": paint.inner}
    assert vars(paint.inner) == {}
    config.withhold(whole, "paint", ["paint"])
    assert whole == config.load(Paint, "paint")
    config.withhold(top, None, ["seed"])
    assert vars(top) == {"seed": 0}


def test_a_key_is_known_if_any_stage_reads_it_or_a_part_of_it():
    assert config.read_params().keys() == {"seed", "scale", "width", "paint"}


def test_flatten_joins_nested_keys_with_dots():
    nested = {"a": 1, "b": {"c": None, "d": {"e": [1, 2]}}}
    assert config.flatten(nested) == {"a": 1, "b.c": None, "b.d.e": [1, 2]}


@pytest.mark.parametrize("layers", [0, -1])
def test_check_positive_names_the_first_value_that_is_not_above_zero(layers: int):
    paint = Paint(Color.red, 1, 0.0, None, False, [], Inner(1))
    paint.layers = layers
    with pytest.raises(ValueError, match=f"`layers` must be above 0; not {layers}"):
        config.check_positive(paint, ["layers", "gloss"])
