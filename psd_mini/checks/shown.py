"""What was the reward shown? A preference method ranks pictures of x0_hat; ranking anything else
ranks noise.

    R_i = r(decode(x0_hat_i)),    x0_hat_i = (x_t^i - sigma_t eps_cfg(x_t^i)) / alpha_t

Pictures come in many forms: in -1..1 or 0..1, normalised for CLIP, clamped, in another size. So
what came is compared with what could have come up to an affine map of each channel, where it is not
clamped, at the middle of every latent pixel. The slope of that map says whether alpha_t and the
autoencoder's scaling factor are where they belong."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from psd_mini.checks import world
from psd_mini.checks.grading.stand_ins import VAE
from psd_mini.checks.probe import Run
from psd_mini.checks.reading import Reading
from psd_mini.checks.report import Report
from psd_mini.checks.trace import flows
from psd_mini.sds import cfg

SEEN = {  # what the reward may have been shown: what is wrong with it
    "x0_hat": "",
    "x0_hat times alpha_t": (
        "x0_hat is not divided by alpha_t: it is (x_t - sigma_t eps_cfg)/alpha_t"
    ),
    "x0_hat over alpha_t": (
        "x0_hat is divided by alpha_t twice: it is (x_t - sigma_t eps_cfg)/alpha_t"
    ),
    "x0_hat without guidance": (
        "the reward is shown x0_hat without guidance, while the gradient is guided"
    ),
    "the noisy x_t": (
        "the reward is shown the noisy x_t, which no reward model has ever seen: denoise to x0_hat"
        " first"
    ),
    "x itself": (
        "the reward is shown the render itself, which is the same for both noises: it must see"
        " x0_hat"
    ),
    "something else": "the reward is not shown x0_hat = (x_t - sigma_t eps_cfg)/alpha_t",
}
LIKE, EXACT = (
    0.9,
    0.999,
)  # resizing costs some likeness; a slope is read where the correlation lacks nothing


class Seen(NamedTuple):
    """A picture that the reward was shown: its score, what it is like (a key of SEEN), whose,
    how exactly (see `_alike`)."""

    score: float
    name: str
    picture: int
    noise: int
    likeness: float
    slope: float


def seen_by_reward(run: Run) -> list[Seen]:
    """Everything that the reward was shown in a run."""
    candidates = [
        (name, b, i, c)
        for b, reading in enumerate(run.readings)
        for name, i, c in _candidates(reading)
    ]
    found = []
    for images, values in run.trace.rewarded:
        for image, value in zip(images.detach().double(), values.tolist(), strict=True):
            best = max((_alike(image, c, linear=True), name, b, i) for name, b, i, c in candidates)
            if not best[0][1]:  # no exact affine map: any function will do
                best = max((_alike(image, c), name, b, i) for name, b, i, c in candidates)
            (likeness, slope), name, b, i = best
            found.append(
                Seen(value, name if likeness > LIKE else "something else", b, i, likeness, slope)
            )
    return found


def rewards_of(run: Run, shown: list[Seen]) -> list[Tensor | None]:
    """R_i of the noised versions of each picture, (N,); None where one of them was not asked
    for."""
    found: list[Tensor | None] = []
    for b, reading in enumerate(run.readings):
        scores = {seen.noise: seen.score for seen in shown if seen.picture == b}
        known = len(scores) == len(reading.groups)
        found.append(torch.tensor([scores[i] for i in sorted(scores)]).double() if known else None)
    return found


def judge_reward(report: Report, runs: list[Run]) -> list[tuple[Reading, Tensor]]:
    """Adds the rows on what the reward saw; returns the readings with the reward of each of
    their groups."""
    scored, shown, sizes, decoded = [], set(), [], []
    for run in runs:
        reading = run.readings[0]
        all_seen = seen_by_reward(run)
        for seen in all_seen:
            shown.add(seen.name)
            sizes += [(world.alpha_sigma(reading.t)[0], seen.slope)] if seen.slope else []
        for z in (z for latents in run.trace.decoded for z in latents.detach().double()):
            (_, slope), name = max(
                (_alike(z, c, linear=True), name) for name, _, c in _candidates(reading)
            )
            decoded += [slope] if slope and name.startswith("x0_hat") else []
        rewards = rewards_of(run, all_seen)[0]
        scored += [(reading, rewards)] if rewards is not None else []
    shown = {_sized(name, sizes) for name in shown}
    causes = (
        [SEEN[name] for name in sorted(shown) if SEEN[name]]
        if shown
        else ["the reward is never asked"]
    )
    causes += [] if causes else _scaled(decoded)
    allowed = "note" if shown == {"x0_hat without guidance"} else not causes
    came = (", ".join(sorted(shown)) or "nothing") + (
        ", its size cannot be read" if shown == {"x0_hat"} and not sizes else ""
    )
    report.add(
        allowed, "reward sees", came, "x0_hat", "; ".join(causes), "R_i = r(decode(x0_hat_i))"
    )
    leaks = any(flows(images) for run in runs for images, _ in run.trace.rewarded)
    cause = "the reward is differentiated: it should only be compared, under no_grad"
    report.add(
        not leaks, "reward is compared only", "differentiated" if leaks else "yes", "yes", cause
    )
    return scored


def _candidates(reading: Reading) -> list[tuple[str, int, Tensor]]:
    """What a reward could be shown: (a key of SEEN, which noise, latents)."""
    found = [("x itself", 0, reading.x)]
    for i, group in enumerate(reading.groups):
        alpha_t, sigma_t = world.alpha_sigma(round(group.t))
        found.append(("the noisy x_t", i, group.x_t))
        cond = group.eps_hat.get("cond")
        if cond is not None:
            guided = cfg(cond, group.eps_hat.get("uncond", cond), reading.g)
            for name, e in (("x0_hat", guided), ("x0_hat without guidance", cond)):
                found.append((name, i, (group.x_t - sigma_t * e) / alpha_t))
    return found


def _alike(image: Tensor, latents: Tensor, linear: bool = False) -> tuple[float, float]:
    """How well a picture (C, H, W) is explained by latents (4, h, w), or what the autoencoder makes
    of them; and the slope.

    Likeness is the larger of two: the correlation where the picture is not clamped, and the root of
    the share of variance that any function of the latents, pixel by pixel, explains (correlation
    ratio; not with linear=True). The slope is 0 where it is not exact.
    """
    if len(image) == 3:
        latents = torch.einsum("lc,lhw->chw", VAE.mix, latents)
    if image.ndim != 3 or len(image) != len(latents):
        return 0.0, 0.0
    if image.shape[-1] < latents.shape[-1]:
        latents = F.interpolate(latents[None], size=image.shape[1:], mode="area")[0]
    else:  # the decoder makes even blocks, and the middle of one stays what it is when the picture is resized
        image = F.interpolate(image[None], size=latents.shape[1:], mode="nearest-exact")[0]
    a, b = image.flatten(1), latents.flatten(1)
    if a.shape[1] < 256:
        return 0.0, 0.0
    free = torch.ones_like(a)
    for level in (
        a.amin(1, keepdim=True),
        a.amax(1, keepdim=True),
    ):  # of a channel; if it comes more than once, it is clamped
        there = a == level
        free *= ~there | (there.sum(1, keepdim=True) == 1)
    count = free.sum(1, keepdim=True).clamp(min=1)
    da, db = (free * (v - (free * v).sum(1, keepdim=True) / count) for v in (a, b))
    covariance, variance = (da * db).sum().item(), db.square().sum().item()
    correlation = (
        covariance / max((da.square().sum().item() * variance) ** 0.5, 1e-30)
        if free.mean() > 0.01
        else 0.0
    )
    slope = covariance / variance if correlation > EXACT else 0.0
    if linear:
        return correlation, slope
    in_order = a.gather(1, b.argsort(1))[:, : a.shape[1] // 16 * 16].reshape(len(a), -1, 16)
    spread = in_order.flatten(1).var(1).sum().item()
    explained = 1 - in_order.var(2).mean(1).sum().item() / max(spread, 1e-30)
    return max(correlation, max(explained, 0.0) ** 0.5 * (covariance > 0)), slope


def _constant(sizes: list[float]) -> bool:
    return bool(sizes) and max(sizes) - min(sizes) < 2e-2 * max(sizes)


def _sized(name: str, sizes: list[tuple[float, float]]) -> str:
    """Is x0_hat as large as it should be at every alpha_t? A common factor is fine: pictures
    come in several ranges."""
    slips = (0, name), (1, "x0_hat times alpha_t"), (-1, "x0_hat over alpha_t")
    fits = [
        slip
        for power, slip in slips
        if _constant([size / alpha_t**power for alpha_t, size in sizes])
    ]
    return fits[0] if fits and name.startswith("x0_hat") else name


def _scaled(decoded: list[float]) -> list[str]:
    """What the autoencoder decodes is x0_hat over its scaling factor."""
    if not _constant(decoded) or abs(decoded[0] * world.SCALING - 1) < 2e-2:
        return []
    right = f"latents / {world.SCALING} is expected, the autoencoder's scaling factor"
    return [f"vae.decode is given x0_hat times {decoded[0]:.3g}: {right}"]
