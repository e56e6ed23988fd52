"""Imports without a network: stand-ins for diffusers, and for whatever is not installed.

Importing the real diffusers costs seconds, a check should cost one. Inside `offline_diffusers` it,
transformers and peft are light modules whose attributes are the stand-ins, whether or not the real
ones are installed. Code that imported the real ones earlier is served too: their loaded classes get
the stand-ins' `from_pretrained`. Inside `stood_in` a submission finds every other module that is
not there, too. All of it is undone on the way out.
"""

from __future__ import annotations

import builtins
import importlib.abc
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from psd_mini.checks.grading import stand_ins
from psd_mini.checks.grading.missing import PACKAGE, named, names_in
from psd_mini.checks.grading.stand_ins import Scheduler, StandIn

LIBRARIES = ("diffusers", "transformers", "peft")
STAND_INS: dict[str, Any] = {  # by a part of a class's name
    "XL": stand_ins.PipelineXL,
    "Pipeline": stand_ins.Pipeline,
    "InverseScheduler": stand_ins.InverseScheduler,
    "Scheduler": stand_ins.Scheduler,
    "LoRA": stand_ins.LoRA,
    "UNet": stand_ins.UNet,
    "Autoencoder": stand_ins.VAE,
    "Tokenizer": stand_ins.Tokenizer,
    "TextModel": stand_ins.TextEncoder,
}


def stand_in_of(name: str) -> Any:
    """The stand-in for a class of diffusers or transformers; None if there is none."""
    for part, stand_in in STAND_INS.items():
        if part in name and name[:1].isupper():
            return stand_in
    return None


def _nothing(*_: Any, **__: Any) -> None:
    """Functions of diffusers that no gradient needs, such as setting the verbosity."""


class _Light(ModuleType):
    """A module that has every name: a stand-in, or a class or a function that does nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":  # whatever the file uses and has not got
            frame = sys._getframe(1)
            used = names_in(frame.f_code) - set(frame.f_globals) - set(dir(builtins))
            return [name for name in used if not name.startswith("_")]
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__.split(".")[0] not in ("diffusers", "transformers"):
            return named(self.__name__, name)
        if name in ("logging", "utils"):
            return importlib.import_module(f"{self.__name__}.{name}")
        if name[:1].isupper():
            return stand_in_of(name) or StandIn
        return _nothing


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every submodule of these libraries."""

    def __init__(self, libraries: Container[str]):
        self.libraries = libraries

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        light = fullname.split(".")[0] in self.libraries
        return ModuleSpec(fullname, self, is_package=True) if light else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Light(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def stood_in(folder: Path) -> Iterator[set[str]]:
    """Within it, modules whose first name is in the set that it gives are found, if only in name.

    Neighbours in `folder` are found too; `from .` means there.
    """
    absent: set[str] = set()
    finder, before = _Finder(absent), set(sys.modules)
    for depth in range(len(PACKAGE)):
        package = ModuleType(".".join(PACKAGE[: depth + 1]))
        package.__path__ = [str(folder)] if depth + 1 == len(PACKAGE) else []
        sys.modules[package.__name__] = package
    sys.meta_path.append(finder)
    sys.path.insert(0, str(folder))
    try:
        yield absent
    finally:
        sys.path.remove(str(folder))
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.startswith(PACKAGE[0]) or isinstance(sys.modules[name], _Light):
                del sys.modules[name]


@contextmanager
def offline_diffusers() -> Iterator[None]:
    """Within it, `StableDiffusionPipeline.from_pretrained(id, ...)` and its like give stand-ins.

    A check opens it by itself. Open it where an object has to be made ready first, and check the
    object:

        with pm.offline_diffusers():
            sd = StableDiffusion("cpu", fp16=False)
            sd.get_text_embeds(["a"], [""])
        check_sds(sd)
    """
    real = {name: module for name, module in sys.modules.items() if name.split(".")[0] in LIBRARIES}
    undo: list[tuple[Any, str, Any]] = []  # object, attribute, what it was (None: it was not there)

    def patch(owner: Any, name: str, value: Any) -> None:
        undo.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, value)

    for module in real.values():
        for name in filter(stand_in_of, dir(module)):
            loaded, stand_in = vars(module).get(name), stand_in_of(name)
            if isinstance(loaded, type) and not issubclass(loaded, StandIn | Scheduler):
                for maker in ("from_pretrained", "from_config"):  # somebody may hold the class
                    patch(loaded, maker, getattr(stand_in, maker))
            if module.__name__ in LIBRARIES:  # or the library
                patch(module, name, stand_in)
    for name in real:
        del sys.modules[name]
    finder = _Finder(LIBRARIES)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in LIBRARIES]:
            del sys.modules[name]
        sys.modules.update(real)
        for owner, name, value in reversed(undo):
            delattr(owner, name) if value is None else setattr(owner, name, value)
