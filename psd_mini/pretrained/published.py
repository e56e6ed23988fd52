"""What rewards with published weights share: find the file, read it, rename it, cut the pictures.

A weights file that comes from another project is read so that it cannot run code, and its weights
are taken under their new names all or not at all: a weight that is left over or missing is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from psd_mini._internal.arguments import named
from psd_mini.pretrained.failures import first_loaded, hub_is_offline, one_line
from psd_mini.rewards import check_pictures

Images = Float[Tensor, "b 3 h w"]

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def find_file(source: str | Path | None, ids: Sequence[str], file: str, remedy: str) -> Path:
    """Where a weights file is on this machine; downloaded if need be.

    Args:
        source: its path, or a hub id that has it; None tries `ids` in their order.
        ids: hub ids; file: the file's name there.
        remedy: what to do where it cannot be had.

    Raises:
        ValueError: in one line, no hub id has it or the hub is out of reach.
    """
    path = Path(source or ids[0]).expanduser()
    if source is not None and (path.exists() or path.suffix):
        return path
    load = partial(_download, file=file, remedy=remedy, offline=hub_is_offline())
    return first_loaded(ids if source is None else (str(source),), load)


def _download(model_id: str, file: str, remedy: str, offline: bool) -> Path:
    with one_line(f"reward {model_id}", remedy):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(model_id, file, local_files_only=offline))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a .safetensors or .pt file, read so that it cannot run code.

    Args:
        path: the file; its weights may be under "state_dict", as training programs save them.

    Raises:
        ValueError: no such file, damaged, or anything but tensors with names.
    """
    if not path.exists():
        raise ValueError(f"reward: there is no file {path}; give the path to a downloaded one")
    with named(f"reward: {path} is damaged or holds no weights", "get another copy"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # files of torch before 1.6 are no zip archives and cannot be mapped into memory
        mapped = zipfile.is_zipfile(path)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:  # whose message says how to open it all the same
            raise ValueError("more than tensors, could run code; it was not opened") from None
        state = loaded.get("state_dict", loaded)
        if not all(isinstance(n, str) and isinstance(w, Tensor) for n, w in state.items()):
            raise TypeError("not only names and tensors")
        return state


def rename_weights(
    state: Mapping[str, Tensor], names: Mapping[str, str], wanted: Mapping[str, Tensor], model: str
) -> dict[str, Tensor]:
    """Published weights under the names of a network, all of them and no others.

    Args:
        state: name -> weight, as published.
        names: parts of published names -> parts of the network's names, replaced one after the
            other.
        wanted: the network's own state dict; of its weights only the shapes count.
        model: its name, for messages.

    Raises:
        ValueError: a weight that the network has no place for, one of another shape, or one that is
            missing.
    """
    renamed: dict[str, Tensor] = {}
    for published, weight in state.items():
        name = published
        for part, ours in names.items():
            name = name.replace(part, ours)
        if name not in wanted or weight.shape != wanted[name].shape:
            what = f"{published!r} of shape {tuple(weight.shape)}"
            raise ValueError(f"reward: {what} is not a weight of {model}; another file?")
        renamed[name] = weight
    missing = sorted(wanted.keys() - renamed.keys())
    if missing:
        what = f"lacks {len(missing)} weights, the first is {missing[0]!r}"
        raise ValueError(f"reward: {model}'s file {what}; get another copy")
    return renamed


def preprocess(images: Images, resolution: int) -> Images:
    """The middle square at `resolution`, normalised; float32 or better, differentiable.

        short = min(h, w)
        resized: floor(resolution h / short) x floor(resolution w / short), in [0, 1]
        (middle resolution x resolution of it - mean) / std,    mean and std of each colour

    Resized as Pillow does (bicubic), then normalised as CLIP does. The filter widens with the
    reduction (antialias): without that, single pixels of a large picture would decide the score.
    Sizes are rounded as torchvision's Resize and CenterCrop round them.
    """
    check_pictures(images)
    height, width = images.shape[-2:]
    short = min(height, width)
    shape = resolution * height // short, resolution * width // short
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    resized = F.interpolate(images, shape, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = round((shape[0] - resolution) / 2), round((shape[1] - resolution) / 2)
    square = resized[..., top : top + resolution, left : left + resolution]
    mean = torch.tensor(PIXEL_MEAN, dtype=square.dtype, device=square.device)[:, None, None]
    std = torch.tensor(PIXEL_STD, dtype=square.dtype, device=square.device)[:, None, None]
    return (square - mean) / std
