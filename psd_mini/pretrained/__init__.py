"""Diffusion priors. A prior is anything with these attributes; the exact ones have more.

schedule                                                         a NoiseSchedule
embed(prompts) -> embeddings (K, ...)                            "" is the null prompt
encode(images (B, 3, H, W) in [0, 1]) -> x (B, C, h, w)          differentiable
decode(x) -> images in [0, 1]
predict_noise(x_t, t, embeddings, cameras) -> eps_hat (K, B, C, h, w)   all K embeddings in one call
embed_views(prompts) -> the same shape                           optional: the prompt worded for each view
negative_settings(start) -> settings of a NegativeEmbedding      optional
draw_cameras(n, generator) -> Cameras                            where the loop may look from
"""

from __future__ import annotations

from typing import Any

from psd_mini.arguments import at_least, validated


def embed_negative(prior: Any, negative_prompt: str) -> Any:
    """The embedding of what guidance pushes away from; where the prior does not know it, the error says which prompt."""
    try:
        return prior.embed([negative_prompt])
    except ValueError as error:
        raise ValueError(f"negative_prompt: {str(error).removeprefix('prompt: ')}") from None


@validated
def make_prior(
    prior: str, resolution: int = 32, conditioning: str = "camera", device: str | None = None, dtype: str | None = None
) -> Any:
    """A prior by name, folder or hub id.

    Args:
        prior: "exact", "toy" (the small trained model in `psd_mini.toy`), "real" (Stable Diffusion) or where a
            model in diffusers' format is.
        resolution: of the exact world's pictures; learned priors resize what they get to their own size.
        conditioning: what it knows of the camera, see `ToyWorldPrior`; a learned one is told in words or, with "none", nothing.
        device, dtype: of a learned prior; None is what there is.

    Raises:
        ValueError: it cannot be loaded, or does not run there.
    """
    at_least("resolution", resolution, 8)
    if prior == "exact":
        if device not in (None, "cpu") or dtype not in (None, "float32"):
            raise ValueError(f"device, dtype: the exact world runs on the cpu in float32, not {device} {dtype}; leave them out")
        from psd_mini.priors.toy_world import ToyWorldPrior

        return ToyWorldPrior(resolution, conditioning)
    from psd_mini import toy
    from psd_mini.priors.stable_diffusion import VIEW_WORDS, StableDiffusionPrior

    source: Any = {"real": None, "toy": toy.FOLDER}.get(prior, prior)
    words = toy.VIEW_WORDS if prior == "toy" else VIEW_WORDS
    settings: dict[str, Any] = {"elevations": toy.ELEVATIONS} if prior == "toy" else {}
    the_prior = StableDiffusionPrior.from_pretrained(
        source, view_words=None if conditioning == "none" else words, device=device, dtype=dtype, **settings
    )
    the_prior.name = "toy" if prior == "toy" else the_prior.name
    return the_prior
