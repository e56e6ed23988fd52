"""Submissions of SDI, PDS and SDS with a velocity model, with the verdicts of the mathematics.

KINDS maps a name to (kind, submission, status, words). Styles: functions of tensors, classes
written against diffusers in the form of course assignments, losses and gradients.
"""

import torch
import torch.nn.functional as F
from submissions import levels

KINDS: dict = {}


def hand_in(kind, name, submission, status="wrong", *words):
    KINDS[f"{kind}: {name}"] = (kind, submission, status, words)


# ------------------------------------------------------------------------------------------ flow


def flow(target, mix=lambda t: (1 - t, t), guide=lambda c, u, g: u + g * (c - u), grad=False):
    """A gradient: target(v_hat, x, eps, x_t, t, fresh noise) is G."""

    def submission(x, velocity, cond, uncond, guidance_scale):
        t = 0.05 + 0.9 * torch.rand(len(x))
        eps, w = torch.randn_like(x), t.view(-1, 1, 1, 1)
        a, s = mix(w)
        x_t = a * x + s * eps
        with torch.set_grad_enabled(grad):
            v = guide(velocity(x_t, t, cond), velocity(x_t, t, uncond), guidance_scale)
        g = target(v, x, eps, x_t, w, torch.randn_like(x))
        return ((g if grad else g.detach()) * x).sum() if grad else g.detach()

    return submission


def by_transformer(sign=1.0, factor=lambda t: t):
    """In the form of Stable Diffusion 3's code: keywords, times up to 1000, one call, a loss."""

    def submission(latents, text_embeddings, transformer, guidance_scale=7.5):
        t = 0.05 + 0.9 * torch.rand(len(latents))
        noise, sigma = torch.randn_like(latents), t.reshape(-1, 1, 1, 1)
        noisy = (1.0 - sigma) * latents + sigma * noise
        with torch.no_grad():
            both = transformer(
                hidden_states=torch.cat([noisy] * 2),
                timestep=torch.cat([t * 1000] * 2),
                encoder_hidden_states=text_embeddings,
                return_dict=False,
            )[0]
            free, prompted = both.chunk(2)
            v = free + guidance_scale * (prompted - free)
            x0_hat = noisy - factor(sigma) * v * sign
        return 0.5 * F.mse_loss(latents, x0_hat, reduction="sum")

    return submission


class VelocityGuidance:
    """A class with a model of its own; the loss is built by the reparametrisation trick."""

    wrong = 0.0

    def __init__(self, model):
        self.model = model

    def flow_loss(self, latents, cond, uncond, guidance_scale):
        t = 0.05 + 0.9 * torch.rand(latents.shape[0])
        s, noise = t[:, None, None, None], torch.randn_like(latents)
        x_t = torch.lerp(latents, noise, s)
        with torch.no_grad():
            c, u = self.model(x_t, t, cond), self.model(x_t, t, uncond)
        grad = u + guidance_scale * (c - u) - (noise - latents) + self.wrong * x_t
        return 0.5 * ((latents - (latents - grad).detach()) ** 2).sum()


class AddsXT(VelocityGuidance):
    wrong = 1.0


def fixed_guidance(x, model, cond, uncond):
    t = 0.05 + 0.9 * torch.rand(len(x))
    eps, w = torch.randn_like(x), t.view(-1, 1, 1, 1)
    x_t = (1 - w) * x + w * eps
    with torch.no_grad():
        c, u = model(x_t, t, cond), model(x_t, t, uncond)
    return t.square().view(-1, 1, 1, 1) * (4.0 * c - 3.0 * u - eps + x)


def at_given_t(x, t, eps, velocity, cond, uncond, guidance_scale):
    """It takes t and noise, and writes the noise prediction's residual."""
    w = t.view(-1, 1, 1, 1)
    x_t = (1 - w) * x + w * eps
    with torch.no_grad():
        c, u = velocity(x_t, t, cond), velocity(x_t, t, uncond)
    return x_t + (1 - w) * (u + guidance_scale * (c - u)) - eps


def usual(v, x, eps, x_t, t, fresh):
    return v - (eps - x)


hand_in("flow", "plain", flow(usual), "right")
hand_in(
    "flow",
    "weighted",
    flow(lambda v, x, e, *r: 3 * r[1] * (v - e + x)),
    "scaled",
    "times the reference",
)
hand_in("flow", "sd3", by_transformer(), "right")
hand_in("flow", "class", VelocityGuidance, "right")
hand_in("flow", "fixed guidance", fixed_guidance, "right")
hand_in("flow", "given t", at_given_t, "right")
hand_in("flow", "as noise", flow(lambda v, x, e, *r: v - e), "wrong", "not eps")
hand_in("flow", "as data", flow(lambda v, x, e, *r: v + x), "wrong", "the noise is missing")
hand_in("flow", "flipped", flow(lambda v, x, e, *r: e - x - v), "wrong", "sign is flipped")
hand_in("flow", "reversed", flow(lambda v, x, e, *r: v - (x - e)), "wrong", "x - eps")
hand_in("flow", "sum", flow(lambda v, x, e, *r: v - (e + x)), "wrong", "eps \\+ x")
hand_in("flow", "alone", flow(lambda v, x, e, *r: v + 0 * x), "wrong", "velocity alone")
hand_in("flow", "redrawn", flow(lambda v, x, e, *r: v - r[2] + x), "wrong", "redrawn")
hand_in("flow", "minus x_t", flow(lambda v, x, e, *r: v - r[0]), "wrong", "x_t is subtracted")
hand_in("flow", "jacobian", flow(usual, grad=True), "wrong", "Jacobian")
hand_in("flow", "sd3 sign", by_transformer(-1.0), "wrong", "sign")
hand_in("flow", "sd3 no t", by_transformer(1.0, torch.ones_like), "wrong", "lacks the factor t")
hand_in("flow", "class with x_t", AddsXT, "wrong", "")
hand_in("flow", "time turned", flow(usual, lambda t: (t, 1 - t)), "wrong", "t and 1 - t")
hand_in("flow", "root", flow(usual, lambda t: ((1 - t).sqrt(), t.sqrt())), "wrong", "squares")
hand_in("flow", "not scaled", flow(usual, lambda t: (1.0, t)), "wrong", "not multiplied by 1 - t")
hand_in(
    "flow", "off by one", flow(usual, guide=lambda c, u, g: c + g * (c - u)), "wrong", "g \\+ 1"
)
hand_in("flow", "unguided", flow(usual, guide=lambda c, u, g: c), "wrong", "scale is ignored")
hand_in("flow", "chunks", flow(usual, guide=lambda c, u, g: c + g * (u - c)), "wrong", "swapped")

# ------------------------------------------------------------------------------------------- SDI


class Inversion:
    """As in a course's starter file, `get_sdi_loss`; what follows changes one method of it."""

    eta, guidance, steps = 0.0, -7.5, 2

    def __init__(self, args, t_range=(0.02, 0.98)):
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        self.unet = StableDiffusionPipeline.from_pretrained("sd").unet
        self.alphas = DDIMScheduler.from_pretrained("sd").alphas_cumprod

    def get_noise_preds(self, x, t, embeddings, guidance_scale):
        t = torch.full((2 * len(x),), t)
        free, prompted = self.unet(torch.cat([x, x]), t, embeddings).sample.chunk(2)
        return free + guidance_scale * (prompted - free)

    def times(self, t):
        return torch.linspace(0, t, self.steps + 1).long().tolist()

    def step(self, x, a, b, eps_hat):
        """From the level alphas_cumprod = a to b."""
        x0_hat = (x - (1 - a).sqrt() * eps_hat) / a.sqrt()
        var = self.eta**2 * ((1 - a) / (1 - b) * (1 - b / a)).clamp(min=0)
        moved = b.sqrt() * x0_hat + (1 - b - var).sqrt() * eps_hat
        return moved + var.sqrt() * torch.randn_like(x)

    def invert(self, x, t, embeddings):
        times = self.times(t)
        for u, v in zip(times[:-1], times[1:], strict=True):
            eps_hat = self.get_noise_preds(x, u, embeddings, self.guidance)
            x = self.step(x, self.alphas[u], self.alphas[v], eps_hat)
        return x

    def x0_hat(self, x_t, a, eps_hat):
        return (x_t - (1 - a).sqrt() * eps_hat) / a.sqrt()

    def loss(self, latents, target, x_t):
        return 0.5 * ((latents - target) ** 2).sum()

    def get_sdi_loss(self, latents, text_embeddings, guidance_scale=7.5, current_iter=0):
        t = int(torch.randint(100, 950, (1,)))
        with torch.no_grad():
            x_t = self.invert(latents, t, text_embeddings)
            eps_hat = self.get_noise_preds(x_t, t, text_embeddings, guidance_scale)
            target = self.x0_hat(x_t, self.alphas[t], eps_hat)
        return self.loss(latents, target, x_t)


def changed(base=Inversion, **methods):
    return type("Changed", (base,), methods)


def sdi_function(residual=lambda eps_hat, kappa, fresh, x: eps_hat - kappa, points=3, above=0):
    """A function of tensors: kappa of a level a little above is used at t; it returns G."""

    def submission(x, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
        t = torch.randint(150, 900, (len(x),))
        higher = t + above
        z, seen, (a, s) = x, torch.zeros_like(t), (1.0, 0.0)
        with torch.no_grad():
            for i in range(points):
                eps_hat = predict_noise(z, seen, uncond)
                z = (z - s * eps_hat) / a
                seen = higher * (i + 1) // points
                a, s = levels(alphas_cumprod, seen)
                z = a * z + s * eps_hat
            kappa = (z - a * x) / s
            a, s = levels(alphas_cumprod, t)
            x_t = a * x + s * kappa
            c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
            return residual(u + guidance_scale * (c - u), kappa, torch.randn_like(x), x)

    return submission


def fixed_point(x, unet, cond, uncond, guidance_scale, alphas_cumprod):
    """kappa = eps_hat(alpha x + sigma kappa), iterated from a random noise."""
    t = torch.randint(150, 900, (len(x),))
    a, s = levels(alphas_cumprod, t)
    kappa = torch.randn_like(x)
    with torch.no_grad():
        for _ in range(4):
            kappa = unet(a * x + s * kappa, t, uncond).sample
        x_t = a * x + s * kappa
        c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return s**2 * (u + guidance_scale * (c - u) - kappa)


def random_start(self, x, t, embeddings):
    a = self.alphas[t]
    return a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)


def on_graph(self, latents, text_embeddings, guidance_scale=7.5):
    t = int(torch.randint(100, 950, (1,)))
    with torch.no_grad():
        x_t = self.invert(latents, t, text_embeddings)
    a = self.alphas[t]
    kappa = ((x_t - a.sqrt() * latents) / (1 - a).sqrt()).detach()
    x_t = a.sqrt() * latents + (1 - a).sqrt() * kappa
    eps_hat = self.get_noise_preds(x_t, t, text_embeddings, guidance_scale)
    return 0.5 * ((latents - self.x0_hat(x_t, a, eps_hat)) ** 2).sum()


def never_divided(self, x, a, b, e):
    return b.sqrt() * (x - (1 - a).sqrt() * e) + (1 - b).sqrt() * e


hand_in("sdi", "course", Inversion, "right")
hand_in("sdi", "stochastic", changed(eta=0.3, steps=4), "right")
hand_in("sdi", "unguided inversion", changed(guidance=1.0, steps=5), "right")
hand_in("sdi", "mean", changed(loss=lambda self, x, y, _: F.mse_loss(x, y)), "scaled", "mean over")
hand_in("sdi", "function", sdi_function(), "right")
hand_in("sdi", "from above", sdi_function(above=30), "right")
hand_in("sdi", "fixed point", fixed_point, "right")
hand_in("sdi", "random", changed(invert=random_start), "wrong", "this is SDS")
hand_in("sdi", "x itself", changed(invert=lambda self, x, t, e: x), "wrong", "holds no noise")
hand_in(
    "sdi",
    "keeps the signal",
    changed(
        step=lambda self, x, a, b, e: (
            Inversion.x0_hat(self, x, a, e) * a.sqrt() + (1 - b).sqrt() * e
        )
    ),
    "wrong",
    "keeps the signal level",
)
hand_in(
    "sdi",
    "keeps the noise",
    changed(step=lambda self, x, a, b, e: self.x0_hat(x, a, e) * b.sqrt() + (1 - a).sqrt() * e),
    "wrong",
    "keeps the noise level",
)
hand_in(
    "sdi",
    "roots",
    changed(step=lambda self, x, a, b, e: self.x0_hat(x, a, e) * b + (1 - b) * e),
    "wrong",
    "square root is missing in the step's signal",
    "square root is missing in the step's noise",
)
hand_in("sdi", "never divided", changed(step=never_divided), "wrong", "not divided by alpha_u")
hand_in(
    "sdi",
    "adds no noise",
    changed(step=lambda self, x, a, b, e: self.x0_hat(x, a, e) * b.sqrt()),
    "wrong",
    "adds no noise",
)
hand_in(
    "sdi",
    "random steps",
    changed(
        step=lambda self, x, a, b, e: (
            self.x0_hat(x, a, e) * b.sqrt() + (1 - b).sqrt() * torch.randn_like(x)
        )
    ),
    "wrong",
    "drawn at random",
)
hand_in(
    "sdi",
    "downwards",
    changed(times=lambda self, t: Inversion.times(self, t)[::-1]),
    "wrong",
    "goes down in t",
)
hand_in(
    "sdi",
    "the step's x0_hat",
    changed(step=lambda self, x, a, b, e: b.sqrt() * (x - e) / a.sqrt() + (1 - b).sqrt() * e),
    "wrong",
    "no sigma_u",
)
hand_in(
    "sdi", "x0_hat", changed(x0_hat=lambda self, x, a, e: x - (1 - a).sqrt() * e), "wrong", "alpha"
)
hand_in(
    "sdi",
    "at x_t",
    changed(loss=lambda self, x, y, x_t: ((x_t - y) * x).sum()),
    "wrong",
    "residual is taken at x_t",
)
hand_in(
    "sdi",
    "ascent",
    changed(loss=lambda self, x, y, _: ((y - x).detach() * x).sum()),
    "wrong",
    "sign",
)
hand_in("sdi", "jacobian", changed(get_sdi_loss=on_graph), "wrong", "Jacobian")
hand_in("sdi", "redrawn", sdi_function(lambda e, k, fresh, x: e - fresh), "wrong", "fresh noise")
hand_in("sdi", "alone", sdi_function(lambda e, k, fresh, x: e), "wrong", "alone")
hand_in("sdi", "added", sdi_function(lambda e, k, fresh, x: e + k, 5), "wrong", "added")
hand_in(
    "sdi",
    "guidance of the inversion",
    changed(
        get_noise_preds=lambda self, x, t, e, g: Inversion.get_noise_preds(self, x, t, e, -7.5)
    ),
    "wrong",
    "guidance|came at g",
)

# ------------------------------------------------------------------------------------------- PDS


class Posterior:
    """As in a course's starter file, `get_pds_loss`; what follows changes one method of it."""

    jump, own_noise, own_previous = 1, False, False

    def __init__(self, args, t_range=(0.02, 0.98)):
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        self.unet = StableDiffusionPipeline.from_pretrained("sd").unet
        self.scheduler = DDIMScheduler.from_pretrained("sd")
        self.alphas = self.scheduler.alphas_cumprod

    def get_noise_preds(self, x, t, embeddings, guidance_scale):
        t = torch.cat([t] * 2)
        free, prompted = self.unet(torch.cat([x, x]), t, embeddings).sample.chunk(2)
        return free + guidance_scale * (prompted - free)

    def x0_hat(self, x_t, a, eps_hat):
        return (x_t - (1 - a).sqrt() * eps_hat) / a.sqrt()

    def mean(self, x0_hat, x_t, beta, a, before):
        c_0 = before.sqrt() * beta / (1 - a)
        return c_0 * x0_hat + (1 - beta).sqrt() * (1 - before) / (1 - a) * x_t

    def latent(self, x, embeddings, t, eps, eps_before, g):
        beta = self.scheduler.betas[t]
        a, before = self.alphas[t], self.alphas[t - self.jump]
        x_t = self.scheduler.add_noise(x, eps, t)
        x_before = self.scheduler.add_noise(x, eps_before, self.previous(t))
        with torch.no_grad():
            eps_hat = self.get_noise_preds(x_t, t, embeddings, g)
        mu = self.mean(self.x0_hat(x_t, a, eps_hat), x_t, beta, a, before)
        return (x_before - mu) / ((1 - before) / (1 - a) * beta).sqrt()

    def previous(self, t):
        return t - self.jump

    def guided(self, g, source):
        return g

    def loss(self, x, target, source):
        grad = target - source
        return 0.5 * ((x - (x - grad).detach()) ** 2).sum()

    def get_pds_loss(
        self, src_latents, tgt_latents, src_text_embedding, tgt_text_embedding, guidance_scale=7.5
    ):
        t = torch.randint(60, 950, (1,))
        eps, before = torch.randn_like(tgt_latents), torch.randn_like(tgt_latents)
        target = self.latent(
            tgt_latents, tgt_text_embedding, t, eps, before, self.guided(guidance_scale, False)
        )
        eps = torch.randn_like(eps) if self.own_noise else eps
        before = torch.randn_like(eps) if self.own_previous else before
        source = self.latent(
            src_latents, src_text_embedding, t, eps, before, self.guided(guidance_scale, True)
        )
        return self.loss(tgt_latents, target, source)


def pds_function(pair=lambda tgt, src: tgt - src, crossed=False):
    """A function of tensors with the difference written out, by the mean in terms of eps_hat."""

    def submission(
        x, x_src, cond, cond_src, uncond, predict_noise, guidance_scale, alphas_cumprod, betas
    ):
        t = torch.randint(60, 950, (len(x),))
        (a, s), (a_1, s_1) = levels(alphas_cumprod, t), levels(alphas_cumprod, t - 1)
        beta = betas[t].view(-1, 1, 1, 1)
        eps, eps_1 = torch.randn_like(x), torch.randn_like(x)
        prompts = (cond_src, cond) if crossed else (cond, cond_src)
        z = []
        with torch.no_grad():
            for picture, prompt in zip((x, x_src), prompts, strict=True):
                x_t = a * picture + s * eps
                c, u = predict_noise(x_t, t, prompt), predict_noise(x_t, t, uncond)
                eps_hat = u + guidance_scale * (c - u)
                mu = (x_t - beta / s * eps_hat) / (1 - beta).sqrt()
                z.append((a_1 * picture + s_1 * eps_1 - mu) / beta.sqrt())
            return pair(*z)

    return submission


def delta_denoising(x, x_src, cond, cond_src, uncond, unet, guidance_scale, alphas_cumprod):
    """DDS: what PDS is with steps of one."""
    t = torch.randint(60, 950, (len(x),))
    a, s = levels(alphas_cumprod, t)
    eps = torch.randn_like(x)
    with torch.no_grad():
        pair = []
        for picture, prompt in ((x, cond), (x_src, cond_src)):
            x_t = a * picture + s * eps
            c, u = unet(x_t, t, prompt).sample, unet(x_t, t, uncond).sample
            pair.append(u + guidance_scale * (c - u))
    return pair[0] - pair[1]


def posterior(**changes):
    return type("Changed", (Posterior,), changes)


hand_in("pds", "course", Posterior, "right")
hand_in("pds", "published steps", posterior(jump=2), "right")
hand_in("pds", "fifty steps", posterior(jump=20), "right")
hand_in("pds", "function", pds_function(), "right")
hand_in("pds", "dds", delta_denoising, "right")
hand_in(
    "pds",
    "source minus target",
    posterior(loss=lambda self, x, a, b: ((b - a).detach() * x).sum()),
    "wrong",
    "sign is flipped",
)
hand_in(
    "pds",
    "back-propagated",
    posterior(loss=lambda self, x, a, b: ((a - b) ** 2).sum()),
    "wrong",
    "psi alone",
)
hand_in("pds", "own noises", posterior(own_noise=True), "wrong", "same eps_t")
hand_in("pds", "own noises before", posterior(own_previous=True), "wrong", "one eps_\\{t-1\\}")
hand_in(
    "pds",
    "source unguided",
    posterior(guided=lambda self, g, source: 1.0 if source else g),
    "wrong",
    "different scales",
)
hand_in("pds", "unguided", posterior(guided=lambda self, g, source: 1.0), "wrong", "ignored|g = 1")
hand_in("pds", "level of t", posterior(previous=lambda self, t: t), "wrong", "noise level of t")
hand_in(
    "pds",
    "c_0 root",
    posterior(
        mean=lambda self, x, x_t, b, a, p: (
            p * b / (1 - a) * x + (1 - b).sqrt() * (1 - p) / (1 - a) * x_t
        )
    ),
    "wrong",
    "c_0: the square root",
)
hand_in(
    "pds",
    "c_0 bare",
    posterior(
        mean=lambda self, x, x_t, b, a, p: (
            b / (1 - a) * x + (1 - b).sqrt() * (1 - p) / (1 - a) * x_t
        )
    ),
    "wrong",
    "c_0: the factor",
)
hand_in(
    "pds",
    "c_1 root",
    posterior(
        mean=lambda self, x, x_t, b, a, p: (
            p.sqrt() * b / (1 - a) * x + (1 - b) * (1 - p) / (1 - a) * x_t
        )
    ),
    "wrong",
    "c_1: the square root",
)
hand_in(
    "pds",
    "cumulative",
    posterior(
        mean=lambda self, x, x_t, b, a, p: (
            p.sqrt() * b / (1 - a) * x + a.sqrt() * (1 - p) / (1 - a) * x_t
        )
    ),
    "wrong",
    "c_1: alphas_cumprod is taken for alphas",
)
hand_in(
    "pds",
    "no x_t",
    posterior(mean=lambda self, x, x_t, b, a, p: p.sqrt() * b / (1 - a) * x),
    "wrong",
    "x_t is missing in mu",
)
hand_in(
    "pds",
    "x0_hat",
    posterior(x0_hat=lambda self, x_t, a, e: x_t - (1 - a).sqrt() * e),
    "wrong",
    "x0_hat is not divided",
)
hand_in(
    "pds",
    "x0_hat roots",
    posterior(x0_hat=lambda self, x_t, a, e: (x_t - (1 - a) * e) / a),
    "wrong",
    "square roots are missing",
)
hand_in(
    "pds", "prompts swapped", pds_function(crossed=True), "wrong", "asked with the source's prompt"
)
hand_in("pds", "no source", pds_function(lambda tgt, src: tgt), "wrong", "x_src is not subtracted")
hand_in("pds", "sum", pds_function(lambda tgt, src: tgt + src), "wrong", "")
