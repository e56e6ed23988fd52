"""Train the learned checkpoint from nothing: python tests/tools/learned/train.py FOLDER (about an hour on two
CPU cores).

    1. autoencoder    minimise  ||D(z) - p||^2 / n + (2 s^2 d / n) KL( q(z|p) || N(0, I) ) / d,   z ~ q(z|p) = N(mu, std^2)
    2. latents        x = mu(p) / std of all mu(p), for every object, colour and camera
    3. denoiser       minimise  || v_hat(x_t, t, text) - v ||^2,   x_t = alpha_t x + sigma_t eps,  v = alpha_t eps - sigma_t x

n = 3 * 64 * 64 and d = 4 * 16 * 16 count the numbers in a picture and in its latents; s = 0.05 is
how exactly the decoder should paint, in [-1, 1] units: both terms together are the negative
evidence bound of a Gaussian decoder of that width, times 2 s^2 / n (Kingma & Welling 2014, arXiv
1312.6114). Half of the pictures are blends of two: distillation starts in fog.

Why v and not eps: at t near 1 the signal has the weight alpha_t = 0.07, so an error of eps_hat is
15 times as large in x0_hat.

Every stage can be killed and goes on where it stopped; random numbers depend on the seed and the
step alone. One machine and one thread count give one checkpoint, bit for bit. Networks are averaged
over steps (decay 0.999) before they are saved."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import torch
from learned import data, parts
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from psd_mini._internal.files import write_atomically
from psd_mini._internal.runs import read_checkpoint, write_checkpoint
from psd_mini.schedule import NoiseSchedule, scaled_linear_schedule
from psd_mini.world.text import FILLERS, SYNONYMS, VOCABULARY

N_CAMERAS = 256
PICTURE_NOISE = 0.05  # s
AVERAGING = 0.999
SAVE_EVERY = 100
# batch size, steps, highest learning rate of the two stages that train
AUTOENCODER = {"batch": 24, "steps": 1200, "lr": 2e-3}
DENOISER = {"batch": 64, "steps": 2400, "lr": 1.5e-3}


def generator_of(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, whatever came before it."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def one_cycle(progress: float) -> float:
    """Learning rate over its maximum: up during the first tenth, then down along half a cosine."""
    return (
        progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))
    )


def fit(
    name: str,
    network: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    file: Path,
    config: dict,
) -> None:
    """Minimise loss(step) with AdamW, going on from `file` if it is there; leaves the averaged
    weights in the network.

    Args:
        name: for the progress bar.
        network: trained in place.
        loss: of a step, a scalar.
        steps, lr: how many, and the highest learning rate (`one_cycle`).
        file: checkpoint, written every `SAVE_EVERY` steps.
        config: what must be the same when it is read.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99))
    averaged = {key: value.clone() for key, value in network.state_dict().items()}
    first = 0
    if file.exists():
        state = read_checkpoint(file, config)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        first, averaged = state["step"], state["averaged"]
    smooth = None
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=10)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = lr * max(one_cycle(step / steps), 1e-3)
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        decay = min(AVERAGING, (1 + step) / (10 + step))
        for key, current in network.state_dict().items():
            (
                averaged[key].lerp_(current, 1 - decay)
                if current.is_floating_point()
                else averaged[key].copy_(current)
            )
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        bar.set_postfix(loss=f"{smooth:.4f}")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "averaged": averaged,
            }
            write_checkpoint(file, {"config": config, "step": step + 1, **state})
    network.load_state_dict(averaged)
    network.eval().requires_grad_(False)


def autoencoder_loss(vae: nn.Module, layers: Tensor, batch: int, seed: int, step: int) -> Tensor:
    """The objective of stage 1 on one random batch."""
    generator = generator_of(seed, step)
    shape = len(data.NAMES), len(data.COLOUR_NAMES), layers.shape[1]
    p = data.pictures(layers, data.draw_items(batch + batch // 2, shape, generator))
    blend = torch.rand(batch // 2, 1, 1, 1, generator=generator)
    p = torch.cat(
        (p[: batch - batch // 2], blend * p[batch - batch // 2 : batch] + (1 - blend) * p[batch:])
    )
    p = 2 * p - 1
    q = vae.encode(p).latent_dist  # type: ignore[operator]
    z = q.mean + q.std * torch.randn(q.mean.shape, generator=generator)
    # KL(q || N(0, I)) per dimension = (mu^2 + std^2 - 1 - log std^2) / 2
    kl = 0.5 * (q.mean.square() + q.var - 1 - q.logvar).mean()
    weight = 2 * PICTURE_NOISE**2 * q.mean[0].numel() / p[0].numel()
    return (vae.decode(z).sample - p).square().mean() + weight * kl  # type: ignore[operator]


@torch.no_grad()
def all_latents(vae: nn.Module, layers: Tensor) -> Tensor:
    """mu(p) of every picture: (objects, colours, cameras, 4, 16, 16)."""
    rows = []
    for name in tqdm(range(len(data.NAMES)), desc="latents"):
        for colour in range(len(data.COLOUR_NAMES)):
            items = torch.tensor([[name], [colour], [0]]).repeat(1, layers.shape[1])
            items[2] = torch.arange(layers.shape[1])
            p = 2 * data.pictures(layers, items) - 1
            rows.append(torch.cat([vae.encode(part).latent_dist.mode() for part in p.split(32)]))  # type: ignore[operator]
    return torch.stack(rows).unflatten(0, (len(data.NAMES), len(data.COLOUR_NAMES)))


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """A digest of some tensors: what was made of others differs from what was made of these."""
    return hashlib.sha256(
        save({name: tensor.contiguous() for name, tensor in tensors.items()})
    ).hexdigest()[:16]


def metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


class Denoiser(nn.Module):
    """UNet and text encoder, trained together: v_hat(x_t, t, caption)."""

    def __init__(self, tokenizer, seed: int):
        super().__init__()
        self.tokenizer = tokenizer
        self.unet = parts.seeded(parts.unet, seed)
        self.text_encoder = parts.seeded(parts.text_encoder, seed, len(tokenizer))

    def forward(self, x_t: Tensor, t: Tensor, texts: list[str]) -> Tensor:
        ids = self.tokenizer(
            texts, padding="max_length", max_length=parts.LENGTH, return_tensors="pt"
        ).input_ids
        return self.unet(x_t, t, self.text_encoder(ids)[0]).sample


def denoiser_loss(
    model: Denoiser,
    schedule: NoiseSchedule,
    latents: Tensor,
    directions: Tensor,
    batch: int,
    seed: int,
    step: int,
) -> Tensor:
    """The objective of stage 3 on one random batch."""
    generator = generator_of(seed, step)
    items = data.draw_items(batch, (len(latents), latents.shape[1], latents.shape[2]), generator)
    x = latents[items[0], items[1], items[2]]
    texts = data.captions(items, directions, generator)
    t = torch.randint(schedule.num_timesteps, (batch,), generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    x_t = schedule.add_noise(x, eps, t)
    alpha_t, sigma_t = schedule.alpha_sigma(t, x)
    return (model(x_t, t, texts) - (alpha_t * eps - sigma_t * x)).square().mean()


def train(
    folder: Path,
    work: Path,
    autoencoder: dict = AUTOENCODER,
    denoiser: dict = DENOISER,
    n_cameras: int = N_CAMERAS,
    seed: int = 0,
) -> None:
    """All stages: the finished model into `folder`, what is under way into `work`.

    Args:
        folder: of the checkpoint in diffusers' format.
        work: for the stages' own checkpoints and the latents.
        autoencoder, denoiser: batch, steps, lr of the two stages.
        n_cameras: from how many the world is drawn.
        seed: of everything random.

    Raises:
        ValueError: a stage in `work` was made with other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    cameras, layers = data.view_layers(n_cameras, parts.SIZE)
    same = {
        "seed": seed,
        "n_cameras": n_cameras,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    same["pictures"] = fingerprint({"layers": layers})  # of another world another model

    vae = parts.seeded(parts.autoencoder, seed)
    config = {**same, **{f"autoencoder {key}": value for key, value in autoencoder.items()}}
    batch = autoencoder["batch"]
    fit(
        "autoencoder",
        vae,
        lambda step: autoencoder_loss(vae, layers, batch, seed, step),
        autoencoder["steps"],
        autoencoder["lr"],
        work / "autoencoder.pt",
        config,
    )
    file = work / "latents.safetensors"
    of = fingerprint({"layers": layers, **vae.state_dict()})
    if not file.exists() or metadata(file).get("of") != of:
        write_atomically(file, save({"latents": all_latents(vae, layers).contiguous()}, {"of": of}))
    latents = load_file(file)["latents"]
    scale = 1 / latents.std().item()
    vae.register_to_config(scaling_factor=scale)  # type: ignore[operator]

    parts.save_tokenizer(folder / "tokenizer", [*VOCABULARY, *SYNONYMS, *FILLERS])
    model = Denoiser(parts.load_tokenizer(folder / "tokenizer"), seed)
    schedule, directions = scaled_linear_schedule(), data.directions_of(cameras)
    config |= {f"denoiser {key}": value for key, value in denoiser.items()}
    batch, latents = denoiser["batch"], scale * latents
    fit(
        "denoiser",
        model,
        lambda step: denoiser_loss(model, schedule, latents, directions, batch, seed, step),
        denoiser["steps"],
        denoiser["lr"],
        work / "denoiser.pt",
        config,
    )
    parts.save_checkpoint(
        folder, {"vae": vae, "unet": model.unet, "text_encoder": model.text_encoder}
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Train the learned checkpoint; killed, the same command goes on."
    )
    parser.add_argument("folder", type=Path, help="where the model goes, in diffusers' format")
    parser.add_argument("--work", type=Path, help="what is under way (default: FOLDER.work)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.folder, args.work or args.folder.with_name(args.folder.name + ".work"))
