"""What a GPU makes of it: python tests/tools/gpu.py [--device cuda] [--tiny]

Two tables, in at most eight minutes on one GPU, without a download:

* a step with Stable Diffusion 1.5's architecture and ImageReward's, both with random weights, at
  512 pixels and one camera, in float16 and bfloat16: milliseconds (median), peak memory, and how
  much more that is than the UNet's own calls. Aims: latent SDS at most 1.25 times its UNet calls,
  PSD with ImageReward in at most 8 GB.
* the exact and the learned prior on the GPU against the CPU, in float32: the largest difference of
  the predicted noise relative to its largest number, and how much faster a call is.

Random weights cost what trained ones cost; what they make is noise. --tiny is for a test on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from image_reward_oracle import SMALL_TEXT, SMALL_VISION
from torch import Tensor

from psd_mini import PSD, SDS, VoxelField, distill, make_reward
from psd_mini.negative import NegativeEmbedding
from psd_mini.pretrained import make_prior
from psd_mini.pretrained.image_reward import ImageReward, ImageRewardNetwork
from psd_mini.pretrained.stable_diffusion import StableDiffusionPrior

AIM_RATIO, AIM_GB = 1.25, 8.0
WARM_UP, TIMED = 3, 10
PROMPT = "a corgi wearing a top hat"
TINY_UNET = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
TINY_VAE = {"block_out_channels": (8, 8), "norm_num_groups": 8, "layers_per_block": 1}


class RandomPrior(StableDiffusionPrior):
    """Stable Diffusion 1.5's networks with random weights; a prompt is a random embedding."""

    def __init__(self, device: str, dtype: str, tiny: bool):
        from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel

        self.width = 32 if tiny else 768
        unet_size = {**TINY_UNET, "sample_size": 8} if tiny else {"sample_size": 64}
        vae_size = TINY_VAE if tiny else {"block_out_channels": (128, 256, 512, 512)}
        stages = len(vae_size["block_out_channels"])
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * stages}
        kinds |= {"up_block_types": ("UpDecoderBlock2D",) * stages}
        torch.manual_seed(0)
        with torch.device(device):
            heads = 4 if tiny else 8
            unet = UNet2DConditionModel(
                cross_attention_dim=self.width, attention_head_dim=heads, **unet_size
            )
            vae = AutoencoderKL(**{"layers_per_block": 2, **vae_size, **kinds})
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        widths = (8, 8) if tiny else (64, 64, 64, 64)
        blocks = {"encoder_block_out_channels": widths, "decoder_block_out_channels": widths}
        if tiny:
            blocks |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        load_text: Any = None  # words are embedded below
        super().__init__(
            *(unet, vae, DDPMScheduler(**betas), load_text),
            tiny=lambda: AutoencoderTiny(**blocks),
            device=device,
            dtype=dtype,
        )

    def _hidden_state(self, prompt: str, view: str = "{}") -> Tensor:
        generator = torch.Generator().manual_seed(len(view.format(prompt)))
        return torch.randn(77, self.width, generator=generator).to(self.device)


class LatentPrior:
    """The same prior for a field that is rendered in latents: nothing is encoded."""

    def __init__(self, prior: RandomPrior):
        self.prior = prior

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    def encode(self, images: Tensor) -> Tensor:
        return images.to(self.prior.device)


def random_reward(device: str, dtype: str, tiny: bool) -> ImageReward:
    """ImageReward's network with random weights, for words that are all the same."""
    sizes = {"vision": SMALL_VISION, "text": SMALL_TEXT} if tiny else {}
    with torch.device(device):
        network = ImageRewardNetwork(**sizes)

    def tokenizer(prompts: list[str], max_length: int, **options: Any) -> SimpleNamespace:
        ones = torch.ones(len(prompts), max_length, dtype=torch.long)
        return SimpleNamespace(input_ids=ones, attention_mask=ones)

    return ImageReward(network, tokenizer, device, dtype)


def now(device: str) -> float:
    """Seconds on a clock, when the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def median_ms(device: str, work: Callable[[], object], repeats: int = TIMED) -> float:
    """Median time of a call in ms, after some that warm up."""
    times = []
    for _ in range(WARM_UP + repeats):
        start = now(device)
        work()
        times.append(1e3 * (now(device) - start))
    return statistics.median(times[WARM_UP:])


def step_row(name: str, prior: RandomPrior, device: str, tiny: bool, **how: Any) -> dict[str, Any]:
    """Time, memory and the UNet's share of one kind of step."""
    latent = how.pop("latent", False)
    field = VoxelField(8 if tiny else 32, channels=4 if latent else 3).to(prior.device)
    asked, ends = [], []
    hook = prior.unet.register_forward_pre_hook(lambda _, inputs: asked.append(inputs))
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    steps = 2 + WARM_UP if tiny else WARM_UP + TIMED
    options = {"steps": steps, "cameras_per_step": 1, "n_samples": 8 if tiny else 32}
    options |= {"resolution": 8 if tiny else 64, "progress": False}

    def after(info: dict[str, Any]) -> None:
        ends.append(now(device))
        if len(ends) < steps:
            asked.clear()

    the_prior = LatentPrior(prior) if latent else prior
    start = now(device)
    distill(field, the_prior, prompt=PROMPT, callback=after, **options, **how)
    hook.remove()
    times = [1e3 * (b - a) for a, b in zip([start, *ends], ends, strict=False)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else None
    calls = [inputs[:3] for inputs in asked]

    @torch.no_grad()
    def bare() -> None:
        for inputs in calls:
            prior.unet(*(part.detach() for part in inputs))

    ms, own = statistics.median(times[WARM_UP:]), median_ms(device, bare, 2 if tiny else TIMED)
    rows = [len(inputs[0]) for inputs in calls]
    found = {"step": name, "dtype": str(prior.dtype).removeprefix("torch."), "unet rows": rows}
    return found | {"ms": ms, "peak GB": peak, "of the UNet calls": ms / own}


def steps_table(device: str, tiny: bool) -> list[dict[str, Any]]:
    """All kinds of steps in both half precisions."""
    rows = []
    for dtype in ("float16", "bfloat16") if device != "cpu" else ("float32",):
        prior, reward = RandomPrior(device, dtype, tiny), random_reward(device, dtype, tiny)
        start = prior.embed_negative("")[0]
        radius = prior.negative_settings(start, prior.embed([PROMPT])[0])
        psd, colour = PSD(SDS(50.0)), make_reward("colorfulness")
        kinds: dict[str, dict[str, Any]] = {
            "latent SDS": {"method": SDS(50.0), "latent": True},
            "SDS": {"method": SDS(50.0)},
            "PSD, colorfulness": {"method": psd, "reward": colour},
            "PSD, ImageReward": {"method": psd, "reward": reward},
            "PSD, ImageReward, negative embedding": {
                **{"method": psd, "reward": reward},
                "negative": NegativeEmbedding(start, 50.0, **radius),
            },
        }
        rows += [step_row(name, prior, device, tiny, **how) for name, how in kinds.items()]
        del prior, reward
    return rows


def rungs_table(device: str) -> list[dict[str, Any]]:
    """The exact and the learned prior on the device against the CPU."""
    rows, generator = [], torch.Generator().manual_seed(0)
    for name in ("exact", "learned"):
        here = make_prior(name, 32, "camera", "cpu", "float32")
        there = make_prior(name, 32, "camera", device, "float32")
        cameras = here.draw_cameras(4, generator)
        size = here.encode(torch.rand(4, 3, *[getattr(here, "resolution", 32)] * 2)).shape
        x_t = torch.randn(size, generator=generator)
        t = torch.tensor([100, 300, 600, 900])
        e = here.embed_views(["a mushroom", ""])
        inputs = x_t.to(device), t.to(device), e.to(device)

        def cpu(prior: Any = here, x: Any = (x_t, t, e, cameras)) -> Tensor:
            return prior.predict_noise(*x)

        def gpu(prior: Any = there, x: Any = (*inputs, cameras)) -> Tensor:
            return prior.predict_noise(*x)

        difference = (gpu().cpu() - cpu()).abs().max() / cpu().abs().max()
        faster = median_ms("cpu", cpu) / median_ms(device, gpu)
        rows.append({"prior": name, "difference": difference.item(), "times faster": faster})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Both tables, and whether the aims are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("--device: there is no GPU here; --device cpu --tiny tries the script")
    name = "CPU" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}\n")
    rungs, steps = rungs_table(args.device), steps_table(args.device, args.tiny)
    print(f"{table(steps)}\n\n{table(rungs)}\n")
    for row in steps:
        if row["step"] == "latent SDS":
            ratio = row["of the UNet calls"]
            print(f"aim: {row['dtype']} latent SDS {ratio:.2f}, at most {AIM_RATIO}")
        if row["step"] == "PSD, ImageReward" and row["peak GB"] is not None:
            print(f"aim: {row['dtype']} PSD {row['peak GB']:.1f} GB, at most {AIM_GB:g}")


if __name__ == "__main__":
    main()
