"""Submissions in styles that no other file has, with the verdicts that mathematics gives them.

They were written before the checker was rebuilt on tables. TABLES maps a name to (kind,
submission, status, words): "right" is w(t) times the gradient for any positive w(t), "scaled" a
constant times that, everything else "wrong".
"""

import torch
import torch.nn.functional as F
from submissions import levels
from submissions_preference import psd_args

TABLES: dict = {}


def handed_in(kind, status, *words):
    def add(fn):
        TABLES[fn.__name__] = (kind, fn, status, words)
        return fn

    return add


def formula(fn):
    """Give a formula of (cond, uncond, eps, g, a, s, x) the documented signature."""

    def submission(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
        a, s = levels(alphas_cumprod, t)
        with torch.no_grad():
            x_t = a * x + s * eps
            c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
        return fn(c, u, eps, guidance_scale, a, s, x)

    submission.__name__ = fn.__name__
    return submission


# ---------------------------------------------------------------------------------- SDS, right


@handed_in("sds", "right")
def opposite_noises(x, t, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    """The mean over eps and -eps, from one batch of four predictions."""
    a, s = levels(alphas_cumprod, t)
    eps, n = torch.randn_like(x), len(x)
    with torch.no_grad():
        x_t = torch.cat((a * x + s * eps, a * x - s * eps)).repeat(2, 1, 1, 1)
        asked = torch.cat((cond, cond, uncond, uncond))
        c, u = predict_noise(x_t, t.repeat(4), asked).chunk(2)
    residual = u + guidance_scale * (c - u) - torch.cat((eps, -eps))
    return residual.view(2, n, *x.shape[1:]).mean(0)


@handed_in("sds", "right")
def enters_at_x_t(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    """The surrogate loss stands at x_t: w(t) has an alpha_t in it."""
    a, s = levels(alphas_cumprod, t)
    x_t = a * x + s * eps
    with torch.no_grad():
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
        residual = torch.lerp(u, c, guidance_scale) - eps
    return (x_t * residual).sum() / len(x)


@handed_in("sds", "right")
@formula
def as_a_product_with_weights(c, u, eps, g, a, s, x):
    weights = torch.tensor([g, 1 - g, -1.0])
    return torch.tensordot(weights, torch.stack((c, u, eps)), dims=1)


@handed_in("sds", "right")
@formula
def residual_of_velocities(c, u, eps, g, a, s, x):
    """v = alpha_t eps - sigma_t x: the difference of two velocities is the residual / alpha_t."""
    e = u + g * (c - u)
    x0_hat = (a * x + s * eps - s * e) / a
    return (a * e - s * x0_hat) - (a * eps - s * x)


@handed_in("sds", "right")
@formula
def weight_of_nobody(c, u, eps, g, a, s, x):
    """min(SNR, 5) as w(t)."""
    return (a / s).square().clamp(max=5.0) * (u + g * (c - u) - eps)


@handed_in("sds", "right")
def scale_of_its_own(x, t, eps, predict_noise, cond, uncond, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    with torch.no_grad():
        x_t = a * x + s * eps
        residuals = [predict_noise(x_t, t, e) - eps for e in (uncond, cond)]
    return s**2 * (101 * residuals[1] - 100 * residuals[0])


# ---------------------------------------------------------------------------------- SDS, scaled


@handed_in("sds", "scaled", "mean over pixels")
@formula
def mean_over_pixels(c, u, eps, g, a, s, x):
    return s**2 * (u + g * (c - u) - eps) / (64 * 64)


@handed_in("sds", "scaled", "4/16384")
def twice_the_mean_of_squares(
    x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod
):
    a, s = levels(alphas_cumprod, t)
    with torch.no_grad():
        x_t = a * x + s * eps
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
        target = x - (u + guidance_scale * (c - u) - eps)
    return 2 * ((x - target) ** 2).mean((1, 2, 3)).sum()


@handed_in("sds", "scaled", "0.1429 times")
@formula
def seventh(c, u, eps, g, a, s, x):
    return (u + g * (c - u) - eps) / 7


# ---------------------------------------------------------------------------------- SDS, wrong


@handed_in("sds", "wrong", "subtracted twice")
@formula
def noise_subtracted_twice(c, u, eps, g, a, s, x):
    return u + g * (c - u) - 2 * eps


@handed_in("sds", "wrong", "multiplied by g")
@formula
def noise_is_guided(c, u, eps, g, a, s, x):
    return u + g * (c - u - eps)


@handed_in("sds", "wrong", "swapped")
@formula
def residuals_swapped(c, u, eps, g, a, s, x):
    return (c - eps) + g * ((u - eps) - (c - eps))


@handed_in("sds", "wrong", "clamped")
@formula
def clamped(c, u, eps, g, a, s, x):
    return (u + g * (c - u) - eps).clamp(-1, 1)


@handed_in("sds", "wrong", "residual is taken at x_t")
def noisy_target_on_the_graph(
    x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod
):
    """x - (x_t - G), and x_t is not detached: everything carries 1 - alpha_t."""
    a, s = levels(alphas_cumprod, t)
    x_t = a * x + s * eps
    with torch.no_grad():
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
        grad = s**2 * (u + guidance_scale * (c - u) - eps)
    return 0.5 * (x - (x_t - grad)).square().sum() / len(x)


@handed_in("sds", "wrong", "came at t = ")
def noised_ten_steps_later(x, t, eps, predict_noise, cond, uncond, guidance_scale, scheduler):
    with torch.no_grad():
        x_t = scheduler.add_noise(x, eps, t + 10)
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
    return u + guidance_scale * (c - u) - eps


@handed_in("sds", "wrong", "ascent", "mean over elements")
def climbs_slowly(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    with torch.no_grad():
        x_t = a * x + s * eps
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
    return -F.mse_loss(x, (x - (u + guidance_scale * (c - u) - eps)).detach()) / 2


# ---------------------------------------------------------------------------------- CSD and VSD


@handed_in("csd", "right")
@formula
def difference_of_residuals(c, u, eps, g, a, s, x):
    return s * ((c - eps) - (u - eps))


@handed_in("csd", "wrong", "CSD is the difference")
@formula
def guided_without_noise(c, u, eps, g, a, s, x):
    return g * c - u


@torch.no_grad()
def three_predictions(x, t, eps, unet, q, cond, uncond, scheduler):
    x_t = scheduler.add_noise(x, eps, t)
    return unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample, q(x_t, t, cond).sample


@handed_in("vsd", "scaled", "mean over elements")
def vsd_averaged(x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale):
    c, u, q = three_predictions(x, t, eps, unet, unet_lora, cond, uncond, scheduler)
    return ((guidance_scale * c + (1 - guidance_scale) * u - q) * x).mean((1, 2, 3)).sum()


@handed_in("vsd", "wrong", "added instead of subtracted")
def vsd_adds_q(x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale):
    c, u, q = three_predictions(x, t, eps, unet, unet_lora, cond, uncond, scheduler)
    return u + guidance_scale * (c - u) + q


@handed_in("vsd", "wrong", "noise appears beside q")
def half_vsd(x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale):
    c, u, q = three_predictions(x, t, eps, unet, unet_lora, cond, uncond, scheduler)
    return u + guidance_scale * (c - u) - (q + eps) / 2


# ---------------------------------------------------------------------------------- pairs


@handed_in("psd", "right")
@psd_args
def weights_gathered(h, predictions, r, noises, lam):
    """1/2 + lambda for the winner, 1/2 - lambda for the loser, put in place by an index."""
    rewards, residuals = torch.stack(r), torch.stack(h)
    weights = torch.full_like(rewards, 0.5 - lam)
    weights.scatter_(0, rewards.argmax(0, keepdim=True), 0.5 + lam)
    return (weights * residuals).sum(0)


@handed_in("psd", "scaled", "mean over elements")
@psd_args
def averaged_pair(h, predictions, r, noises, lam):
    pull = lam * torch.tanh((r[0] - r[1]) / 2) * (h[0] - h[1])
    return ((h[0] + h[1]) / 2 + pull) / h[0][0].numel()


@handed_in("psd", "wrong", "sigma_t")
def reward_of_a_picture_without_sigma(
    x, t, eps_1, eps_2, predict_noise, cond, uncond, reward, guidance_scale, lam, alphas_cumprod
):
    a, s = levels(alphas_cumprod, t)
    h, r = [], []
    with torch.no_grad():
        for eps in (eps_1, eps_2):
            x_t = a * x + s * eps
            u = predict_noise(x_t, t, uncond)
            e = u + guidance_scale * (predict_noise(x_t, t, cond) - u)
            r.append(reward((x_t - e) / a).view(-1, 1, 1, 1))
            h.append(e - eps)
    return (h[0] + h[1]) / 2 + lam * torch.sign(r[0] - r[1]) * (h[0] - h[1])


@handed_in("psd", "wrong", "not shown x0_hat")
def reward_of_a_picture_at_another_t(
    x, t, eps_1, eps_2, predict_noise, cond, uncond, reward, guidance_scale, lam, alphas_cumprod
):
    """x0_hat with the levels of t - 100: the reward sees a picture that nobody predicted."""
    (a, s), (a_2, s_2) = levels(alphas_cumprod, t), levels(alphas_cumprod, t - 100)
    h, r = [], []
    with torch.no_grad():
        for eps in (eps_1, eps_2):
            x_t = a * x + s * eps
            u = predict_noise(x_t, t, uncond)
            e = u + guidance_scale * (predict_noise(x_t, t, cond) - u)
            r.append(reward((x_t - s_2 * e) / a_2).view(-1, 1, 1, 1))
            h.append(e - eps)
    return (h[0] + h[1]) / 2 + lam * torch.sign(r[0] - r[1]) * (h[0] - h[1])


# ---------------------------------------------------------------------------------- other kinds


@handed_in("renderer", "right")
def optical_depth(density, colour, deltas, background):
    """T_i - T_{i+1} as weights, from the depth at both ends of every sample."""
    depth = F.pad((density * deltas).cumsum(-1), (1, 0))
    weights = -torch.exp(-depth).diff(dim=-1)
    left = torch.exp(-depth[:, -1:])
    return torch.bmm(weights[:, None], colour)[:, 0] + left * background


@handed_in("renderer", "wrong", "last sample")
def background_before_the_last_sample(density, colour, deltas, background):
    passed = torch.exp(-density * deltas)
    light = F.pad(passed.cumprod(-1)[:, :-1], (1, 0), value=1.0)
    rgb = ((light * (1 - passed))[..., None] * colour).sum(1)
    return rgb + light[:, -1:] * background


@handed_in("renderer", "wrong", "previous")
def width_of_the_previous_sample(density, colour, deltas, background):
    passed = torch.exp(-density * deltas.roll(1, -1))
    light = F.pad(passed.cumprod(-1), (1, 0), value=1.0)
    rgb = ((light[:, :-1] * (1 - passed))[..., None] * colour).sum(1)
    return rgb + light[:, -1:] * background


def composed(weights=None, behind=None, shade=torch.sigmoid):
    """A renderer with one piece replaced; of alpha, and of the light before each sample."""
    weights = weights or (lambda light, alpha: light * alpha)
    behind = behind or (lambda light, alpha: (light * (1 - alpha))[:, -1:])

    def submission(density, colour, deltas, background):
        alpha = 1 - torch.exp(-density * deltas)
        light = F.pad((1 - alpha).cumprod(-1)[:, :-1], (1, 0), value=1.0)
        rgb = (weights(light, alpha)[..., None] * shade(colour)).sum(1)
        return rgb + behind(light, alpha) * background

    return submission


RENDERERS = {  # neighbours of a background that is seen through the last sample
    "clamped sum": (
        composed(None, lambda light, alpha: 1 - alpha.sum(-1, True).clamp(max=1), torch.clone),
        "clamped sum of alphas",
    ),
    "T - alpha": (composed(torch.sub, None, torch.clone), "T - alpha"),
    "mean": (
        composed(lambda light, alpha: light * alpha / 12, None, torch.clone),
        "mean over samples",
    ),
    "sigmoid twice": (composed(), "sigmoid twice"),
    "opacity for transparency": (
        composed(None, lambda light, alpha: (light * alpha).sum(-1, True), torch.clone),
        "multiplied by the opacity",
    ),
}


@handed_in("schedule", "right")
def sum_of_logarithms(betas):
    return torch.log1p(-betas).cumsum(0).exp()


@handed_in("schedule", "wrong", "uniform")
def noise_of_its_own(x, t, eps, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    return a * x + s * torch.rand_like(x)


@handed_in("schedule", "wrong", "over beta")
def one_minus_the_product(betas):
    return 1 - torch.cumprod(betas, 0)


@handed_in("negative-embedding", "right")
def loss_by_hand(x, t, eps, predict_noise, cond, n, reward, guidance_scale, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    x_t = (a * x + s * eps).detach()
    with torch.no_grad():
        c = predict_noise(x_t, t, cond)
    guided = guidance_scale * c - (guidance_scale - 1) * predict_noise(x_t, t, n)
    return -reward(x_t / a - guided * (s / a)).sum() / len(x)


@handed_in("negative-embedding", "wrong", "sigma_t is missing")
def negative_without_sigma(
    x, t, eps, predict_noise, cond, n, reward, guidance_scale, alphas_cumprod
):
    a, s = levels(alphas_cumprod, t)
    x_t = (a * x + s * eps).detach()
    with torch.no_grad():
        c = predict_noise(x_t, t, cond)
    e = predict_noise(x_t, t, n)
    return -reward((x_t - e - guidance_scale * (c - e)) / a).mean()
