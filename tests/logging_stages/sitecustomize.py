"""Logs what stages seed their generators with, what streams gave, and which parameters are used.

Python imports this at its start where PYTHONPATH names this folder. Where LOG_OF_STAGES names a folder, every seeder is
wrapped as soon as its module is imported, in stages and in the processes that they start: each writes a file of its own
there, which tests/stages_log.py reads.
"""

import hashlib
import importlib.abc
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

PROJECT = Path.cwd()
OWN = tuple(f"{PROJECT / folder}{os.sep}" for folder in ("hsae", "stages"))
STREAMS = str(PROJECT / "hsae" / "streams.py")
PYTHON = os.path.dirname(os.__file__)  # its own library, in which packages have a folder
SITE = f"{os.sep}site-packages{os.sep}"
GENERATORS = ("bit_generator", "random_raw", "random_sample", "generate_state")  # attributes of NumPy's objects
written: set[str] = set()


def write(entry: dict[str, Any]) -> None:
    """Append a line to this process's file, unless it has it."""
    line = json.dumps(entry | {"stage": os.environ["LOGGED_STAGE"], "process": os.getpid()})
    if line not in written:
        written.add(line)
        with open(Path(os.environ["LOG_OF_STAGES"], f"{os.getpid()}.jsonl"), "a") as file:
            file.write(line + "\n")


def seeded(seeder: str, seed: object) -> None:
    """Log a call of a seeder, if the project's code made it, itself or through a library; nothing: an unseeded one.

    Not what a library does for itself: while it is imported, or, in Python's own, for the names of temporary files.
    """
    frame, depth = sys._getframe(1), 0
    while frame and (not frame.f_code.co_filename.startswith(OWN) or frame.f_code.co_filename == STREAMS):
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            return
        if file not in (__file__, random.__file__):
            if depth == 0 and seed is None and os.path.dirname(file).startswith(PYTHON) and SITE not in file:
                return
            depth += 1
        frame = frame.f_back
    if frame:
        write({"seeder": seeder, "seed": None if seed is None else str(seed), "chain": chain(frame)})


def chain(frame: FrameType | None) -> str:
    """The name of the project's frames, from this one to the process's first, which are logged once."""
    frames = []
    while frame:
        code = frame.f_code
        own = code.co_filename.startswith(OWN) and code.co_filename != STREAMS
        if own and (not frames or code.co_name != "<module>"):  # which line calls a stage's main says nothing
            frames.append(f"{os.path.relpath(code.co_filename, PROJECT)}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    name = hashlib.sha256("\n".join(frames).encode()).hexdigest()[:8]
    write({"chain": name, "frames": frames})
    return name


def logging(seeder: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose first argument is a seed, or a generator, which seeds nothing."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        seed = next(iter([*args, *kwargs.values()]), None)
        if not any(hasattr(seed, of_a_generator) for of_a_generator in GENERATORS):
            seeded(seeder, seed)
        return function(*args, **kwargs)

    return wrapped


def subclass(original: Any, methods: dict[str, str]) -> Any:
    """A class in the place of one of C, whose methods cannot be replaced. `methods`: name -> the seeder's name."""

    class Meta(type(original)):
        def __instancecheck__(cls, instance: object) -> bool:  # pyright: ignore[reportSelfClsParameterName]
            return isinstance(instance, original)

    def method(name: str, seeder: str) -> Callable[..., Any]:
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            seeded(seeder, next(iter([*args, *kwargs.values()]), None))
            return getattr(original, name)(self, *args, **kwargs)

        return wrapped

    own = {name: method(name, seeder) for name, seeder in methods.items()}
    return Meta(original.__name__, (original,), own)


def of_random(module: Any) -> None:
    """Python's generators, which networkx asks for, and all draws from the global one.

    It moves while some libraries are imported: that says nothing of the project.
    """
    module.Random.seed = logging_method("random.Random", module.Random.seed)

    class Global(module.Random):
        def random(self) -> float:
            seeded("random, the global generator,", None)
            return super().random()

        def getrandbits(self, k: int) -> int:
            seeded("random, the global generator,", None)
            return super().getrandbits(k)

    module._inst.__class__ = Global
    for name in ("random", "getrandbits", "seed"):
        setattr(module, name, getattr(module._inst, name))


def logging_method(seeder: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a method of Python."""

    def wrapped(self: Any, a: Any = None, *args: Any, **kwargs: Any) -> Any:
        seeded(seeder, a)
        return function(self, a, *args, **kwargs)

    return wrapped


def of_numpy(module: Any) -> None:
    """NumPy's generators and all that seeds them."""
    module.default_rng = logging("numpy.random.default_rng", module.default_rng)
    module.seed = logging("numpy.random.seed", module.seed)
    for name in ("RandomState", "SeedSequence", "PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
        own = subclass(getattr(module, name), {"__init__": f"numpy.random.{name}"})
        setattr(module, name, own)
    watch("numpy", lambda: repr(module.get_state()))


def of_torch(module: Any) -> None:
    """Torch's generators and all that seeds them."""
    module.manual_seed = module.random.manual_seed = logging("torch.manual_seed", module.manual_seed)
    module.seed = module.random.seed = logging("torch.seed", module.seed)
    for device in (module.cuda, module.cuda.random):
        for name in ("manual_seed", "manual_seed_all"):
            setattr(device, name, logging(f"torch.cuda.{name}", getattr(device, name)))
    methods = {name: f"torch.Generator.{name}" for name in ("manual_seed", "seed")}
    module.Generator = subclass(module.Generator, methods)
    watch("torch", lambda: repr(module.get_rng_state().numpy().tobytes()))


def of_scikit_learn(module: Any) -> None:
    """What takes `random_state`: a number becomes a RandomState, nothing becomes NumPy's own generator."""
    check = module.check_random_state

    def wrapped(seed: Any) -> Any:
        if seed is None:
            seeded(f"{module.__name__}.check_random_state", None)
        return check(seed)

    module.check_random_state = wrapped


def of_streams(module: Any) -> None:
    """The streams' numbers, with whose they are."""
    number = module.Stream.number.fget

    def wrapped(self: Any) -> int:
        value = number(self)
        write({"given": str(value), "stream": f"{self.seed}/{self.name}"})
        return value

    module.Stream.number = property(wrapped)


def of_run(module: Any) -> None:
    """The parameters that a stage uses, of those that it asked for."""
    params = module.Stage.params

    def wrapped(self: Any, schema: type, section: str | None = None) -> Any:
        value = params(self, schema, section)
        names, prefix = set(vars(value)), f"{section}." if section else ""

        def read(own: Any, name: str) -> Any:
            if name in names:
                write({"used": prefix + name, "by": self.name})
            return object.__getattribute__(own, name)

        def reduce(own: Any, _: int) -> Any:
            return schema, tuple(object.__getattribute__(own, name) for name in schema.__dataclass_fields__)  # pyright: ignore

        value.__class__ = type(schema.__name__, (schema,), {"__getattribute__": read, "__reduce_ex__": reduce})
        return value

    module.Stage.params = wrapped


def watch(name: str, state: Callable[[], str]) -> None:
    """Log at the process's end if a global generator has moved: something drew from it outside of a stream."""
    from multiprocessing.util import Finalize

    before = state()
    Finalize(None, lambda: write({"moved": name}) if state() != before else None, exitpriority=0)


PATCHES: dict[str, Callable[[Any], None]] = {
    "numpy.random": of_numpy,
    "torch": of_torch,
    "sklearn.utils.validation": of_scikit_learn,
    "scipy._lib._util": of_scikit_learn,
    "hsae.streams": of_streams,
    "hsae.run": of_run,
}


class Patcher(importlib.abc.MetaPathFinder):
    """Finds the modules of `PATCHES` as Python does, and has them patched once they are executed."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        """The module's own spec, whose loader patches as well."""
        if name not in PATCHES:
            return None
        patch = PATCHES[name]
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(spec for spec in found if spec)
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            patch(module)

        loader.exec_module = execute_and_patch
        return spec


if "LOG_OF_STAGES" in os.environ:
    if any(argument.startswith("stages.") for argument in sys.orig_argv):
        os.environ["LOGGED_STAGE"] = " ".join(sys.orig_argv[2:])
    if "LOGGED_STAGE" in os.environ:
        of_random(random)
        sys.meta_path.insert(0, Patcher())
