"""FLOPs of one optimisation step at 512 x 512 pixels, in the real models' full size.

    python tests/tools/flops.py

Stable Diffusion 1.5 and ImageReward, without weights: the package's own prior runs on torch's meta
device, where tensors have shapes and no contents, under torch's FlopCounterMode (matrix products,
convolutions and attention; 2 FLOPs per multiply-add; one camera per step). "KL" encodes with the
model's own autoencoder and decodes with it for the reward, as threestudio and DreamDPO do; "tiny"
uses the tiny autoencoder for both; "default" is what `--prior real` does: it encodes with KL and
decodes with tiny.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from psd_mini.cameras import orbit
from psd_mini.negative import negative_loss
from psd_mini.pretrained import image_reward, stable_diffusion
from psd_mini.pretrained.image_reward import ImageRewardNetwork
from psd_mini.pretrained.published import preprocess
from psd_mini.pretrained.stable_diffusion import StableDiffusionPrior
from psd_mini.sds import Context, predict, surrogate_loss

TARGETS = {("KL", "SDS"): 3.9, ("tiny", "SDS"): 1.9}  # TFLOP, at most
# each looks at the numbers in a tensor, and tensors on the meta device have none
LOOK_AT_NUMBERS = {
    "psd_mini._internal.arguments._look_at_numbers": lambda *_: None,
    "psd_mini.sds.check_finite": lambda *_: None,
    "psd_mini.negative.score": lambda reward, images, prompts: reward(images, prompts),
    "psd_mini.pretrained.published.check_pictures": lambda images: None,
}


def full_size_prior(tiny_autoencoder: bool) -> StableDiffusionPrior:
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
    # a device without numbers, which nobody who runs a model should choose
    meta = patch.object(stable_diffusion, "choose_device", lambda _: torch.device("meta"))
    with meta:
        return StableDiffusionPrior(
            unet,
            vae,
            scheduler,
            lambda: (None, None),
            tiny=(lambda: tiny) if tiny_autoencoder else None,
            tiny_encode=tiny_autoencoder,
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
            z = network.vision(preprocess(images, network.resolution)).last_hidden_state
            # without masks, whose values transformers wants to see: the padding is computed all the
            # same
            h = network.text(tokens, encoder_hidden_states=z, is_decoder=False)
            return network.head(h.last_hidden_state[:, 0])[:, 0]


def parts(tiny_autoencoder: bool) -> dict[str, float]:
    """TFLOP of everything that steps are made of."""
    prior, reward = full_size_prior(tiny_autoencoder), MetaReward()
    t, camera = torch.tensor([500]), orbit(0.0, 15.0)
    x = torch.empty(1, 4, 64, 64, device="meta")
    embeddings = torch.empty(2, 6, 77, 768, device="meta")

    def encode_and_back() -> None:
        image = torch.empty(1, 3, 512, 512, device="meta", requires_grad=True)
        x = prior.encode(image)
        surrogate_loss(x, torch.empty_like(x)).backward()

    def ask(noises: int) -> None:
        predict(x, t, torch.empty(noises, *x.shape, device="meta"), context)

    def negative_step() -> None:
        n = embeddings[1].clone().requires_grad_()
        negative_loss(n, x, t, torch.empty(1, *x.shape, device="meta"), context, 7.5).backward()

    with ExitStack() as stack:
        for name, blind in LOOK_AT_NUMBERS.items():
            stack.enter_context(patch(name, blind))
        context = Context(prior, embeddings, camera, ["a corgi"], reward)
        with torch.no_grad():
            decode = tera(lambda: prior.decode(x))
            judge = tera(lambda: reward(torch.empty(1, 3, 512, 512, device="meta")))
        return {
            "encode": tera(encode_and_back),
            "UNet": tera(lambda: ask(1)),
            "decode": decode,
            "reward": judge,
            "UNet, two noises": tera(lambda: ask(2)),
            "negative": tera(negative_step),
        }


def columns() -> dict[str, dict[str, float]]:
    """The parts for each choice of autoencoders."""
    kl, tiny = parts(False), parts(True)
    return {"KL": kl, "default": tiny | {"encode": kl["encode"]}, "tiny": tiny}


def steps(parts: dict[str, float]) -> dict[str, float]:
    """TFLOP of whole steps from their parts."""
    sds = parts["encode"] + parts["UNet"]
    psd = parts["encode"] + parts["UNet, two noises"] + 2 * (parts["decode"] + parts["reward"])
    return {"SDS": sds, "PSD": psd, "PSD with negative embedding": psd + parts["negative"]}


def table(columns: dict[str, dict[str, float]]) -> list[str]:
    """The lines of the table in tests/results/stable_diffusion.md."""
    names = {
        "encode": "encode and its backward pass",
        "UNet": "UNet with guidance",
        "decode": "decode",
        "reward": "ImageReward",
    }
    totals = [steps(column) for column in columns.values()]
    rows = {
        name: [f"{column[part]:.2f}" for column in columns.values()] for part, name in names.items()
    }
    for name in totals[0]:
        rows[f"**a step of {name}**"] = [f"**{total[name]:.2f}**" for total in totals]
    for name, part in {"SDS": "UNet", "PSD": "UNet, two noises"}.items():
        shares = [
            column[part] / total[name]
            for column, total in zip(columns.values(), totals, strict=True)
        ]
        rows[f"the UNet's share of a step of {name}"] = [f"{share:.0%}" for share in shares]
    top = [f"| TFLOP | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    return top + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


if __name__ == "__main__":
    counted = columns()
    print("\n".join(table(counted)))
    for (column, name), target in TARGETS.items():
        reached = steps(counted[column])[name]
        print(
            f"{column} {name}: {reached:.2f} TFLOP, target at most {target}:"
            f" {'reached' if reached <= target else 'MISSED'}"
        )
