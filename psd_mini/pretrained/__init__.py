"""Learned priors and rewards, and `make_prior`, which finds every prior by its name."""

from dataclasses import replace
from typing import Any

from psd_mini._internal.arguments import at_least, validated


@validated
def make_prior(
    prior: str,
    resolution: int = 32,
    conditioning: str = "camera",
    device: str | None = None,
    dtype: str | None = None,
) -> Any:
    """A prior by name, folder or hub id; `psd_mini.sds.Prior` says what a prior is.

    Args:
        prior: "exact" (the toy world), "dull" (exact, but it has only seen the world's objects in
            dull colours, half way to gray), "learned" (the small checkpoint in the package), "real"
            (Stable Diffusion), or the folder or hub id of a model in diffusers' format.
        resolution: pixels per side of the exact world's pictures. Learned priors resize what they
            get to their own resolution.
        conditioning: what it knows of the camera, see `ToyWorldPrior`. A learned prior is told the
            view in words, or nothing with "none".
        device, dtype: of a learned prior; None is what there is.

    Raises:
        ValueError: it cannot be loaded, or does not run there.
    """
    at_least("resolution", resolution, 8)
    if prior in ("exact", "dull"):
        if device not in (None, "cpu") or dtype not in (None, "float32"):
            where = f"the cpu in float32, not {device} {dtype}"
            raise ValueError(f"device, dtype: the exact world runs on {where}; leave them out")
        from psd_mini.world.prior import ToyWorldPrior

        vivid = ToyWorldPrior(resolution, conditioning)
        if prior == "exact":
            return vivid
        return ToyWorldPrior(resolution, conditioning, replace(vivid.views, vividness=0.5))
    from psd_mini.pretrained import learned
    from psd_mini.pretrained.stable_diffusion import StableDiffusionPrior

    settings: dict[str, Any] = learned.SETTINGS if prior == "learned" else {}
    if conditioning == "none":
        settings = settings | {"view_words": None}
    source: Any = {"real": None, "learned": learned.FOLDER}.get(prior, prior)
    made = StableDiffusionPrior.from_pretrained(source, device=device, dtype=dtype, **settings)
    if prior == "learned":
        made.name = prior
    return made
