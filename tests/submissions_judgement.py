"""Wrong code with the words that must be said of it, (kind, submission, words); and right code.

Every mistake that was once passed, or caught and not named, is here with neighbours of its kind.
"""

import torch
import torch.nn.functional as F
from submissions import levels
from submissions_tables import formula, three_predictions

from psd_mini.checks.grading.missing import named

WRONG: dict = {}
RIGHT: dict = {}


def add(name, kind, submission, words):
    WRONG[f"{kind}: {name}"] = (kind, submission, words)


# ---------------------------------------------------------------------------------- renderers


def exclusive(passed):
    return F.pad(passed.cumprod(-1)[:, :-1], (1, 0), value=1.0)


def renderer(alpha=None, passed=None, light=exclusive, weights=torch.mul, behind=None, shade=None):
    """A renderer with pieces of its own."""
    alpha = alpha or (lambda rho, delta: 1 - torch.exp(-rho * delta))
    passed = passed or (lambda rho, delta, a: 1 - a)
    behind = behind or (lambda T, a, w: 1 - w.sum(-1, keepdim=True))
    shade = shade or torch.clone

    def submission(density, colour, deltas, background):
        a = alpha(density, deltas)
        T = light(passed(density, deltas, a))
        w = weights(T, a)
        return (w[..., None] * shade(colour)).sum(1) + behind(T, a, w) * background

    return submission


def of_depths(last, behind):
    """Widths are made of depths; the last one is anybody's choice."""

    def submission(density, colour, z_vals, background):
        ends = torch.full_like(z_vals[:, :1], last)
        deltas = torch.cat((z_vals[:, 1:] - z_vals[:, :-1], ends), -1)
        return renderer(behind=behind)(density, colour, deltas, background)

    return submission


def before_the_last(T, a, w):
    return T[:, -1:]


def first_twice(delta):
    return torch.cat((delta[:, :1], delta[:, :-1]), -1)


for last in (0.1, 0.33, 2.0, 1e10):
    add(
        f"T_end before a last width of {last}", "renderer", of_depths(last, before_the_last), "last"
    )
    RIGHT[f"last width {last}"] = ("renderer", of_depths(last, None))
for name, pieces, words in (
    ("T_end before the last", dict(behind=before_the_last), "shines through the last sample"),
    ("previous width", dict(alpha=lambda r, d: 1 - torch.exp(-r * first_twice(d))), "previous"),
    ("next width", dict(alpha=lambda r, d: 1 - torch.exp(-r * d.roll(-1, -1))), "of the next"),
    ("T of previous", dict(passed=lambda r, d, a: torch.exp(-r * d.roll(1, -1))), "transmittance"),
    (
        "T without delta",
        dict(passed=lambda r, d, a: torch.exp(-r)),
        "delta is missing in the trans",
    ),
    ("delta twice", dict(alpha=lambda r, d: 1 - torch.exp(-r * d * d)), "delta twice"),
    ("one width", dict(alpha=lambda r, d: 1 - torch.exp(-r * d.mean(1, True))), "one delta"),
    ("softplus", dict(alpha=lambda r, d: 1 - torch.exp(-F.softplus(r) * d)), "softplus"),
    ("shifted back", dict(light=lambda p: p.cumprod(-1).roll(-1, -1)), "shifted the wrong way"),
    ("rolled", dict(light=lambda p: p.cumprod(-1).roll(1, -1)), "(roll): it must be 1"),
    ("shifted twice", dict(light=lambda p: exclusive(p)[:, [0, *range(11)]]), "shifted twice"),
    ("along the rays", dict(light=lambda p: p.cumprod(0)), "runs over the rays"),
    ("no product", dict(light=torch.clone), "the product is missing"),
    ("sum of alphas", dict(light=lambda p: 2 - p - (1 - p).cumsum(-1)), "a sum"),
    ("T alone", dict(weights=lambda T, a: T), "alpha is missing in the weights"),
    ("every sample", dict(behind=lambda T, a, w: (1 - w).sum(-1, True)), "at every sample"),
    ("second T", dict(behind=lambda T, a, w: T[:, 1:2]), "something else than 1 - opacity"),
    ("BGR", dict(shade=lambda c: c.flip(-1)), "reverse order"),
    ("two at once", dict(alpha=lambda r, d: 1 - torch.exp(-r), behind=before_the_last), "delta is"),
    ("of none", dict(passed=lambda r, d, a: 1 - a + 0.01), "one sample of matter is wrong"),
):
    add(name, "renderer", renderer(**pieces), words)


def three_at_once(density, colour, deltas, background):
    alpha = 1 - torch.exp(-density)
    weights = (1 - alpha).cumprod(-1) * alpha
    return (weights[..., None] * colour).sum(1) + background


add("three at once", "renderer", three_at_once, "inclusive: sample i must not shadow itself; the b")


def without_the_last(density, colour, deltas, background):
    return renderer()(density[:, :-1], colour[:, :-1], deltas[:, :-1], background)


add("last sample dropped", "renderer", without_the_last, "the last sample is dropped")

# ---------------------------------------------------------------------------------- schedules


def noised(fn, given=True):
    """Adds a noise of (x, eps, abar_t), the one that is given or one of its own."""

    def with_given(x, t, eps, alphas_cumprod):
        return fn(x, eps, alphas_cumprod[t].view(-1, 1, 1, 1))

    def with_own(x, t, alphas_cumprod):
        return fn(x, torch.randn_like(x), alphas_cumprod[t].view(-1, 1, 1, 1))

    return with_given if given else with_own


def mix(x, eps, abar):
    return abar.sqrt() * x + (1 - abar).sqrt() * eps


def of_the_first_t(x, t, eps, alphas_cumprod):
    return mix(x, eps, alphas_cumprod[t[:1]])


RIGHT["a noise of its own"] = ("schedule", noised(mix, given=False))
for name, fn, words in (
    ("rand_like", lambda x, eps, abar: mix(x, torch.rand_like(x), abar), "uniform"),
    ("centred rand", lambda x, eps, abar: mix(x, 2 * torch.rand_like(x) - 1, abar), "uniform"),
    ("redrawn", lambda x, eps, abar: mix(x, torch.randn_like(x), abar), "ignores the one"),
    ("one more", lambda x, eps, abar: mix(x, eps, abar) + 0.1 * torch.randn_like(x), "beside"),
    ("one for all", lambda x, eps, abar: mix(x, eps[:1], abar), "share one noise"),
    ("mirrored", lambda x, eps, abar: mix(x, eps.flip(-1), abar), "is not in it"),
    ("subtracted", lambda x, eps, abar: mix(x, -eps, abar), "the noise is subtracted"),
    ("a tenth", lambda x, eps, abar: mix(x, eps / 10, abar), "multiplied by 0.1"),
    ("of x_t / alpha", lambda x, eps, abar: mix(x, eps, abar) / abar.sqrt(), "sigma_t / alpha_t"),
):
    add(name, "schedule", noised(fn), words)
for name, fn, words in (
    ("own rand", lambda x, eps, abar: mix(x, torch.rand_like(x), abar), "uniform"),
    ("own for all", lambda x, eps, abar: mix(x, torch.randn_like(x[:1]), abar), "share one noise"),
):
    add(name, "schedule", noised(fn, given=False), words)
add("t of the first", "schedule", of_the_first_t, "noise level of their own t")


def table(fn):
    return lambda betas: fn(betas, (1 - betas).cumprod(0))


for name, fn, words in (
    ("1 - cumprod beta", lambda b, abar: 1 - b.cumprod(0), "the product is over beta"),
    ("1 - cumsum beta", lambda b, abar: 1 - b.cumsum(0), "minus the sum"),
    ("exp", lambda b, abar: torch.exp(-b.cumsum(0)), "not exp of minus the sum"),
    ("root", lambda b, abar: abar.sqrt(), "a square root too many"),
    ("to the end", lambda b, abar: (1 - b).flip(0).cumprod(0).flip(0), "runs from t to the end"),
    ("straight", lambda b, abar: (1 - torch.arange(1000) / 1000, abar.sqrt()), "flow matching"),
):
    add(name, "schedule", table(fn), words)

# ---------------------------------------------------------------------------------- pairs


def pair(picture, residuals=lambda e, eps: (e[0] - eps[0], e[1] - eps[1])):
    """PSD with a picture for the reward of (x_t, eps_hat, alpha, sigma, abar, t, x)."""

    def submission(
        x, t, eps_1, eps_2, predict_noise, cond, uncond, reward, guidance_scale, lam, alphas_cumprod
    ):
        a, s = levels(alphas_cumprod, t)
        noises, predictions, r = (eps_1, eps_2), [], []
        with torch.no_grad():
            for eps in noises:
                x_t = a * x + s * eps
                u = predict_noise(x_t, t, uncond)
                e = u + guidance_scale * (predict_noise(x_t, t, cond) - u)
                shown = picture(x_t, e, a, s, alphas_cumprod, t, x)
                r.append(reward(shown).view(-1, 1, 1, 1))
                predictions.append(e)
        h = residuals(predictions, noises)
        return (h[0] + h[1]) / 2 + lam * torch.sign(r[0] - r[1]) * (h[0] - h[1])

    return submission


def at_another_t(steps):
    def picture(x_t, e, a, s, alphas_cumprod, t, x):
        a, s = levels(alphas_cumprod, t + steps)
        return (x_t - s * e) / a

    return picture


def x0_hat(x_t, e, a, s, *_):
    return (x_t - s * e) / a


RIGHT["x0_hat in 8 bits"] = ("psd", pair(lambda *v: (x0_hat(*v).clamp(-2, 2) * 64).round() / 64))
for steps in (-100, -1, 1):
    add(f"picture at t {steps:+d}", "psd", pair(at_another_t(steps)), "at the level of another t")
for name, submission, words in (
    ("no sigma", pair(lambda x_t, e, a, s, *_: (x_t - e) / a), "sigma_t is missing"),
    ("plus", pair(lambda x_t, e, a, s, *_: (x_t + s * e) / a), "x_t - -0.8507 eps_cfg"),
    ("beside x", pair(lambda x_t, e, a, s, *v: x0_hat(x_t, e, a, s) + v[-1]), "not shown x0_hat"),
    ("first noise", pair(x0_hat, lambda e, eps: (e[0] - eps[0], e[1] - eps[0])), "first noise"),
    ("swapped", pair(x0_hat, lambda e, eps: (e[0] - eps[1], e[1] - eps[0])), "are swapped"),
):
    add(name, "psd", submission, words)

# ---------------------------------------------------------------------------------- SDS, VSD


def bent(fn):
    """A function of the right gradient."""
    return formula(lambda c, u, eps, g, a, s, x: fn(s**2 * (u + g * (c - u) - eps)))


def loss_of(fn):
    """A loss of (x, x_t, G, eps_hat, alpha, sigma) with x_t on the graph."""

    def submission(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
        a, s = levels(alphas_cumprod, t)
        x_t = a * x + s * eps
        with torch.no_grad():
            c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
            e = u + guidance_scale * (c - u)
        return fn(x, x_t, s**2 * (e - eps), e, a, s).square().sum() / 2

    return submission


for limit in (0.01, 1, 10):
    clamped = bent(lambda G, limit=limit: G.clamp(-limit, limit))
    add(f"clamped at {limit}", "sds", clamped, f"clamped elementwise at {limit}")
for name, submission, words in (
    ("sign", bent(torch.sign), "only the sign of each element"),
    ("tanh", bent(torch.tanh), "a tanh"),
    ("relu", bent(torch.relu), "below 0 are cut off"),
    ("abs", bent(torch.abs), "the absolute value"),
    ("centred", bent(lambda G: G - G.mean((1, 2, 3), keepdim=True)), "the mean over the picture"),
    ("normalised", bent(lambda G: F.normalize(G, dim=1)), "normalised at every pixel"),
    ("clamped loss", loss_of(lambda x, x_t, G, *_: x - (x - G.clamp(-1, 1)).detach()), "at 1:"),
    ("target of x_t", loss_of(lambda x, x_t, G, *_: x - (x_t - G)), "x_t is not detached"),
    (
        "x0_hat",
        loss_of(lambda x, x_t, G, e, a, s: x - (x_t - s * e) / a),
        "nothing of the gradient",
    ),
):
    add(name, "sds", submission, words)


@formula
def clamped_prediction(c, u, eps, g, a, s, x):
    return (u + g * (c - u)).clamp(-1, 1) - eps


@formula
def clamped_x0_hat(c, u, eps, g, a, s, x):
    return x - (x + (eps - u - g * (c - u)) * s / a).clamp(-1, 1)


@formula
def taken_for_a_velocity(c, u, eps, g, a, s, x):
    return a * (u + g * (c - u)) + s * (a * x + s * eps) - eps


@formula
def minus_a_velocity(c, u, eps, g, a, s, x):
    return a * (u + g * (c - u)) - s * (a * x + s * eps) - eps


@formula
def half_of_the_noise(c, u, eps, g, a, s, x):
    return u + g * (c - u) - eps / 2


add("prediction clamped", "sds", clamped_prediction, "the guided prediction is clamped")
add("x0_hat clamped", "sds", clamped_x0_hat, "x0_hat is clamped")
add("velocity", "sds", taken_for_a_velocity, "is taken for a velocity")
add("minus velocity", "sds", minus_a_velocity, "subtracted from a velocity")
add("half of the noise", "sds", half_of_the_noise, "the noise has another size")


def guided_q(x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale):
    c, u, q = three_predictions(x, t, eps, unet, unet_lora, cond, uncond, scheduler)
    return u + guidance_scale * (c - u - q)


add("guided q", "vsd", guided_q, "q's prediction is multiplied by g")


# ---------------------------------------------------------------------------------- whole classes


class PromptFirst:
    """CSD with a stack of its own order."""

    def __init__(self):
        from diffusers import StableDiffusionPipeline

        self.pipe = StableDiffusionPipeline.from_pretrained("id")

    def __call__(self, latents, text_embeddings):
        """text_embeddings: [text, uncond], of twice as many rows as latents."""
        t = torch.randint(20, 980, (len(latents),))
        noisy = self.pipe.scheduler.add_noise(latents, torch.randn_like(latents), t)
        with torch.no_grad():
            both = self.pipe.unet(torch.cat((noisy, noisy)), torch.cat((t, t)), text_embeddings)
        text, uncond = both.sample.chunk(2)
        return ((text - uncond) * latents).sum() / len(latents)


class EmptyFirst(PromptFirst):
    def __call__(self, latents, text_embeddings):
        """text_embeddings: [uncond, text], which is taken for the other order."""
        return super().__call__(latents, text_embeddings)


class OwnWords(torch.nn.Module):
    """SDS with prompts as defaults, and torchvision's Normalize."""

    def __init__(self, prompt="a red apple", negative="ugly, blurry"):
        super().__init__()
        from diffusers import StableDiffusionPipeline

        self.pipe = StableDiffusionPipeline.from_pretrained("id")
        self.prompts = (negative, prompt)
        self.normalize = named("torchvision", "Normalize")([0.5] * 3, [0.5] * 3)

    def embed(self, prompt):
        return self.pipe.text_encoder(self.pipe.tokenizer(prompt).input_ids)[0]

    def forward(self, images, guidance_scale):
        pictures = self.normalize(F.interpolate(images, (512, 512)))
        z = self.pipe.vae.encode(pictures).latent_dist.sample()
        z = z * self.pipe.vae.config.scaling_factor
        n, t, eps = len(z), torch.randint(20, 980, (len(z),)), torch.randn_like(z)
        with torch.no_grad():
            noisy = self.doubled(self.pipe.scheduler.add_noise(z, eps, t))
            prompts = torch.cat([self.embed([prompt] * n) for prompt in self.prompts])
            u, c = self.pipe.unet(noisy, self.doubled(t), prompts).sample.chunk(2)
        return ((u + guidance_scale * (c - u) - eps) * z).sum() / n

    def doubled(self, rows):
        return torch.cat((rows, rows))


class Interleaved(OwnWords):
    def doubled(self, rows):
        return rows.repeat_interleave(2, dim=0)


class RaysOfABatch(OwnWords):
    def __init__(self, H=48, W=64):
        super().__init__()
        self.H, self.W = H, W

    def forward(self, pred_rgb, guidance_scale):
        images = pred_rgb.reshape(-1, self.H, self.W, 3).permute(0, 3, 1, 2)
        return super().forward(images, guidance_scale)


class AlwaysOn:
    """VSD whose adapters nobody switches off."""

    def __init__(self):
        from diffusers import StableDiffusionPipeline

        self.pipe = StableDiffusionPipeline.from_pretrained("id")
        self.pipe.unet.add_adapter("lora")

    def vsd_loss(self, latents, cond, uncond, guidance_scale):
        t, unet = torch.randint(20, 980, (len(latents),)), self.pipe.unet
        noisy = self.pipe.scheduler.add_noise(latents, torch.randn_like(latents), t)
        with torch.no_grad():
            u, c = unet(noisy, t, uncond).sample, unet(noisy, t, cond).sample
            unet.enable_adapters()
            q = unet(noisy, t, cond).sample
        return ((u + guidance_scale * (c - u) - q) * latents).sum() / len(latents)


RIGHT["prompt first"] = ("csd", PromptFirst)
RIGHT["words of its own"] = ("sds", OwnWords)
RIGHT["rays of a batch"] = ("sds", RaysOfABatch)
add("empty prompt first", "csd", EmptyFirst, "ascent")
add("interleaved", "sds", Interleaved, "repeat for repeat_interleave?")
add("adapters always on", "vsd", AlwaysOn, "only q is asked")


SETTINGS = {"guidance": {"scale": 50.0, "first": 0.02}, "prompt": "a tree"}


class OfSettings(named("pytorch_lightning", "LightningModule")):
    """Its settings are nested, and a buffer has the name of something that answers already."""

    def __init__(self, cfg=named("omegaconf", "OmegaConf").create(SETTINGS)):  # noqa: B008
        super().__init__()
        from diffusers import StableDiffusionPipeline

        self.cfg, self.pipe = cfg, StableDiffusionPipeline.from_pretrained("id")
        cond, uncond = self.pipe.encode_prompt(cfg.prompt, "cpu", 1, True, "")
        self.register_buffer("cond", cond)
        self.register_buffer("uncond", uncond)

    def compute_sds_loss(self, latents):
        t, eps = torch.randint(20, 980, (len(latents),)), torch.randn_like(latents)
        with torch.no_grad():
            x_t = self.pipe.scheduler.add_noise(latents, eps, t)
            prompts = (e.expand(len(x_t), -1, -1) for e in (self.uncond, self.cond))
            u, c = (self.pipe.unet(x_t, t, e).sample for e in prompts)
        return ((u + self.cfg.guidance.scale * (c - u) - eps) * latents).sum() / len(latents)

    def training_step(self, batch, batch_idx):
        return self.compute_sds_loss(batch["latents"])


RIGHT["nested settings"] = ("sds", OfSettings)
