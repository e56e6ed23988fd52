"""More `submissions`: preference pairs, negative embeddings, renderers and schedules."""

import torch
import torch.nn.functional as F
from submissions import levels, right, wrong

from psd_mini.checks.grading.stand_ins import VAE

PAIR = (
    "x, t, eps_1, eps_2, predict_noise, cond, uncond, reward, guidance_scale, preference_weight,"
    " alphas_cumprod"
)


def for_clip(latents):
    """What a reward model on CLIP is shown: decoded, clamped to 0..1, 224 x 224, normalised."""
    image = (VAE().decode(latents / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    image = F.interpolate(image, size=224, mode="bicubic", antialias=True)
    mean, std = torch.tensor([[0.4815, 0.4578, 0.4082], [0.2686, 0.2613, 0.2758]]).view(2, 3, 1, 1)
    return (image - mean) / std


# pictures for a reward, of x, x_t, the signal alpha_t x0_hat, and alpha_t
SHOWN = {
    "x0": lambda x, x_t, signal, a: signal / a,
    "x0_in_0_1": lambda x, x_t, signal, a: signal / a / 2 + 0.5,
    "x0_clamped": lambda x, x_t, signal, a: (signal / a).clamp(-1, 1),
    "x0_resized": lambda x, x_t, signal, a: F.interpolate(signal / a, size=224, mode="bilinear"),
    "x0_small": lambda x, x_t, signal, a: F.interpolate(signal / a, size=32, mode="area"),
    "x0_squashed": lambda x, x_t, signal, a: torch.tanh(signal / a / 2),
    "x0_for_clip": lambda x, x_t, signal, a: for_clip(signal / a),
    "x0_decoded_unscaled": lambda x, x_t, signal, a: VAE().decode(signal / a).sample / 2 + 0.5,
    "x0_negated": lambda x, x_t, signal, a: torch.tanh(-signal / a),
    "x0_without_alpha": lambda x, x_t, signal, a: signal,
    "x0_without_alpha_clamped": lambda x, x_t, signal, a: signal.clamp(-1, 1),
    "x0_over_alpha": lambda x, x_t, signal, a: signal / a**2,
    "x_t": lambda x, x_t, signal, a: x_t,
    "x_t_for_clip": lambda x, x_t, signal, a: for_clip(x_t),
    "x": lambda x, x_t, signal, a: x,
}


@torch.no_grad()
def pair(x, t, noises, net, cond, uncond, reward, g, abar, loser_guided=True, shown="x0"):
    """Residuals h_i, noise predictions and rewards of two noises."""
    a, s = levels(abar, t)
    h, predictions, rewards = [], [], []
    for eps in noises:
        x_t = a * x + s * eps
        c, u = net(x_t, t, cond), net(x_t, t, uncond)
        e = u + g * (c - u)
        rewards.append(reward(SHOWN[shown](x, x_t, x_t - s * e, a)).view(-1, 1, 1, 1))
        predictions.append((c, e))
        h.append(e - eps)
    return h, predictions, rewards


def psd_args(fn):
    """Give a formula of (h, predictions, rewards, noises, lam) the documented signature."""

    def submission(
        x,
        t,
        eps_1,
        eps_2,
        predict_noise,
        cond,
        uncond,
        reward,
        guidance_scale,
        preference_weight,
        alphas_cumprod,
    ):
        noises = eps_1, eps_2
        h, predictions, rewards = pair(
            x, t, noises, predict_noise, cond, uncond, reward, guidance_scale, alphas_cumprod
        )
        return fn(h, predictions, rewards, noises, preference_weight)

    submission.__name__ = fn.__name__
    return submission


@right("psd")
@psd_args
def psd_hard(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + lam * torch.sign(r[0] - r[1]) * (h[0] - h[1])


@right("psd")
@psd_args
def psd_bt_by_argmax(h, predictions, r, noises, lam):
    winner, loser = torch.where(r[0] > r[1], h[0], h[1]), torch.where(r[0] > r[1], h[1], h[0])
    return 0.5 * (winner + loser) + lam * (2 * torch.sigmoid((r[0] - r[1]).abs()) - 1) * (
        winner - loser
    )


@right("psd")
def psd_antithetic_loss(
    latents, text_embeddings, uncond_embeddings, unet, scheduler, vae, reward, guidance_scale, lam
):
    t = torch.randint(100, 900, (len(latents),))
    eps = torch.randn_like(latents)
    s = (1 - scheduler.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    a = scheduler.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    h, r = [], []
    with torch.no_grad():
        for e in (eps, -eps):
            x_t = scheduler.add_noise(latents, e, t)
            c = unet(x_t, t, encoder_hidden_states=text_embeddings).sample
            u = unet(x_t, t, encoder_hidden_states=uncond_embeddings).sample
            guided = u + guidance_scale * (c - u)
            h.append(guided - e)
            r.append(reward(vae.decode((x_t - s * guided) / a / 0.18215).sample))
        grad = s**2 * (
            (h[0] + h[1]) / 2 + lam * s * torch.sign(r[0] - r[1]).view(-1, 1, 1, 1) * (h[0] - h[1])
        )
    return (grad * latents).sum()


@wrong("psd", "the preference term is twice lambda omega")
@psd_args
def psd_twice(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + 2 * lam * torch.tanh((r[0] - r[1]) / 2) * (h[0] - h[1])


@wrong("psd", "the preference term is half lambda omega")
@psd_args
def psd_half(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + lam * torch.sign(r[0] - r[1]) * (h[0] - h[1]) / 2


@wrong("psd", "preference_weight is ignored")
@psd_args
def psd_fixed_weight(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + 5 * torch.sign(r[0] - r[1]) * (h[0] - h[1])


@wrong("psd", "not proportional to preference_weight: 4.00 times")
@psd_args
def psd_squared_weight(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + lam**2 * torch.sign(r[0] - r[1]) * (h[0] - h[1])


@wrong("psd", "not proportional to preference_weight: 1.41 times")
@psd_args
def psd_one_plus_weight(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + (1 + lam) * torch.sign(r[0] - r[1]) * (h[0] - h[1])


@wrong("psd", "in a batch the winners are not those of the rewards")
@psd_args
def psd_winners_of_the_neighbour(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + lam * torch.sign(r[0] - r[1]).roll(1, 0) * (h[0] - h[1])


IN_A_BATCH = {
    "one winner for the whole batch": psd_args(
        lambda h, predictions, r, noises, lam: (
            (h[0] + h[1]) / 2 + lam * torch.sign((r[0] - r[1]).sum()) * (h[0] - h[1])
        )
    ),
    "give omega, weights and w(t) the shape (B, 1, 1, 1)": psd_args(
        lambda h, predictions, r, noises, lam: (
            (h[0] + h[1]) / 2 + lam * torch.sign(r[0] - r[1]).flatten() * (h[0] - h[1])
        )
    ),
}


@wrong("psd", "swapped")
@psd_args
def psd_swapped(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + lam * torch.sign(r[1] - r[0]) * (h[0] - h[1])


@wrong("psd", "raw form")
@psd_args
def psd_raw(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + lam * torch.sign(r[0] - r[1]) * (
        predictions[0][1] - predictions[1][1]
    )


def _based(name, base, omega):
    """PSD with another base: base(h_1, h_2, h_winner, h_loser)."""

    @psd_args
    def submission(h, predictions, r, noises, lam):
        gap = r[0] - r[1]
        winner, loser = (torch.where(gap > 0, a, b) for a, b in (h, h[::-1]))
        return base(*h, winner, loser) + lam * omega(gap) * (h[0] - h[1])

    submission.__name__ = f"psd_base_{name}"
    return submission


ONE_RESIDUAL = {
    "the first": (_based("first", lambda first, second, winner, loser: first, torch.sign), ""),
    "the first, weak": (
        _based(
            "first", lambda first, second, winner, loser: first, lambda gap: torch.tanh(gap / 2)
        ),
        "",
    ),
    "the second": (_based("second", lambda first, second, winner, loser: second, torch.sign), ""),
    "the winner's": (
        _based("winner", lambda first, second, winner, loser: winner, torch.sign),
        "lambda = 0",
    ),
    "the loser's": (
        _based("loser", lambda first, second, winner, loser: loser, torch.sign),
        "lambda = 0",
    ),
}
OWN_OMEGA = _based(
    "mean",
    lambda first, second, winner, loser: (first + second) / 2,
    lambda gap: gap.sign() * gap.abs() ** 0.5,
)


def _added(eps_1, eps_2):
    def submission(
        x, t, predict_noise, cond, uncond, reward, guidance_scale, preference_weight, alphas_cumprod
    ):
        e = torch.randn_like(x)
        noises = eps_1(e), eps_2(e)
        h, _, r = pair(
            x, t, noises, predict_noise, cond, uncond, reward, guidance_scale, alphas_cumprod
        )
        h = [residual + 2 * eps for residual, eps in zip(h, noises, strict=True)]
        return (h[0] + h[1]) / 2 + preference_weight * torch.sign(r[0] - r[1]) * (h[0] - h[1])

    submission.__name__ = "psd_noise_added" + "_to_an_antithetic_pair" * (eps_2 is torch.neg)
    return submission


wrong("psd", "the noise is added instead of subtracted")(_added(torch.clone, torch.randn_like))
wrong("psd", "the noise is added instead of subtracted")(_added(torch.clone, torch.neg))


@wrong("psd", "base is missing")
@psd_args
def psd_no_base(h, predictions, r, noises, lam):
    return lam * torch.sign(r[0] - r[1]) * (h[0] - h[1])


@wrong("psd", "not signed")
@psd_args
def psd_unsigned(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2 + lam * (r[0] - r[1]).abs() * (h[0] - h[1])


@wrong("psd", "one of the two only")
@psd_args
def dreamdpo_published(h, predictions, r, noises, lam):
    plain = [p[0] - e for p, e in zip(predictions, noises, strict=True)]
    return torch.where(r[0] >= r[1], h[0] - plain[1], h[1] - plain[0])


@wrong("psd", "sum of both")
@psd_args
def psd_sum_base(h, predictions, r, noises, lam):
    return h[0] + h[1] + lam * torch.sign(r[0] - r[1]) * (h[0] - h[1])


@wrong("psd", "ascent")
@psd_args
def psd_negated(h, predictions, r, noises, lam):
    return -((h[0] + h[1]) / 2 + lam * torch.sign(r[0] - r[1]) * (h[0] - h[1]))


@wrong("psd", "preference term is missing")
@psd_args
def psd_without_preference(h, predictions, r, noises, lam):
    return (h[0] + h[1]) / 2


@wrong("psd", "mean over elements", "swapped")
def psd_two_mistakes(
    x,
    t,
    eps_1,
    eps_2,
    predict_noise,
    cond,
    uncond,
    reward,
    guidance_scale,
    preference_weight,
    alphas_cumprod,
):
    h, _, r = pair(
        x, t, (eps_1, eps_2), predict_noise, cond, uncond, reward, guidance_scale, alphas_cumprod
    )
    grad = (h[0] + h[1]) / 2 + preference_weight * torch.sign(r[1] - r[0]) * (h[0] - h[1])
    return 0.5 * ((x - (x - grad).detach()) ** 2).sum() / x.numel()


def _shown(what):
    def submission(
        x,
        t,
        eps_1,
        eps_2,
        predict_noise,
        cond,
        uncond,
        reward,
        guidance_scale,
        preference_weight,
        alphas_cumprod,
    ):
        noises = eps_1, eps_2
        h, _, r = pair(
            x,
            t,
            noises,
            predict_noise,
            cond,
            uncond,
            reward,
            guidance_scale,
            alphas_cumprod,
            shown=what,
        )
        return (h[0] + h[1]) / 2 + preference_weight * torch.sign(r[0] - r[1]) * (h[0] - h[1])

    submission.__name__ = f"psd_reward_of_{what}"
    return submission


for form in ("in_0_1", "clamped", "resized", "small", "squashed", "for_clip"):
    right("psd")(_shown(f"x0_{form}"))
wrong("psd", "not divided by alpha_t")(_shown("x0_without_alpha_clamped"))
wrong("psd", "noisy x_t")(_shown("x_t_for_clip"))
wrong("psd", "vae.decode is given x0_hat times 1: latents / 0.18215")(_shown("x0_decoded_unscaled"))
wrong("psd", "not shown x0_hat")(_shown("x0_negated"))
wrong("psd", "not divided by alpha_t")(_shown("x0_without_alpha"))
wrong("psd", "divided by alpha_t twice")(_shown("x0_over_alpha"))
wrong("psd", "noisy x_t")(_shown("x_t"))
wrong("psd", "render itself")(_shown("x"))


@wrong("psd", "both noises are the same")
def psd_one_noise(
    x,
    t,
    eps_1,
    predict_noise,
    cond,
    uncond,
    reward,
    guidance_scale,
    preference_weight,
    alphas_cumprod,
):
    h, _, r = pair(
        x, t, (eps_1, eps_1), predict_noise, cond, uncond, reward, guidance_scale, alphas_cumprod
    )
    return (h[0] + h[1]) / 2 + preference_weight * torch.sign(r[0] - r[1]) * (h[0] - h[1])


@wrong("psd", "different t")
def psd_two_t(
    x,
    t,
    eps_1,
    eps_2,
    predict_noise,
    cond,
    uncond,
    reward,
    guidance_scale,
    preference_weight,
    alphas_cumprod,
):
    h, _, r = pair(
        x, t, (eps_1,), predict_noise, cond, uncond, reward, guidance_scale, alphas_cumprod
    )
    h2, _, r2 = pair(
        x, t // 2, (eps_2,), predict_noise, cond, uncond, reward, guidance_scale, alphas_cumprod
    )
    return (h[0] + h2[0]) / 2 + preference_weight * torch.sign(r[0] - r2[0]) * (h[0] - h2[0])


@wrong("psd", "differentiated")
def psd_reward_backprop(
    x,
    t,
    eps_1,
    eps_2,
    predict_noise,
    cond,
    uncond,
    reward,
    guidance_scale,
    preference_weight,
    alphas_cumprod,
):
    h, _, r = pair(
        x, t, (eps_1, eps_2), predict_noise, cond, uncond, reward, guidance_scale, alphas_cumprod
    )
    grad = (h[0] + h[1]) / 2 + preference_weight * torch.sign(r[0] - r[1]) * (h[0] - h[1])
    return (grad * x).sum() - reward(x).sum()


@wrong("psd", "never asked")
def psd_without_reward(
    x,
    t,
    eps_1,
    eps_2,
    predict_noise,
    cond,
    uncond,
    guidance_scale,
    preference_weight,
    alphas_cumprod,
):
    h, _, _ = pair(
        x,
        t,
        (eps_1, eps_2),
        predict_noise,
        cond,
        uncond,
        lambda i: i.mean((1, 2, 3)),
        guidance_scale,
        alphas_cumprod,
    )
    return (h[0] + h[1]) / 2 + preference_weight * (h[0] - h[1])


def of_four_noises(x, t, predict_noise, cond, uncond, reward, guidance_scale, alphas_cumprod):
    """RewardSDS: a softmax of the rewards."""
    noises = [torch.randn_like(x) for _ in range(4)]
    h, _, r = pair(
        x, t, noises, predict_noise, cond, uncond, reward, guidance_scale, alphas_cumprod
    )
    w = torch.stack(r).view(4, -1).softmax(0).view(4, -1, 1, 1, 1)
    return (w * torch.stack(h)).sum(0)


@psd_args
def dreamdpo_formula(h, predictions, r, noises, lam):
    return torch.where(r[0] >= r[1], h[0] - h[1], h[1] - h[0])


@psd_args
def dreamdpo_small_gap_branch(h, predictions, r, noises, lam):
    return torch.where(r[0] >= r[1], predictions[0][1], predictions[1][1])


# ---------------------------------------------------------------------------------- negative
# embedding


def negative(
    loss,
    guided=lambda c, e, g: e + g * (c - e),
    x0=lambda x_t, e, a, s: (x_t - s * e) / a,
    detach=True,
):
    """A negative-embedding loss with one piece replaced."""

    def submission(x, t, eps, predict_noise, cond, n, reward, guidance_scale, alphas_cumprod):
        a, s = levels(alphas_cumprod, t)
        if detach:
            x, cond = x.detach(), cond.detach()
        x_t = a * x + s * eps
        c, e = predict_noise(x_t, t, cond), predict_noise(x_t, t, n)
        return loss(reward(x0(x_t, guided(c, e, guidance_scale), a, s)))

    return submission


NEGATIVE = {
    "right": (negative(lambda r: -r.mean()), ""),
    "sum": (negative(lambda r: -r.sum()), "the sum over pictures instead of the mean"),
    "ascent": (negative(lambda r: r.mean()), "sign is flipped"),
    "s+1": (
        negative(lambda r: -r.mean(), guided=lambda c, e, g: c + g * (c - e)),
        "g stands where g - 1",
    ),
    "n alone": (negative(lambda r: -r.mean(), guided=lambda c, e, g: e), "eps(n) alone"),
    "leak": (negative(lambda r: -r.mean(), detach=False), "leaks into cond and x"),
    "no alpha": (
        negative(lambda r: -r.mean(), x0=lambda x_t, e, a, s: x_t - s * e),
        "not divided by alpha_t",
    ),
    "detached": (
        negative(lambda r: -r.mean(), guided=lambda c, e, g: (e + g * (c - e)).detach()),
        "no gradient",
    ),
    "no n": (negative(lambda r: -r.mean(), guided=lambda c, e, g: c + 0 * e), "exactly zero"),
}

# ---------------------------------------------------------------------------------- renderer


@right("renderer")
def render_cumprod(sigmas, rgbs, deltas, background):
    alpha = 1 - torch.exp(-sigmas * deltas)
    through = torch.cumprod(torch.cat((torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10), -1), -1)[
        :, :-1
    ]
    weights = alpha * through
    return (weights[..., None] * rgbs).sum(1) + (1 - weights.sum(-1, keepdim=True)) * background


@right("renderer")
def render_loop_from_z(density, color, z_vals):
    deltas = torch.cat((z_vals[:, 1:] - z_vals[:, :-1], torch.full_like(z_vals[:, :1], 1e10)), -1)
    light, rgb = torch.ones_like(density[:, 0]), 0
    for i in range(density.shape[1]):
        a = 1 - torch.exp(-density[:, i] * deltas[:, i])
        rgb = rgb + (light * a)[:, None] * color[:, i]
        light = light * (1 - a)
    return {"rgb": rgb}


def compose(
    alpha=None, inclusive=False, shadow=True, background=True, reverse=False, normalise=False
):
    """A renderer with one piece replaced."""
    alpha = alpha or (lambda rho, delta: 1 - torch.exp(-rho * delta))

    def submission(density, colour, deltas, background_color):
        a = alpha(density, deltas)
        passed = torch.exp(-density * deltas)
        if reverse:
            passed = passed.flip(-1)
        light = torch.cumprod(passed, -1)
        if not inclusive:
            light = torch.cat((torch.ones_like(light[:, :1]), light[:, :-1]), -1)
        light = light.flip(-1) if reverse else light
        w = a * (light if shadow else 1)
        if normalise:
            w = w / w.sum(-1, keepdim=True)
        rgb = (w[..., None] * colour).sum(1)
        return rgb + (1 - w.sum(-1, keepdim=True)) * background_color if background else rgb

    return submission


RENDERERS = {
    "inclusive": (compose(inclusive=True), "inclusive"),
    "no shadow": (compose(shadow=False), "transmittance is missing"),
    "no background": (compose(background=False), "no background"),
    "reversed": (compose(reverse=True), "order is reversed"),
    "premultiplied": (
        compose(alpha=lambda r, d: (1 - torch.exp(-r * d)) ** 2),
        "multiplied by alpha twice",
    ),
    "normalised": (compose(normalise=True), "divided by their sum"),
    "no exponential": (compose(alpha=lambda r, d: r * d), "alpha = rho delta"),
    "T rho": (compose(alpha=lambda r, d: r), "T rho"),
    "wrong shape": (
        lambda density, colour, deltas: density * colour.mean(-1),
        "(64, 12) came, read as weights (rgb would be",
    ),
    "unknown name": (
        lambda density, colour, foo: density,
        "one of density, x, t, z_vals, colour, image, widths",
    ),
    "two at once": (compose(inclusive=True, background=False), "inclusive"),
}


@wrong("renderer", "delta is missing")
def render_without_delta(density, colour, deltas, background):
    return compose()(density, colour, torch.ones_like(deltas), background)


@wrong("renderer", "no gradient reaches the density")
def render_detached(density, colour, deltas, background):
    return compose()(density.detach(), colour, deltas, background)


# ---------------------------------------------------------------------------------- schedule


@right("schedule")
def schedule_abar(betas):
    return torch.cumprod(1 - betas, 0)


@right("schedule")
def schedule_pair(betas):
    abar = torch.cumprod(1 - betas, 0)
    return abar.sqrt(), (1 - abar).sqrt()


@right("schedule")
def schedule_add_noise(x, t, noise, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    return a * x + s * noise


@wrong("schedule", "cumulative product is missing")
def schedule_per_step(betas):
    return 1 - betas


@wrong("schedule", "off by one")
def schedule_shifted(betas):
    abar = torch.cumprod(1 - betas, 0)
    return torch.cat((torch.ones(1), abar[:-1]))


@wrong("schedule", "1 minus the sum of beta")
def schedule_sum(betas):
    return 1 - torch.cumsum(betas, 0)


@wrong("schedule", "square root is missing")
def schedule_no_root(betas):
    abar = torch.cumprod(1 - betas, 0)
    return abar, 1 - abar


@wrong("schedule", "1 - alpha_t")
def schedule_sigma(betas):
    a = torch.cumprod(1 - betas, 0).sqrt()
    return a, 1 - a


@wrong("schedule", "over beta and not")
def schedule_product_of_betas(betas):
    return torch.cumprod(betas, 0)


@wrong("schedule", "square root")
def schedule_add_noise_no_root(x, t, noise, alphas_cumprod):
    abar = alphas_cumprod[t].view(-1, 1, 1, 1)
    return abar * x + (1 - abar) * noise
