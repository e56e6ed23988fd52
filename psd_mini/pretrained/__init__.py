"""Priors by name: the exact toy world, the small checkpoint of our own, Stable Diffusion.
`psd_mini.sds.Prior` says what a prior is."""

from __future__ import annotations

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
    """A prior by name, folder or hub id.

    Args:
        prior: "exact", "toy" (the small trained model in `psd_mini.pretrained.learned`), "real"
            (Stable Diffusion) or where a model in diffusers' format is.
        resolution: of the exact world's pictures; learned priors resize what they get to their own
            size.
        conditioning: what it knows of the camera, see `ToyWorldPrior`; a learned one is told in
            words or, with "none", nothing.
        device, dtype: of a learned prior; None is what there is.

    Raises:
        ValueError: it cannot be loaded, or does not run there.
    """
    at_least("resolution", resolution, 8)
    if prior == "exact":
        if device not in (None, "cpu") or dtype not in (None, "float32"):
            raise ValueError(
                f"device, dtype: the exact world runs on the cpu in float32, not {device} {dtype};"
                " leave them out"
            )
        from psd_mini.world.prior import ToyWorldPrior

        return ToyWorldPrior(resolution, conditioning)
    from psd_mini.pretrained import learned as toy
    from psd_mini.pretrained.stable_diffusion import VIEW_WORDS, StableDiffusionPrior

    source: Any = {"real": None, "toy": learned.FOLDER}.get(prior, prior)
    words = learned.VIEW_WORDS if prior == "toy" else VIEW_WORDS
    settings: dict[str, Any] = {"elevations": learned.ELEVATIONS} if prior == "toy" else {}
    the_prior = StableDiffusionPrior.from_pretrained(
        source,
        view_words=None if conditioning == "none" else words,
        device=device,
        dtype=dtype,
        **settings,
    )
    the_prior.name = "toy" if prior == "toy" else the_prior.name
    return the_prior
