"""`from_pretrained` without a network: diffusers' and transformers' names give the stand-ins.

Importing the real diffusers costs seconds, a check should cost one. Inside the context both
libraries are light modules whose attributes are the stand-ins, whether or not the real ones are
installed. Code that imported the real ones earlier is served too: their loaded classes get the
stand-ins' `from_pretrained`. All of it is undone on the way out.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from itertools import product
from types import ModuleType
from typing import Any

from psd_mini.checks.grading import stand_ins
from psd_mini.checks.grading.stand_ins import Scheduler, StandIn

LIBRARIES = ("diffusers", "transformers")
STAND_INS: dict[str, Any] = {
    name: getattr(stand_ins, stand_in)
    for stand_in, names in {
        "Pipeline": "StableDiffusionPipeline DiffusionPipeline StableDiffusionImg2ImgPipeline",
        "PipelineXL": "StableDiffusionXLPipeline StableDiffusionXLImg2ImgPipeline",
        "Scheduler": "DDIMScheduler DDPMScheduler PNDMScheduler DPMSolverMultistepScheduler",
        "InverseScheduler": "DDIMInverseScheduler",
        "UNet": "UNet2DConditionModel UNet2DModel",
        "LoRA": "LoRAAttnProcessor LoRAAttnProcessor2_0 LoRAXFormersAttnProcessor",
        "VAE": "AutoencoderKL AutoencoderTiny",
        "Tokenizer": "CLIPTokenizer CLIPTokenizerFast AutoTokenizer",
        "TextEncoder": "CLIPTextModel CLIPTextModelWithProjection",
    }.items()
    for name in names.split()
}


def _nothing(*_: Any, **__: Any) -> None:
    """Functions of the libraries that no gradient needs, such as setting the verbosity."""


class _Light(ModuleType):
    """A module that has every name: a stand-in, or a class or a function that does nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in STAND_INS or name[:1].isupper():
            return STAND_INS.get(name, StandIn)
        if name in ("logging", "utils"):
            return importlib.import_module(f"{self.__name__}.{name}")
        return _nothing


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every submodule of the two libraries."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        light = fullname.split(".")[0] in LIBRARIES
        return ModuleSpec(fullname, self, is_package=True) if light else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Light(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


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

    for module, (name, stand_in) in product(real.values(), STAND_INS.items()):
        loaded = vars(module).get(name)
        if isinstance(loaded, type) and not issubclass(loaded, StandIn | Scheduler):
            for maker in ("from_pretrained", "from_config"):  # somebody may hold the class itself
                patch(loaded, maker, getattr(stand_in, maker))
        if module.__name__ in LIBRARIES:  # or the library
            patch(module, name, stand_in)
    for name in real:
        del sys.modules[name]
    finder = _Finder()
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
