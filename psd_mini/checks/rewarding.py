"""The stand-in reward, and what it was shown: a preference method ranks pictures of x0_hat.

    R_i = r(decode(x0_hat_i)),    x0_hat_i = (x_t^i - sigma_t eps_cfg(x_t^i)) / alpha_t

Ranking anything else ranks noise. What came is taken apart like a gradient, into x_t, the
predictions and x, and compared with the rows of PICTURES. Pictures come in many forms: in -1..1 or
0..1, normalised for CLIP, clamped, in another resolution. So each channel is centred, clamped
elements do not count, and of every latent pixel the middle is taken. A picture that is still no
combination of these vectors is called after the one that it is most like.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from psd_mini.checks.exact_world import SCALING, SHAPE, normal
from psd_mini.checks.grading.stand_ins import VAE
from psd_mini.checks.probe import Trial
from psd_mini.checks.reading import Reading, cosine, fit, in_numbers
from psd_mini.checks.report import Ok, Report
from psd_mini.checks.tables import Row, causes_of, named
from psd_mini.checks.trace import current, flows

X0_HAT = "(x_t - sigma_t eps_cfg)/alpha_t"
NOISY = "the reward is shown the noisy x_t, which it has never seen: denoise to x0_hat first"
RENDER = "the reward is shown the render itself, the same for both noises: it must see x0_hat"
UNGUIDED = "the reward is shown x0_hat without guidance, while the gradient is guided"
UNPROMPTED = f"{UNGUIDED}, and of the unconditional prediction: the prompt has no say"
UNDIVIDED = f"x0_hat is not divided by alpha_t: it is {X0_HAT}"
DIVIDED_TWICE = f"x0_hat is divided by alpha_t twice: it is {X0_HAT}"
OTHER = f"the reward is not shown x0_hat = {X0_HAT}"


LABELS = ("x_t", "cond", "uncond", "x")  # what a picture is made of
X_T, COND, UNCOND, X = torch.eye(len(LABELS), dtype=torch.float64)


def _denoised(x_t: float, e: float, g: float) -> Tensor:
    """Coefficients, by LABELS, of x_t and the guided prediction."""
    return x_t * X_T + e * (g * COND + (1 - g) * UNCOND)


PICTURES = [  # of alpha_t, sigma_t, g: what the reward may have been shown
    Row("x0_hat", lambda a, s, g: _denoised(1 / a, -s / a, g)),
    Row("x0_hat times alpha_t", lambda a, s, g: _denoised(1, -s, g), UNDIVIDED),
    Row("x0_hat over alpha_t", lambda a, s, g: _denoised(1 / a**2, -s / a**2, g), DIVIDED_TWICE),
    Row("x0_hat without guidance", lambda a, s, g: _denoised(1 / a, -s / a, 1), UNGUIDED),
    Row("x0_hat of no prompt", lambda a, s, g: _denoised(1 / a, -s / a, 0), UNPROMPTED),
    Row("without sigma_t", lambda a, s, g: _denoised(1, -1, g), f"{OTHER}: sigma_t is missing"),
    Row("of abar_t", lambda a, s, g: _denoised(1, -s * s, g), f"{OTHER}: roots are missing"),
    Row("swapped", lambda a, s, g: _denoised(1, -a, g), f"{OTHER}: alpha_t for sigma_t"),
    Row("the noisy x_t", lambda a, s, g: X_T, NOISY),
    Row("x itself", lambda a, s, g: X, RENDER),
    Row("the prediction", lambda a, s, g: _denoised(0, 1, g), f"{OTHER} but a noise prediction"),
]
# clamping costs some likeness; a picture is a combination of vectors where nothing else is left
LIKE, EXACT = 0.8, 3e-3
SPREAD = 4e-4  # relative, of coefficients: one step of t changes them by twice as much
LIKELY = ("x0_hat", "x0_hat without guidance", "the noisy x_t", "x itself")  # told by likeness


def reward(images: Tensor, *_: Any, **__: Any) -> Tensor:
    """A linear reward of pictures of any shape, (B,); it remembers what it was shown."""
    direction = normal(*images.shape[1:], seed=61).to(images)
    scores = 3 * (images * direction).flatten(1).sum(1) / direction.norm()
    if images.requires_grad:
        images.retain_grad()
    current().rewarded.append((images, scores.detach()))
    return scores


class Seen(NamedTuple):
    """A picture that the reward was shown, or latents that were decoded.

    reading, noise: whose x0_hat it is. terms: its coefficients by LABELS, empty where it is no
    combination. like: name of the row of PICTURES that it is like, where it has no coefficients.
    """

    score: float
    reading: Reading
    noise: int = 0
    terms: Tensor = torch.empty(0)
    like: str = "something else"

    def wanted(self, row: Row) -> Tensor:
        """The coefficients that a row of PICTURES gives here, by LABELS."""
        group = self.reading.groups[self.noise]
        terms = row.value(group.a or 1e-30, group.s or 1e-30, self.reading.g)
        if "uncond" not in group.eps_hat:  # who asks one prompt has one prediction
            terms = terms * (1 - UNCOND) + terms[2] * COND
        return terms


def seen_by_reward(trial: Trial) -> list[Seen]:
    """Everything that the reward was shown in a trial."""
    found = []
    for images, values in trial.trace.rewarded:
        for image, value in zip(images.detach().double(), values.tolist(), strict=True):
            found.append(_recognised(image, value, trial.readings))
    return found


def _recognised(image: Tensor, score: float, readings: list[Reading]) -> Seen:
    """Whose picture it is and what is in it: exactly, or by likeness."""
    seen, rest, likeness = Seen(score, readings[0]), EXACT, LIKE
    if image.ndim != 3 or len(image) not in (3, 4) or image[0].numel() < 256:
        return seen
    picture, free = _pixels(image)
    everywhere = torch.ones_like(picture)
    places = [(reading, i) for reading in readings for i in range(len(reading.groups))]
    for reading, i in places if free.mean() > 0.01 else []:
        columns = [_centred(_decoded_as(image, z), free) for z in _vectors(reading, i)]
        terms, left = fit(_centred(picture, free), columns)
        if left < rest:
            seen, rest = Seen(score, reading, i, torch.tensor(terms).double(), ""), left
    for reading, i in [] if len(seen.terms) else places:
        for name in LIKELY:
            candidate = Seen(score, reading, i, like=name)
            coefficients = candidate.wanted(named(PICTURES, name))
            latents = torch.einsum("v,vchw->chw", coefficients, torch.stack(_vectors(reading, i)))
            latents = _decoded_as(image, latents)
            like = cosine(_centred(picture, everywhere), _centred(latents, everywhere))
            if like > likeness:
                seen, likeness = candidate, like
    return seen


def _vectors(reading: Reading, i: int) -> list[Tensor]:
    """What a picture of one noised version can be made of, by LABELS; zeros were not asked for."""
    group = reading.groups[i]
    asked = [group.eps_hat.get(label, 0 * group.x_t) for label in ("cond", "uncond")]
    return [group.x_t, *asked, reading.x]


def _pixels(image: Tensor) -> tuple[Tensor, Tensor]:
    """A picture (C, H, W) as (C, pixels), at most one for each latent; 1 where it is not clamped.

    The decoder makes even blocks: the middle of one stays what it is in a resized picture.
    """
    if image.shape[-1] > SHAPE[-1]:
        image = F.interpolate(image[None], size=SHAPE[1:], mode="nearest-exact")[0]
    a = image.flatten(1)
    free = torch.ones_like(a)
    # a channel's extreme value that comes more than once was clamped
    for extreme in (a.amin(1, keepdim=True), a.amax(1, keepdim=True)):
        there = a == extreme
        free *= ~there | (there.sum(1, keepdim=True) == 1)
    return a, free


def _decoded_as(image: Tensor, latents: Tensor) -> Tensor:
    """Latents (4, h, w), or what they decode to, as the pixels of this picture."""
    if len(image) == 3:
        latents = torch.einsum("lc,lhw->chw", VAE.mix, latents)
    if image.shape[-1] < latents.shape[-1]:
        latents = F.interpolate(latents[None], size=image.shape[1:], mode="area")[0]
    return latents.flatten(1)


def _centred(v: Tensor, free: Tensor) -> Tensor:
    """Each channel minus its mean, over the elements that count; 0 elsewhere."""
    count = free.sum(1, keepdim=True).clamp(min=1)
    return free * (v - (free * v).sum(1, keepdim=True) / count)


def rewards_of(trial: Trial, shown: list[Seen]) -> list[Tensor | None]:
    """R_i of the noised versions of each picture, (N,); None where one was not asked for."""
    found: list[Tensor | None] = []
    for reading in trial.readings:
        scores = {seen.noise: seen.score for seen in shown if seen.reading is reading}
        rewards = torch.tensor([scores[i] for i in sorted(scores)]).double()
        found.append(rewards if len(scores) == len(reading.groups) else None)
    return found


def judge_reward(report: Report, trials: list[Trial]) -> list[tuple[Trial, Tensor]]:
    """Add the rows on what the reward saw; returns the trials with their noises' rewards."""
    scored, shown, decoded = [], [], []
    for trial in trials:
        here = seen_by_reward(trial)
        shown += here
        for latents in trial.trace.decoded:
            for z in latents.detach().double():
                decoded.append(_recognised(z, 0.0, trial.readings[:1]))
        rewards = rewards_of(trial, here)[0]
        if rewards is not None:
            scored.append((trial, rewards))
    decoded = [seen for seen in decoded if len(seen.terms)]
    status, came, cause = _what_it_saw(shown, decoded)
    report.add(status, "reward sees", came, "x0_hat", cause, "R_i = r(decode(x0_hat_i))")
    leaks = any(flows(images) for trial in trials for images, _ in trial.trace.rewarded)
    came = "differentiated" if leaks else "yes"
    cause = "the reward is differentiated: it should only be compared, under no_grad"
    report.add(not leaks, "reward is compared only", came, "yes", cause)
    return scored


def _what_it_saw(shown: list[Seen], decoded: list[Seen]) -> tuple[Ok, str, str]:
    """Status, what came and what is wrong with it."""
    names, parts = {seen.like for seen in shown}, [s for s in shown if len(s.terms)]
    rows = [row for row in PICTURES if row.name in names]
    if parts:
        rows.append(_row_of(parts) or _another_mixture(parts[0]))
    if "something else" in names:
        rows.append(Row("something else", dict, OTHER))
    if not rows:
        return False, "nothing", "the reward is never asked"
    came = ", ".join(dict.fromkeys(row.name for row in rows))
    causes = list(dict.fromkeys(causes_of(rows)))
    if causes == [UNGUIDED]:
        return "note", came, UNGUIDED
    if not causes and not parts:
        came += ", its size cannot be read"
    size = _scale_of(PICTURES[0], decoded)
    if not causes and size and abs(size * SCALING - 1) > 2e-2:
        right = f"latents / {SCALING} is expected, the autoencoder's scaling factor"
        causes = [f"vae.decode is given x0_hat times {size:.3g}: {right}"]
    return not causes, came, "; ".join(causes)


def _row_of(parts: list[Seen]) -> Row | None:
    """The row of PICTURES that all pictures are; of one size for all t, or else of any size."""
    for spread in (SPREAD, math.inf):
        for row in PICTURES:
            if _scale_of(row, parts, spread) is not None:
                return row
    return None


def _another_mixture(seen: Seen) -> Row:
    """What a picture is that no row is: x_t minus the guided prediction times another number?"""
    x_t, cond, uncond, _ = terms = seen.terms.tolist()
    x_t, cause = x_t or 1e-30, OTHER
    number = -(cond + uncond) / x_t
    wanted = seen.wanted(Row("", lambda a, s, g: _denoised(x_t, -x_t * number, g)))
    if (seen.terms - wanted).abs().max() < 1e-2 * abs(x_t):
        cause += f", but x_t - {number:.4g} eps_cfg at t = {seen.reading.t}, where sigma_t is"
        cause += f" {seen.reading.groups[seen.noise].s:.4g}: at the level of another t?"
    return Row(in_numbers(dict(zip(LABELS, terms, strict=True))), dict, cause)


def _scale_of(row: Row, parts: list[Seen], spread: float = SPREAD) -> float | None:
    """By how much all these pictures are larger than the row's; None where they are others."""
    sizes = []
    for seen in parts:
        (size,), left = fit(seen.terms, [seen.wanted(row)])
        if size <= 0 or left > SPREAD:
            return None
        sizes.append(size)
    if not sizes or max(sizes) - min(sizes) > spread * max(sizes):
        return None
    return sizes[0]
