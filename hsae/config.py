"""params.yaml -> typed, checked values. The schemas stand beside the code that they configure."""

import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from enum import Enum
from functools import cache, reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml
from ruamel.yaml import YAML

T = TypeVar("T")

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")
TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "a text", type(None): "null"}


def load(schema: type[T], section: str | None = None, params: dict[str, Any] | None = None) -> T:
    """Read one section of params.yaml, or, without `section`, the top-level keys that `schema` names.

    The schema is a dataclass without defaults: every value lives in params.yaml. Its `__post_init__` checks the ranges.
    `params` are the file's contents if they were read before. Raises ValueError, in one line that names the key, for an
    unknown or missing key, a wrong type or a bad value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    params = read_params() if params is None else params
    wanted = [field.name for field in fields(schema)]  # pyright: ignore[reportArgumentType]
    if section is None:
        values = {key: params[key] for key in wanted if key in params}
    else:
        values = params.get(section)
    prefix = f"{section}." if section else ""
    if not isinstance(values, dict):
        raise ValueError(f"{PARAMS}: section `{section}` must be a mapping with the keys {', '.join(wanted)}.")
    for key in values:
        if key not in wanted:
            raise ValueError(f"{PARAMS}: unknown key `{prefix}{_visible(key)}`; allowed: {', '.join(wanted)}.")
    for key in wanted:
        if key not in values:
            raise ValueError(f"{PARAMS}: `{prefix}{key}` is missing.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        converted: dict[str, Any] = OmegaConf.to_container(merged)  # pyright: ignore[reportAssignmentType]
        _check_types(values, converted)
        loaded: T = OmegaConf.to_object(merged)  # pyright: ignore[reportAssignmentType]
        _check_numbers(converted)
        return loaded
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{PARAMS}: `{prefix}{error.full_key or ''}`: {reason}.") from error
    except (ValueError, TypeError, ArithmeticError) as error:  # a list within a list of numbers, a float of 400 digits
        reason = str(error).splitlines()[0]
        raise ValueError(f"{PARAMS}: {prefix and f'section {section}: '}{reason}") from error


def read_params() -> dict[str, Any]:
    """All of params.yaml, after checking that every top-level key is one that a stage of dvc.yaml uses.

    Raises ValueError if the file cannot be parsed or holds a key that no stage reads (most likely a misspelt one).
    """
    params = parse_params()
    stages = _pipeline()["stages"].values()
    used = (entry for stage in stages for entry in stage.get("do", stage).get("params", []))
    known = {str(entry).split(".")[0] for entry in used if "$" not in entry}
    unknown = sorted(params.keys() - known)
    if unknown:
        raise ValueError(f"{PARAMS}: unknown key `{_visible(unknown[0])}`; allowed: {', '.join(sorted(known))}.")
    return params


def parse_params() -> dict[str, Any]:
    """All of params.yaml as DVC reads it, by YAML 1.2: `010` is 10, and 3e-4 is a number."""
    return _read_yaml(PARAMS, _exact)


def listed(stage: str, kind: str) -> list[str]:
    """What dvc.yaml lists as `deps` or `params` of a stage, with the templates of its own item filled in.

    `stage` is "phase1", or "flat_baseline/topk" for the item of a `foreach` or `matrix`. Raises ValueError for a stage
    or an item that dvc.yaml does not have.
    """
    pipeline, (name, _, part) = _pipeline(), stage.partition("/")
    if name not in pipeline["stages"]:
        raise ValueError(f"{PIPELINE} has no stage `{name}`.")
    written = pipeline["stages"][name]
    entries = [str(entry) for entry in written.get("do", written).get(kind, [])]
    if not any("${" in entry for entry in entries):
        return entries
    known = parse_params() | {key: value for own in pipeline.get("vars", []) for key, value in own.items()}
    try:
        known |= _item(written, part, known) if part else {}
        return [re.sub(r"\$\{(.+?)\}", lambda name: str(_lookup(name[1], known)), entry) for entry in entries]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{PIPELINE}: stage `{stage}` has a template that cannot be filled in ({error}).") from error


def covered(entries: Iterable[str], params: dict[str, Any]) -> dict[str, Any]:
    """The values in `params` that a stage's list of them covers, by dotted key."""
    flat = flatten(params)
    return {key: value for key, value in flat.items() if any(key == e or key.startswith(f"{e}.") for e in entries)}


def withhold(value: object, section: str | None, entries: Iterable[str]) -> None:
    """Take away the attributes of a loaded schema that a stage's list does not cover: nothing can use them then."""
    entries = list(entries)
    for field in fields(value):  # pyright: ignore[reportArgumentType]
        key = f"{section}.{field.name}" if section else field.name
        if any(entry.startswith(f"{key}.") for entry in entries):
            withhold(getattr(value, field.name), key, entries)
        elif not any(key == entry or key.startswith(f"{entry}.") for entry in entries):
            delattr(value, field.name)


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check(name: str, value: object, allowed: str, ok: bool) -> None:
    """Raise the ValueError with which every schema refuses a value: its name, what is allowed, and what it was."""
    if not ok:
        raise ValueError(f"`{name}` must be {allowed}; not {value!r}.")


def check_positive(config: object, names: Iterable[str]) -> None:
    """Refuse the first of the named attributes that is not above zero."""
    for name in names:
        value = getattr(config, name)
        check(name, value, "above 0", value > 0)
        check(name, value, "finite", value < math.inf)


def _check_numbers(values: dict[str, Any]) -> None:
    """What holds for every number: it is finite, an integer has 64 bits, and a seed suits every generator."""
    for name, value in flatten(values).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float):
                check(name, number, "finite", math.isfinite(number))
            elif isinstance(number, int):
                check(name, number, "within 64 bits", abs(number) < 2**63)
                is_seed = name.rpartition(".")[2] == "seed"
                check(name, number, "in 0..2^32 - 1", 0 <= number < 2**32 or not is_seed)


def _check_types(values: Any, converted: Any, name: str = "") -> None:
    """Refuse a value that OmegaConf had to convert to its schema's type.

    DVC compares values by Python's ==, to which true, 1 and 1.0 are one: a change between them would go unnoticed.
    """
    if isinstance(values, dict) and isinstance(converted, dict):
        for key, value in values.items():
            _check_types(value, converted[key], f"{name}.{key}" if name else str(key))
    elif isinstance(values, list) and isinstance(converted, list):
        for value, own in zip(values, converted, strict=True):
            _check_types(value, own, name)
    elif isinstance(converted, Enum):
        check(name, values, f"one of {', '.join(type(converted).__members__)}", isinstance(values, str))
    else:
        is_number = type(converted) is float and type(values) is int
        check(name, values, TYPES.get(type(converted), "of its type"), is_number or type(values) is type(converted))
        check(name, values, "a value, not a reference", not isinstance(values, str) or "${" not in values)


def _pipeline() -> dict[str, Any]:
    return _read_yaml(PIPELINE, _fast)


def _item(stage: dict[str, Any], part: str, known: dict[str, Any]) -> dict[str, Any]:
    """What templates of one item of a stage may name: `item`, and `key` where there is one."""

    def items(of: Any) -> Any:
        return _lookup(of[2:-1], known) if isinstance(of, str) else of

    if "matrix" in stage:
        axes = {axis: items(of) for axis, of in stage["matrix"].items()}
        named = {"-".join(map(str, values)): values for values in itertools.product(*axes.values())}
        return {"item": dict(zip(axes, named[part], strict=True))}
    each = items(stage["foreach"])
    return {"key": part, "item": each[part]} if isinstance(each, dict) else {"item": {str(i): i for i in each}[part]}


def _lookup(name: str, known: dict[str, Any]) -> Any:
    return reduce(lambda values, key: values[key], name.split("."), known)


def _exact(text: str) -> Any:
    """What YAML 1.2 says. A function of the module, by which `_mapping` knows what it has read before."""
    return YAML(typ="safe").load(text)


def _fast(text: str) -> Any:
    """What YAML says where no number matters, by libyaml: dvc.yaml, in a tenth of the time, in every stage."""
    return yaml.load(text, yaml.CSafeLoader)


def _read_yaml(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        return _mapping(path, path.read_text(encoding="utf-8"), parse)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; run from the project's root.") from error


@cache
def _mapping(path: Path, text: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The mapping that a file's text stands for: a stage asks for it many times, and it takes a tenth of a second."""
    try:
        content = parse(text)
    except Exception as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a mapping of keys to values.")
    return {str(key): value for key, value in content.items()}


def _visible(key: object) -> str:
    """A key as it is, but for line breaks and the like."""
    return repr(str(key))[1:-1]
