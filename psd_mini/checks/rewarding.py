"""The stand-in reward, and what it was shown: a preference method ranks pictures of x0_hat.

    R_i = r(decode(x0_hat_i)),    x0_hat_i = (x_t^i - sigma_t eps_cfg(x_t^i)) / alpha_t

Ranking anything else ranks noise. Pictures come in many forms: in -1..1 or 0..1, normalised for
CLIP, clamped, in another resolution. So what came is compared with what could have come up to an
affine map of each channel, where it is not clamped, at the middle of every latent pixel. The slope
of that map says whether alpha_t and the autoencoder's scaling factor are where they belong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from psd_mini.checks.exact_world import SCALING, alpha_at, alpha_sigma, normal
from psd_mini.checks.grading.stand_ins import VAE
from psd_mini.checks.probe import Trial
from psd_mini.checks.reading import Reading
from psd_mini.checks.report import Report
from psd_mini.checks.trace import current, flows
from psd_mini.sds import cfg

X0_HAT = "(x_t - sigma_t eps_cfg)/alpha_t"
NOISY = "the reward is shown the noisy x_t, which no reward model has ever seen"
RENDER = "the reward is shown the render itself, which is the same for both noises"
UNGUIDED = "the reward is shown x0_hat without guidance, while the gradient is guided"
SEEN = {  # what the reward may have been shown: what is wrong with it
    "x0_hat": "",
    "x0_hat times alpha_t": f"x0_hat is not divided by alpha_t: it is {X0_HAT}",
    "x0_hat over alpha_t": f"x0_hat is divided by alpha_t twice: it is {X0_HAT}",
    "x0_hat without guidance": UNGUIDED,
    "the noisy x_t": f"{NOISY}: denoise to x0_hat first",
    "x itself": f"{RENDER}: it must see x0_hat",
    "something else": f"the reward is not shown x0_hat = {X0_HAT}",
}
# resizing costs some likeness; a slope is read where the correlation lacks nothing
LIKE, EXACT = 0.9, 0.999


def reward(images: Tensor, *_: Any, **__: Any) -> Tensor:
    """A linear reward of pictures of any shape, (B,); it remembers what it was shown."""
    direction = normal(*images.shape[1:], seed=61).to(images)
    scores = 3 * (images * direction).flatten(1).sum(1) / direction.norm()
    if images.requires_grad:
        images.retain_grad()
    current().rewarded.append((images, scores.detach()))
    return scores


class Seen(NamedTuple):
    """A picture that the reward was shown.

    name: what it is like, a key of SEEN. picture, noise: whose. likeness, slope: see `_alike`.
    """

    score: float
    name: str
    picture: int
    noise: int
    likeness: float
    slope: float


def seen_by_reward(trial: Trial) -> list[Seen]:
    """Everything that the reward was shown in a trial."""
    candidates = []
    for b, reading in enumerate(trial.readings):
        candidates += [(name, b, i, latents) for name, i, latents in _candidates(reading)]
    found = []
    for images, values in trial.trace.rewarded:
        for image, value in zip(images.detach().double(), values.tolist(), strict=True):
            best = max((_alike(image, z, linear=True), name, b, i) for name, b, i, z in candidates)
            if not best[0][1]:  # no exact affine map: any function will do
                best = max((_alike(image, z), name, b, i) for name, b, i, z in candidates)
            (likeness, slope), name, b, i = best
            name = name if likeness > LIKE else "something else"
            found.append(Seen(value, name, b, i, likeness, slope))
    return found


def rewards_of(trial: Trial, shown: list[Seen]) -> list[Tensor | None]:
    """R_i of the noised versions of each picture, (N,); None where one was not asked for."""
    found: list[Tensor | None] = []
    for b, reading in enumerate(trial.readings):
        scores = {seen.noise: seen.score for seen in shown if seen.picture == b}
        rewards = torch.tensor([scores[i] for i in sorted(scores)]).double()
        found.append(rewards if len(scores) == len(reading.groups) else None)
    return found


def judge_reward(report: Report, trials: list[Trial]) -> list[tuple[Reading, Tensor]]:
    """Add the rows on what the reward saw; returns the readings with their groups' rewards."""
    scored, names, slopes, decoded = [], set(), [], []
    for trial in trials:
        reading, all_seen = trial.readings[0], seen_by_reward(trial)
        names |= {seen.name for seen in all_seen}
        alpha_t = alpha_at(reading.t)
        slopes += [(alpha_t, seen.slope) for seen in all_seen if seen.slope]
        decoded += _decoded_slopes(trial)
        rewards = rewards_of(trial, all_seen)[0]
        if rewards is not None:
            scored.append((reading, rewards))
    names = {_sized(name, slopes) for name in names}
    causes = [SEEN[name] for name in sorted(names) if SEEN[name]]
    if not names:
        causes = ["the reward is never asked"]
    causes = causes or _scaled(decoded)
    status = "note" if names == {"x0_hat without guidance"} else not causes
    came = ", ".join(sorted(names)) or "nothing"
    if names == {"x0_hat"} and not slopes:
        came += ", its size cannot be read"
    equation = "R_i = r(decode(x0_hat_i))"
    report.add(status, "reward sees", came, "x0_hat", "; ".join(causes), equation)
    leaks = any(flows(images) for trial in trials for images, _ in trial.trace.rewarded)
    came = "differentiated" if leaks else "yes"
    cause = "the reward is differentiated: it should only be compared, under no_grad"
    report.add(not leaks, "reward is compared only", came, "yes", cause)
    return scored


def _decoded_slopes(trial: Trial) -> list[float]:
    """Size of every x0_hat that the autoencoder was given to decode."""
    slopes = []
    for latents in trial.trace.decoded:
        for z in latents.detach().double():
            candidates = _candidates(trial.readings[0])
            (_, slope), name = max((_alike(z, c, linear=True), name) for name, _, c in candidates)
            if slope and name.startswith("x0_hat"):
                slopes.append(slope)
    return slopes


def _candidates(reading: Reading) -> list[tuple[str, int, Tensor]]:
    """What a reward could be shown: (a key of SEEN, which noise, latents)."""
    found = [("x itself", 0, reading.x)]
    for i, group in enumerate(reading.groups):
        alpha_t, sigma_t = alpha_sigma(round(group.t))
        found.append(("the noisy x_t", i, group.x_t))
        cond = group.eps_hat.get("cond")
        if cond is not None:
            guided = cfg(cond, group.eps_hat.get("uncond", cond), reading.g)
            for name, e in (("x0_hat", guided), ("x0_hat without guidance", cond)):
                found.append((name, i, (group.x_t - sigma_t * e) / alpha_t))
    return found


def _alike(image: Tensor, latents: Tensor, linear: bool = False) -> tuple[float, float]:
    """How well a picture (C, H, W) is explained by latents (4, h, w), or by what they decode to.

    Returns:
        likeness: the larger of two: the correlation where the picture is not clamped, and the root
            of the share of variance that any function of the latents, pixel by pixel, explains
            (correlation ratio; not with linear=True).
        slope: of the picture against the latents; 0 where it is not exact.
    """
    if len(image) == 3:
        latents = torch.einsum("lc,lhw->chw", VAE.mix, latents)
    if image.ndim != 3 or len(image) != len(latents):
        return 0.0, 0.0
    if image.shape[-1] < latents.shape[-1]:
        latents = F.interpolate(latents[None], size=image.shape[1:], mode="area")[0]
    else:  # the decoder makes even blocks; the middle of one stays what it is in a resized picture
        image = F.interpolate(image[None], size=latents.shape[1:], mode="nearest-exact")[0]
    a, b = image.flatten(1), latents.flatten(1)
    if a.shape[1] < 256:
        return 0.0, 0.0
    free = torch.ones_like(a)
    # a channel's extreme value that comes more than once was clamped
    for extreme in (a.amin(1, keepdim=True), a.amax(1, keepdim=True)):
        there = a == extreme
        free *= ~there | (there.sum(1, keepdim=True) == 1)
    count = free.sum(1, keepdim=True).clamp(min=1)
    da, db = (free * (v - (free * v).sum(1, keepdim=True) / count) for v in (a, b))
    covariance, variance = (da * db).sum().item(), db.square().sum().item()
    spread = max((da.square().sum().item() * variance) ** 0.5, 1e-30)
    correlation = covariance / spread if free.mean() > 0.01 else 0.0
    slope = covariance / variance if correlation > EXACT else 0.0
    if linear:
        return correlation, slope
    return max(correlation, _correlation_ratio(a, b) * (covariance > 0)), slope


def _correlation_ratio(a: Tensor, b: Tensor) -> float:
    """Root of the share of a's variance that any function of b explains, from 16 neighbours."""
    in_order = a.gather(1, b.argsort(1))[:, : a.shape[1] // 16 * 16].reshape(len(a), -1, 16)
    spread = in_order.flatten(1).var(1).sum().item()
    explained = 1 - in_order.var(2).mean(1).sum().item() / max(spread, 1e-30)
    return max(explained, 0.0) ** 0.5


def _constant(slopes: list[float]) -> bool:
    return bool(slopes) and max(slopes) - min(slopes) < 2e-2 * max(slopes)


def _sized(name: str, slopes: list[tuple[float, float]]) -> str:
    """Is x0_hat as large as it should be at every alpha_t? A common factor is fine."""
    if name.startswith("x0_hat"):
        for power, slip in ((0, name), (1, "x0_hat times alpha_t"), (-1, "x0_hat over alpha_t")):
            if _constant([slope / alpha_t**power for alpha_t, slope in slopes]):
                return slip
    return name


def _scaled(decoded: list[float]) -> list[str]:
    """What the autoencoder decodes is x0_hat over its scaling factor."""
    if not _constant(decoded) or abs(decoded[0] * SCALING - 1) < 2e-2:
        return []
    right = f"latents / {SCALING} is expected, the autoencoder's scaling factor"
    return [f"vae.decode is given x0_hat times {decoded[0]:.3g}: {right}"]
