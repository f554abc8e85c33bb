"""params.yaml -> typed, checked values. The schemas stand beside the code that they configure."""

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")


def load(schema: type[T], section: str | None = None) -> T:
    """Read one section of params.yaml, or, without `section`, the top-level keys that `schema` names.

    The schema is a dataclass without defaults: every value lives in params.yaml. Its `__post_init__` checks the ranges.
    Raises ValueError, in one line that names the key, for an unknown or missing key, a wrong type or a bad value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    params = read_params()
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
        loaded: T = OmegaConf.to_object(merged)  # pyright: ignore[reportAssignmentType]
        _check_numbers(OmegaConf.to_container(merged))  # pyright: ignore[reportArgumentType]
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
    params = _read_yaml(PARAMS, _with_numbers)
    used = (
        entry for stage in _read_yaml(PIPELINE, _fast)["stages"].values() for entry in stage.get("do", stage)["params"]
    )
    known = {str(entry).split(".")[0] for entry in used if "$" not in entry}
    unknown = sorted(params.keys() - known)
    if unknown:
        raise ValueError(f"{PARAMS}: unknown key `{_visible(unknown[0])}`; allowed: {', '.join(sorted(known))}.")
    return params


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


def _with_numbers(text: str) -> Any:
    """What YAML says, where 3e-4 is a number: PyYAML would read a string."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.create(text), resolve=False)


def _fast(text: str) -> Any:
    """The same where no number matters, by libyaml: in a tenth of the time, that dvc.yaml takes in every stage."""
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
