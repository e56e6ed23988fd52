"""FLOPs of one optimisation step at 512 x 512 pixels: Stable Diffusion 1.5 and ImageReward in full size, without weights.

    python tests/tools/flops.py

The package's own prior runs on torch's meta device, where tensors have shapes and no contents, under torch's FlopCounterMode
(matrix products, convolutions and attention; 2 FLOPs per multiply-add; one camera per step). "stock" encodes with the model's
own autoencoder and decodes with it for the reward, as threestudio and DreamDPO do; "lean" uses the tiny autoencoder for both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from psd_mini.cameras import orbit
from psd_mini.sds import surrogate_loss
from psd_mini.sds import Context, predict
from psd_mini.negative import negative_loss
from psd_mini.pretrained.stable_diffusion import StableDiffusionPrior
from psd_mini.pretrained import image_reward
from psd_mini.pretrained.image_reward import ImageRewardNetwork

TARGETS = {("stock", "SDS"): 3.9, ("lean", "SDS"): 1.9}  # TFLOP, at most


def full_size_prior(lean: bool) -> StableDiffusionPrior:
    """Stable Diffusion 1.5's published architecture on the meta device."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        )
        tiny = AutoencoderTiny()
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    with torch.device("cpu"):
        scheduler = DDPMScheduler(**betas)
    return StableDiffusionPrior(
        unet,
        vae,
        scheduler,
        lambda: (None, None),
        tiny=(lambda: tiny) if lean else None,
        tiny_encode=lean,
        device="meta",
        dtype="float32",
    )


def tera(work: Callable[[], object]) -> float:
    """TFLOP that a function does."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


class MetaReward:
    """ImageReward's network for pictures on the meta device; words are numbers there."""

    differentiable = True

    def __init__(self) -> None:
        with torch.device("meta"):
            self.network = ImageRewardNetwork().eval().requires_grad_(False)

    def __call__(self, images: Tensor, prompts: object = ()) -> Tensor:
        tokens = torch.ones(len(images), image_reward.TOKENS, dtype=torch.long, device="meta")
        network = self.network
        with torch.device("meta"):
            z = network.vision(image_reward.preprocess(images, network.resolution)).last_hidden_state
            # without masks, whose values transformers wants to see: the padding is computed all the same
            h = network.text(tokens, encoder_hidden_states=z, is_decoder=False)
            return network.head(h.last_hidden_state[:, 0])[:, 0]


def parts(lean: bool) -> dict[str, float]:
    """TFLOP of everything that steps are made of."""
    prior, reward = full_size_prior(lean), MetaReward()
    t, camera = torch.tensor([500]), orbit(0.0, 15.0)
    x = torch.empty(1, 4, 64, 64, device="meta")
    embeddings = torch.empty(2, 6, 77, 768, device="meta")
    context = Context(prior, embeddings, camera, ["a corgi"], reward)

    def encode_and_back() -> None:
        image = torch.empty(1, 3, 512, 512, device="meta", requires_grad=True)
        x = prior.encode(image)
        surrogate_loss(x, torch.empty_like(x)).backward()

    def ask(noises: int) -> None:
        predict(x, t, torch.empty(noises, *x.shape, device="meta"), context)

    def negative_step() -> None:
        n = embeddings[1].clone().requires_grad_()
        negative_loss(n, x, t, torch.empty(1, *x.shape, device="meta"), context, 7.5).backward()

    with torch.no_grad():
        decode, judge = tera(lambda: prior.decode(x)), tera(lambda: reward(torch.empty(1, 3, 512, 512, device="meta")))
    result = {"encode + backward": tera(encode_and_back), "UNet, 2 embeddings": tera(lambda: ask(1)), "decode": decode}
    result |= {"reward": judge, "UNet, 2 noises x 2 embeddings": tera(lambda: ask(2))}
    import psd_mini.negative as negative

    scored, negative.score = negative.score, lambda reward, images, prompts: reward(images, prompts)  # no values to check here
    try:
        result["negative embedding's own step"] = tera(negative_step)
    finally:
        negative.score = scored
    return result


def steps(parts: dict[str, float]) -> dict[str, float]:
    """TFLOP of whole steps from their parts."""
    sds = parts["encode + backward"] + parts["UNet, 2 embeddings"]
    psd = parts["encode + backward"] + parts["UNet, 2 noises x 2 embeddings"] + 2 * (parts["decode"] + parts["reward"])
    return {"SDS": sds, "PSD": psd, "PSD + negative embedding": psd + parts["negative embedding's own step"]}


if __name__ == "__main__":
    columns = {name: parts(name == "lean") for name in ("stock", "lean")}
    print("| TFLOP at 512 px, one camera | stock (KL autoencoder) | lean (tiny autoencoder) |\n|---|---|---|")
    for name in columns["stock"]:
        print(f"| {name} | {columns['stock'][name]:.2f} | {columns['lean'][name]:.2f} |")
    totals = {name: steps(column) for name, column in columns.items()}
    for name in totals["stock"]:
        print(f"| **{name} step** | **{totals['stock'][name]:.2f}** | **{totals['lean'][name]:.2f}** |")
    for (column, name), target in TARGETS.items():
        reached = totals[column][name]
        print(f"{column} {name}: {reached:.2f} TFLOP, target at most {target}: {'reached' if reached <= target else 'MISSED'}")
