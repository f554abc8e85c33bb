"""Anything at all, as input: what reads it returns something valid or raises ValueError with one line."""

import copy
import dataclasses
import importlib
import json
import math
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import hsae
from hsae import config, files
from hsae.data import CharTokenizer
from hsae.study import responses, trials
from tests.project import ROOT

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")

PARAMS: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(ROOT / "params.yaml"))  # pyright: ignore
numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([2**31, -(2**31), 2**63, -(2**70), 10**400]), st.floats(), st.booleans()
)
words = st.one_of(st.text(max_size=8), st.sampled_from(["${seed}", "${", "???", "inf", "nan", "1e3", "${oc.env:HOME}"]))
values = st.recursive(
    st.one_of(st.none(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=4,
)


def stage_schemas() -> list[tuple[type, str | None]]:
    """What stages ask for: `stage.params(Schema)` and `stage.params(Schema, "section")`."""
    calls = set()
    for file in (ROOT / "stages").glob("*.py"):
        calls |= set(re.findall(r"stage\.params\((\w+)(?:, \"(\w+)\")?\)", file.read_text()))
    classes: dict[str, type] = {}
    for module in pkgutil.walk_packages(hsae.__path__, "hsae."):
        classes |= vars(importlib.import_module(module.name))
    return sorted(
        ((classes[name], section or None) for name, section in calls), key=lambda s: (s[0].__name__, str(s[1]))
    )


def accept_or_refuse(read: Callable[[], Any]) -> Any:
    """What `read` returns; None if it refuses."""
    try:
        return read()
    except ValueError as refusal:
        line = str(refusal)
    assert len(line.splitlines()) == 1, line
    return None


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list | tuple) else [value]


def spoil(draw: st.DataObject, content: dict[str, Any]) -> None:
    """Change, remove or add a key, at the top or in what is nested."""
    key = draw.draw(st.sampled_from(sorted(content)))
    if isinstance(content[key], dict) and draw.draw(st.booleans()):
        spoil(draw, content[key])
    else:
        match draw.draw(st.sampled_from(["change", "change", "change", "remove", "add"])):
            case "change":
                content[key] = draw.draw(values)
            case "remove":
                del content[key]
            case "add":
                content[draw.draw(words)] = draw.draw(values)


@pytest.mark.parametrize(("schema", "section"), stage_schemas(), ids=lambda part: getattr(part, "__name__", str(part)))
@given(draw=st.data())
@settings(max_examples=20)
def test_parameters_are_valid_or_refused(schema: type, section: str | None, draw: st.DataObject):
    params = copy.deepcopy(PARAMS)
    if section is None:
        own = {field.name: params[field.name] for field in dataclasses.fields(schema)}
        spoil(draw, own)
        params = {key: value for key, value in params.items() if key not in vars_of(schema)} | own
    elif draw.draw(st.integers(0, 9)):
        spoil(draw, params[section])
    else:
        params[section] = draw.draw(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "read_params", lambda: params)
        loaded = accept_or_refuse(lambda: config.load(schema, section))
    if loaded is not None:
        assert isinstance(loaded, schema)
        for leaf in leaves(dataclasses.asdict(loaded)):
            assert not isinstance(leaf, float) or math.isfinite(leaf)
            assert not isinstance(leaf, int) or abs(leaf) < 2**63


def vars_of(schema: type) -> set[str]:
    return {field.name for field in dataclasses.fields(schema)}


@given(text=st.one_of(st.text(max_size=60), st.text("{}[]:,-&*!|>'\"%@`?#\n a1.", max_size=40)))
@example("a: " + "[" * 3000)
@example("a: &x [*x]")
@example("? [a, b]\n: 1")
@example("1: 2")
@example("a: 2026-02-30")
@example("!!python/object/apply:os.system ['true']")
@example("a: ${b")
@example("null")
@example("a: \x00")
def test_params_yaml_is_a_mapping_or_refused(text: str):
    found = accept_or_refuse(lambda: config._mapping(config.PARAMS, text, config._exact))
    assert found is None or isinstance(found, dict)
    if found is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(config, "_read_yaml", lambda path, _: found if path == config.PARAMS else {"stages": {}})
            accept_or_refuse(config.read_params)


@given(content=st.binary(max_size=40))
@example(content=b"[" * 100_000)
@example(content=b"1" * 5000)
@example(content=b'{"a": NaN}')
@example(content=b"\xef\xbb\xbf{}")
@example(content=b'"\\ud800"')
def test_json_is_read_or_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    accept_or_refuse(lambda: files.read_json(path))


DTYPES = ["F32", "F64", "BF16", "F8_E4M3", "BOOL", "I64", "U64", "F4", "C64", "", 3, None]
sizes = st.one_of(st.integers(-1, 3), st.sampled_from([2**31, 2**63, 10**30]))
entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(DTYPES),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(sizes, max_size=3),
    },
)
envelopes = st.one_of(values.map(json.dumps), st.text(max_size=20), st.just('{"format": 1}'), st.just("[" * 9000))
headers = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]),
    st.one_of(entry, values, st.fixed_dictionaries({"header": envelopes})),
    max_size=3,
)


@given(header=st.one_of(headers.map(json.dumps), st.text(max_size=30)), body=st.binary(max_size=64))
@settings(max_examples=150)
def test_a_safetensors_header_is_refused(header: str, body: bytes, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    content = header.encode("utf-8", "replace")
    path.write_bytes(len(content).to_bytes(8, "little") + content + body)
    assert accept_or_refuse(lambda: files.read_tensors(path)) is None


@given(content=st.binary(max_size=64))
@example(content=(2**63).to_bytes(8, "little") + b"{}")
def test_bytes_are_no_safetensors_file(content: bytes, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert accept_or_refuse(lambda: files.read_tensors(path)) is None


@given(header=values.filter(lambda value: "NaN" not in json.dumps(value)), n=st.integers(0, 3))
def test_any_header_comes_back(header: object, n: int, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"é": torch.arange(n), "": torch.ones(n, 2)}, header)
    tensors, found = files.read_tensors(path)
    assert found == header
    assert torch.equal(tensors["é"], torch.arange(n))


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example("")
@example("a")
@example("\U0001f600\U0010ffff\x00")
@example("".join(map(chr, range(300))))
def test_text_of_any_characters_comes_back_from_its_tokens(text: str):
    tokenizer = CharTokenizer.fit(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.n_vocab == len(set(text))


@given(known=st.text(), text=st.text())
@example(known="", text="a")
@example(known="a", text="\n")
@example(known="a", text="\ud800")
def test_text_is_encoded_or_its_unknown_character_refused(known: str, text: str):
    tokens = accept_or_refuse(lambda: CharTokenizer.fit(known).encode(text))
    assert (tokens is not None) == (
        set(text) <= set(known) and not any(0xD800 <= ord(c) < 0xE000 for c in known + text)
    )


SNIPPET = trials.Snippet("some text", (0, 3))
STUDY = trials.Trials(
    "kjv",
    0,
    trials.Session(1, 0, 1, 0, 0),
    (
        trials.Trial("a", trials.Kind.intruder, trials.Role.main, "level1", 3, 0.1, 2, ((SNIPPET,),) * 5, 4),
        trials.Trial("b", trials.Kind.clarity, trials.Role.main, "level1", 3, 0.1, None, ((SNIPPET,),), None),
    ),
)
ANSWERS = responses.Responses(
    "0" * 64,
    (
        responses.Response("r", 1, "a", 4, None, None, False, 100),
        responses.Response("r", 2, "b", None, 5, "vowels", False, 200),
    ),
)


@given(text=st.one_of(st.text(max_size=40), values.map(json.dumps)))
@example("[" * 100_000)
@example("1" * 5000)
def test_any_text_is_no_study_and_no_answers(text: str):
    assert accept_or_refuse(lambda: trials.loads(text)) is None
    found = accept_or_refuse(lambda: responses.loads(text))
    assert found is None or not found.responses


@given(draw=st.data())
@settings(max_examples=120)
def test_mutated_trials_are_valid_or_refused(draw: st.DataObject):
    content = json.loads(trials.dumps(STUDY))
    row = draw.draw(st.sampled_from([content, *content["trials"], content["trials"][0]["options"][0][0]]))
    spoil(draw, row)
    found = accept_or_refuse(lambda: trials.loads(json.dumps(content)))
    if found is not None:
        assert trials.loads(trials.dumps(found)) == found


@given(draw=st.data())
@settings(max_examples=120)
def test_mutated_answers_are_valid_or_refused(draw: st.DataObject):
    rows = [json.loads(line) for line in responses.dumps(ANSWERS).splitlines()]
    spoil(draw, draw.draw(st.sampled_from(rows)))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    found = accept_or_refuse(lambda: responses.loads(text))
    if found is not None:
        assert responses.loads(responses.dumps(found)) == found
