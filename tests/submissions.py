"""What people hand in: right code in many styles, and wrong code with words of its diagnosis.

Plain code on purpose, written as a student would, without the package. `RIGHT` and `WRONG` map a
name to (kind, submission) and (kind, submission, words); more than one word means more than one
mistake.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

RIGHT: dict = {}
WRONG: dict = {}


def right(kind):
    def add(fn):
        RIGHT[fn.__name__] = (kind, fn)
        return fn

    return add


def wrong(kind, *words):
    def add(fn):
        WRONG[fn.__name__] = (kind, fn, words)
        return fn

    return add


# ---- two course starters, with the student's part left open


class StarterA:
    """Separate embeddings; the student fills in `sds_loss`."""

    def __init__(self, sd_version="2.1", device="cpu", t_range=(0.02, 0.98)):
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        self.device = device
        name = (
            "stabilityai/stable-diffusion-2-1-base"
            if sd_version == "2.1"
            else "CompVis/stable-diffusion-v1-4"
        )
        pipe = StableDiffusionPipeline.from_pretrained(name, torch_dtype=torch.float32).to(
            self.device
        )
        self.vae, self.tokenizer, self.text_encoder, self.unet = (
            pipe.vae,
            pipe.tokenizer,
            pipe.text_encoder,
            pipe.unet,
        )
        self.scheduler = DDIMScheduler.from_pretrained(
            name, subfolder="scheduler", torch_dtype=torch.float32
        )
        del pipe
        self.num_train_timesteps = self.scheduler.config.num_train_timesteps
        self.min_step, self.max_step = (int(self.num_train_timesteps * bound) for bound in t_range)
        self.alphas = self.scheduler.alphas_cumprod.to(self.device)


@right("sds")
class StarterASolved(StarterA):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t = torch.randint(
            self.min_step,
            self.max_step + 1,
            (latents.shape[0],),
            dtype=torch.long,
            device=self.device,
        )
        with torch.no_grad():
            noise = torch.randn_like(latents)
            noisy = self.scheduler.add_noise(latents, noise, t)
            pred = self.unet(noisy, t, encoder_hidden_states=text_embeddings).sample
            if text_embeddings_uncond is not None and guidance_scale != 1:
                free = self.unet(noisy, t, encoder_hidden_states=text_embeddings_uncond).sample
                pred = free + guidance_scale * (pred - free)
        w = 1 - self.alphas[t]
        target = (latents - grad_scale * w[:, None, None, None] * (pred - noise)).detach()
        return 0.5 * F.mse_loss(latents, target, reduction="sum") / latents.shape[0]


class StarterB(nn.Module):
    """Stacked embeddings [uncond, cond] and one UNet call of the doubled batch."""

    def __init__(self, args, t_range=(0.02, 0.98)):
        super().__init__()
        from diffusers import DDIMScheduler, StableDiffusionPipeline
        from transformers import logging

        logging.set_verbosity_error()
        self.device, self.dtype = args.device, args.precision
        pipe = StableDiffusionPipeline.from_pretrained(
            "stabilityai/stable-diffusion-2-1-base", torch_dtype=self.dtype
        )
        pipe.to(self.device)
        self.vae, self.tokenizer, self.text_encoder, self.unet = (
            pipe.vae,
            pipe.tokenizer,
            pipe.text_encoder,
            pipe.unet,
        )
        self.scheduler = DDIMScheduler.from_pretrained(
            "...", subfolder="scheduler", torch_dtype=self.dtype
        )
        self.num_train_timesteps = self.scheduler.config.num_train_timesteps
        self.t_range = t_range
        self.alphas = self.scheduler.alphas_cumprod.to(self.device)

    def get_noise_preds(self, latents_noisy, t, text_embeddings, guidance_scale=100):
        both = self.unet(
            torch.cat([latents_noisy] * 2),
            torch.cat([t] * 2),
            encoder_hidden_states=text_embeddings,
        ).sample
        uncond, cond = both.chunk(2)
        return uncond + guidance_scale * (cond - uncond)

    def draw(self, latents):
        low, high = (int(self.num_train_timesteps * bound) for bound in self.t_range)
        return torch.randint(low, high + 1, (latents.shape[0],), device=latents.device)


@right("sds")
class StarterBSolved(StarterB):
    def get_sds_loss(self, latents, text_embeddings, guidance_scale=100, grad_scale=1):
        t = self.draw(latents)
        noise = torch.randn_like(latents)
        with torch.no_grad():
            pred = self.get_noise_preds(
                self.scheduler.add_noise(latents, noise, t), t, text_embeddings, guidance_scale
            )
        w = (1 - self.alphas[t]).view(-1, 1, 1, 1)
        grad = torch.nan_to_num(grad_scale * w * (pred - noise))
        return (grad.detach() * latents).sum() / latents.shape[0]


# ---- other right ones


def levels(alphas_cumprod, t):
    abar = alphas_cumprod[t].view(-1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


@right("sds")
@torch.no_grad()
def plain_gradient(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    x_t = a * x + s * eps
    c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
    return u + guidance_scale * (c - u) - eps


@right("sds")
def float64_other_cfg(
    latents,
    timesteps,
    noise,
    unet,
    text_embeddings,
    uncond_embeddings,
    guidance_scale,
    alphas_cumprod,
):
    latents, noise = latents.double(), noise.double()
    abar = alphas_cumprod.double()[timesteps].reshape(-1, 1, 1, 1)
    noisy = abar**0.5 * latents + (1 - abar) ** 0.5 * noise
    with torch.no_grad():
        c = unet(noisy, timesteps, encoder_hidden_states=text_embeddings, return_dict=False)[0]
        u = unet(noisy, timesteps, encoder_hidden_states=uncond_embeddings)["sample"]
    prediction = guidance_scale * c + (1 - guidance_scale) * u
    return abar.sqrt() * (1 - abar) * (prediction - noise)


class SpecifyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, gradient):
        ctx.save_for_backward(gradient)
        return torch.ones([1], device=value.device, dtype=value.dtype)

    @staticmethod
    def backward(ctx, scale):
        return scale * ctx.saved_tensors[0], None


@right("sds")
class DreamFusionStyle:
    """Pictures are encoded here; a custom autograd function; stacked embeddings."""

    def __init__(self, device, fp16=False, t_range=(0.02, 0.98)):
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from diffusers.utils.import_utils import is_xformers_available

        self.vae = AutoencoderKL.from_pretrained("model", subfolder="vae").to(device)
        self.unet = UNet2DConditionModel.from_pretrained("model", subfolder="unet").to(device)
        if is_xformers_available():
            self.unet.enable_xformers_memory_efficient_attention()
        self.scheduler = DDIMScheduler.from_pretrained("model", subfolder="scheduler")
        self.alphas = self.scheduler.alphas_cumprod
        self.device = device

    def train_step(self, text_embeddings, pred_rgb, guidance_scale=100):
        images = F.interpolate(pred_rgb, (512, 512), mode="bilinear", align_corners=False)
        latents = (
            self.vae.encode(2 * images - 1).latent_dist.sample() * self.vae.config.scaling_factor
        )
        t = torch.randint(20, 981, (latents.shape[0],), dtype=torch.long, device=self.device)
        with torch.no_grad():
            noise = torch.randn_like(latents)
            noisy = self.scheduler.add_noise(latents, noise, t)
            pred = self.unet(
                torch.cat([noisy] * 2), torch.cat([t] * 2), encoder_hidden_states=text_embeddings
            ).sample
            uncond, text = pred.chunk(2)
            pred = text + (guidance_scale - 1) * (text - uncond)
        w = 1 - self.alphas[t]
        return SpecifyGradient.apply(latents, w[:, None, None, None] * (pred - noise))


@right("sds")
def backward_inside(x, cond, uncond, unet, scheduler, guidance_scale):
    t = torch.randint(20, 980, [1])
    eps = torch.randn(x.shape)
    with torch.no_grad():
        x_t = scheduler.add_noise(x, eps, t)
        c = unet(x_t, t.item(), cond).sample
        u = unet(x_t, t.item(), uncond).sample
    x.backward(gradient=u + guidance_scale * (c - u) - eps)


@right("sds")
def x0_form(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    """sigma alpha (x - x0_hat): the same gradient with weight sigma_t^2."""
    a, s = levels(alphas_cumprod, t)
    x_t = (a * x + s * eps).detach()
    with torch.no_grad():
        u = predict_noise(x_t, t, uncond)
        e = u + guidance_scale * (predict_noise(x_t, t, cond) - u)
    return 0.5 * (a * s * (x - ((x_t - s * e) / a)).detach() * x * 2).sum()


@right("sds")
def half_precision(x, t, eps, unet, cond, uncond, guidance_scale, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    x_t = (a * x + s * eps).half()
    with torch.no_grad():
        u = unet(x_t, t, encoder_hidden_states=uncond.half()).sample
        c = unet(x_t, t, encoder_hidden_states=cond.half()).sample
    return s**2 * ((u + guidance_scale * (c - u)).float() - eps)


@right("sds")
def two_noises(x, t, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    total = 0
    for _ in range(2):
        eps = torch.randn_like(x)
        with torch.no_grad():
            u, c = (predict_noise(a * x + s * eps, t, e) for e in (uncond, cond))
        total = total + (u + guidance_scale * (c - u) - eps) / 2
    return total


@right("sds")
def predictions_given(eps_cond, eps_uncond, eps, guidance_scale):
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond) - eps


@right("cfg")
def cfg_usual(noise_pred_text, noise_pred_uncond, guidance_scale):
    return noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)


@right("cfg")
def cfg_unknown_names(a, b, w):
    return w * a + (1 - w) * b


@right("csd")
@torch.no_grad()
def csd_scaled(x, t, eps, unet, cond, uncond, scheduler, guidance_scale):
    x_t = scheduler.add_noise(x, eps, t)
    return guidance_scale * (unet(x_t, t, cond).sample - unet(x_t, t, uncond).sample)


@right("vsd")
@torch.no_grad()
def vsd_usual(x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale):
    x_t = scheduler.add_noise(x, eps, t)
    c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    w = (1 - scheduler.alphas_cumprod[t]).view(-1, 1, 1, 1)
    return w * (u + guidance_scale * (c - u) - unet_lora(x_t, t, cond).sample)


# ---- wrong SDS, with starter A


class A(StarterA):
    """Pieces that the wrong ones below recombine."""

    def noisy(self, latents):
        t = torch.randint(self.min_step, self.max_step + 1, (latents.shape[0],))
        noise = torch.randn_like(latents)
        return t, noise, self.scheduler.add_noise(latents, noise, t)

    def predict(self, noisy, t, cond, uncond, g):
        with torch.no_grad():
            c, u = (
                self.unet(noisy, t, encoder_hidden_states=cond).sample,
                self.unet(noisy, t, encoder_hidden_states=uncond).sample,
            )
        return u + g * (c - u)

    def weight(self, t):
        return (1 - self.alphas[t]).view(-1, 1, 1, 1)


@wrong("sds", "mean over elements instead of sum")
class MeanInsteadOfSum(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents.detach())
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale) - noise
        )
        return 0.5 * F.mse_loss(latents, (latents - grad).detach())


@wrong("sds", "factor 1/2")
class MissingHalf(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents.detach())
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale) - noise
        )
        return F.mse_loss(latents, (latents - grad).detach(), reduction="sum") / len(latents)


@wrong("sds", "mean over elements", "factor 1/2")
class PlainMSE(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents.detach())
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale) - noise
        )
        return F.mse_loss(latents, (latents - grad).detach())


@wrong("sds", "divided by the batch twice")
class BatchTwice(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents.detach())
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale) - noise
        )
        grad = grad / len(latents)
        return 0.5 * F.mse_loss(latents, (latents - grad).detach(), reduction="sum") / len(latents)


@wrong("sds", "target detached")
class TargetNotDetached(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        with torch.no_grad():
            t, noise, noisy = self.noisy(latents)
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale) - noise
        )
        return 0.5 * F.mse_loss(latents, latents - grad, reduction="sum")


@wrong("sds", "no gradient path")
class NoGradientPath(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents.detach())
        return F.mse_loss(
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale), noise
        )


@wrong("sds", "residual is taken at x_t")
class ResidualAtXt(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents.detach())
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale) - noise
        )
        return 0.5 * F.mse_loss(latents, (noisy - grad).detach(), reduction="sum")


@right("sds")
class ThroughXt(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents)
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale) - noise
        )
        return 0.5 * F.mse_loss(noisy, (noisy - grad).detach(), reduction="sum")


@wrong("sds", "redrawn")
class NoiseRedrawn(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents.detach())
        pred = self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale)
        grad = self.weight(t) * (pred - torch.randn_like(latents))
        return 0.5 * F.mse_loss(latents, (latents - grad).detach(), reduction="sum")


@wrong("sds", "no noise was added")
class NoNoiseAdded(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t = torch.randint(20, 980, (len(latents),))
        noise = torch.randn_like(latents)
        noisy = self.alphas[t].sqrt().view(-1, 1, 1, 1) * latents.detach()
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale) - noise
        )
        return 0.5 * F.mse_loss(latents, (latents - grad).detach(), reduction="sum")


@wrong("sds", "s+1", "mean over elements")
class PlusOneAndMean(A):
    def sds_loss(
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents.detach())
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale + 1)
            - noise
        )
        return 0.5 * F.mse_loss(latents, (latents - grad).detach())


@wrong("sds", "uniform")
class UniformNoise(A):
    def noisy(self, latents):
        t, noise = torch.randint(20, 980, (len(latents),)), torch.rand_like(latents)
        return t, noise, self.scheduler.add_noise(latents, noise, t)

    sds_loss = StarterASolved.sds_loss

    def __init__(self):
        super().__init__()
        original = torch.rand_like

        class Wrapped:
            add_noise = self.scheduler.add_noise
            config = self.scheduler.config

        self.scheduler, self.original = Wrapped(), original

    def sds_loss(  # noqa: F811
        self,
        latents,
        text_embeddings,
        text_embeddings_uncond=None,
        guidance_scale=100,
        grad_scale=1,
    ):
        t, noise, noisy = self.noisy(latents.detach())
        grad = self.weight(t) * (
            self.predict(noisy, t, text_embeddings, text_embeddings_uncond, guidance_scale) - noise
        )
        return 0.5 * F.mse_loss(latents, (latents - grad).detach(), reduction="sum")


@wrong("sds", "chunks")
class ChunkOrder(StarterB):
    def get_noise_preds(self, latents_noisy, t, text_embeddings, guidance_scale=100):
        both = self.unet(
            torch.cat([latents_noisy] * 2),
            torch.cat([t] * 2),
            encoder_hidden_states=text_embeddings,
        ).sample
        cond, uncond = both.chunk(2)
        return uncond + guidance_scale * (cond - uncond)

    get_sds_loss = StarterBSolved.get_sds_loss


@wrong("sds", "flipped guidance")
class FlippedGuidance(StarterB):
    def get_noise_preds(self, latents_noisy, t, text_embeddings, guidance_scale=100):
        both = self.unet(
            torch.cat([latents_noisy] * 2),
            torch.cat([t] * 2),
            encoder_hidden_states=text_embeddings,
        ).sample
        uncond, cond = both.chunk(2)
        return uncond + guidance_scale * (uncond - cond)

    get_sds_loss = StarterBSolved.get_sds_loss


@wrong("sds", "encoded under no_grad")
class EncodedUnderNoGrad(DreamFusionStyle):
    def train_step(self, text_embeddings, pred_rgb, guidance_scale=100):
        with torch.no_grad():
            latents = self.vae.encode(pred_rgb).latent_dist.sample() * 0.18215
        return (
            super().train_step(text_embeddings, pred_rgb.detach(), guidance_scale) * latents.sum()
        )


# ---- wrong SDS, as functions


def sds(x, t, eps, net, cond, uncond, g, abar, guided=None):
    """The right pieces, for those that are wrong elsewhere: x_t, c, u."""
    a, s = levels(abar, t)
    x_t = (a * x + s * eps).detach()
    with torch.no_grad():
        return x_t, net(x_t, t, cond), net(x_t, t, uncond)


@wrong("sds", "the UNet was never called")
def never_asks(x, t, eps):
    return x - eps


@wrong("sds", "not subtracted")
def noise_not_subtracted(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return u + guidance_scale * (c - u)


@wrong("sds", "ascent")
def sign_flipped(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return eps - (u + guidance_scale * (c - u))


@wrong("sds", "added instead of subtracted")
def noise_added(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return u + guidance_scale * (c - u) + eps


@wrong("sds", "guidance scale is ignored")
def guidance_ignored(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    _, c, _ = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return c - eps


@wrong("sds", "only the unconditional")
def unconditional_only(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    _, _, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return u - eps


@wrong("sds", "this is CSD")
def csd_for_sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return guidance_scale * (c - u)


@wrong("sds", "front is missing")
def no_unconditional_in_front(
    x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod
):
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return guidance_scale * (c - u) - eps


@wrong("sds", "off by one")
def t_off_by_one(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    a, s = levels(alphas_cumprod, t - 1)
    with torch.no_grad():
        x_t = a * x + s * eps
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
    return u + guidance_scale * (c - u) - eps


@wrong("sds", "square root is missing")
def no_square_root(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    abar = alphas_cumprod[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        x_t = abar * x + (1 - abar) * eps
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
    return u + guidance_scale * (c - u) - eps


@wrong("sds", "alphas in place of alphas_cumprod")
def per_step_alphas(x, t, eps, predict_noise, cond, uncond, guidance_scale, scheduler):
    a = scheduler.alphas[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        x_t = a.sqrt() * x + (1 - a).sqrt() * eps
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
    return u + guidance_scale * (c - u) - eps


@wrong("sds", "swapped")
def alpha_and_sigma_swapped(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    with torch.no_grad():
        x_t = s * x + a * eps
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
    return u + guidance_scale * (c - u) - eps


@wrong("sds", "1 - sqrt(abar_t)")
def sigma_is_one_minus_alpha(
    x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod
):
    a, _ = levels(alphas_cumprod, t)
    with torch.no_grad():
        x_t = a * x + (1 - a) * eps
        c, u = predict_noise(x_t, t, cond), predict_noise(x_t, t, uncond)
    return u + guidance_scale * (c - u) - eps


@wrong("sds", "through the UNet")
def jacobian_kept(x, t, eps, unet, cond, uncond, guidance_scale, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    x_t = a * x + s * eps
    c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return 0.5 * ((u + guidance_scale * (c - u) - eps) ** 2).sum()


@wrong("sds", "divided by the batch")
def gradient_divided_by_batch(
    x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod
):
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return (u + guidance_scale * (c - u) - eps) / len(x)


@wrong("sds", "integers 0..999")
def t_as_fraction(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    a, s = levels(alphas_cumprod, t)
    with torch.no_grad():
        x_t = a * x + s * eps
        c, u = predict_noise(x_t, t / 1000, cond), predict_noise(x_t, t / 1000, uncond)
    return u + guidance_scale * (c - u) - eps


@wrong("sds", "per-step alphas")
def weight_from_alphas(x, t, eps, predict_noise, cond, uncond, guidance_scale, scheduler):
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, scheduler.alphas_cumprod)
    return (1 - scheduler.alphas[t]).view(-1, 1, 1, 1) * (u + guidance_scale * (c - u) - eps)


@wrong("sds", "flipped guidance sign", "ascent")
def two_signs(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return eps - (u - guidance_scale * (c - u))


@wrong("sds", "redrawn", "s+1", "uniform")
def three_mistakes(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    first = torch.rand_like(x)
    _, c, u = sds(x, t, first, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return c + guidance_scale * (c - u) - torch.rand_like(x)


# ---------------------------------------------------------------------------------- CFG, CSD, VSD


@wrong("cfg", "acts as g + 1", "DreamFusion's convention")
def cfg_plus_one(noise_pred_text, noise_pred_uncond, guidance_scale):
    return noise_pred_text + guidance_scale * (noise_pred_text - noise_pred_uncond)


@wrong("cfg", "flipped guidance sign")
def cfg_flipped(noise_pred_text, noise_pred_uncond, guidance_scale):
    return noise_pred_uncond - guidance_scale * (noise_pred_text - noise_pred_uncond)


@wrong("cfg", "linear")
def cfg_normalised(noise_pred_text, noise_pred_uncond, guidance_scale):
    return (
        F.normalize(noise_pred_text - noise_pred_uncond, dim=-1) * guidance_scale
        + noise_pred_uncond
    )


@wrong("csd", "this is SDS")
@torch.no_grad()
def sds_for_csd(x, t, eps, unet, cond, uncond, scheduler, guidance_scale):
    x_t = scheduler.add_noise(x, eps, t)
    c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return u + guidance_scale * (c - u) - eps


@wrong("csd", "the two predictions are not at the same x_t")
@torch.no_grad()
def csd_of_two_noises(x, t, unet, cond, uncond, scheduler):
    first, second = (scheduler.add_noise(x, torch.randn_like(x), t) for _ in range(2))
    return unet(first, t, cond).sample - unet(second, t, uncond).sample


@wrong("csd", "ascent")
@torch.no_grad()
def csd_flipped(x, t, eps, unet, cond, uncond, scheduler):
    x_t = scheduler.add_noise(x, eps, t)
    return unet(x_t, t, uncond).sample - unet(x_t, t, cond).sample


@wrong("vsd", "this is SDS")
@torch.no_grad()
def vsd_with_noise(x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale):
    x_t = scheduler.add_noise(x, eps, t)
    c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return u + guidance_scale * (c - u) - eps


@wrong("vsd", "pretrained network used for both")
@torch.no_grad()
def vsd_same_network(x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale):
    x_t = scheduler.add_noise(x, eps, t)
    c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return u + guidance_scale * (c - u) - unet(x_t, t, cond).sample


@wrong("vsd", "ascent")
@torch.no_grad()
def vsd_flipped(x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale):
    x_t = scheduler.add_noise(x, eps, t)
    c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return unet_lora(x_t, t, cond).sample - (u + guidance_scale * (c - u))


# ---------------------------------------------------------------------------------- bad input


@wrong("sds", "returned None")
def returns_none(x, t, eps, predict_noise, cond):
    predict_noise(x, t, cond)


@wrong("sds", "returned shape")
def wrong_shape(x, t, eps, predict_noise, cond):
    return predict_noise(x, t, cond)[:, :2]


@wrong("sds", "integers")
def returns_integers(x, t, eps, predict_noise, cond):
    return predict_noise(x, t, cond).long()


@wrong("sds", "NaN")
def returns_nan(x, t, eps, predict_noise, cond):
    return predict_noise(x, t, cond) * float("nan")


@wrong("sds", "cuda")
def moves_to_cuda(x, t, eps, predict_noise, cond):
    return predict_noise(x.cuda(), t.cuda(), cond.cuda())


@wrong("sds", "exit")
def calls_exit(x, t, eps, predict_noise, cond):
    raise SystemExit(3)


@wrong("sds", "in place")
def modifies_in_place(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    result = u + guidance_scale * (c - u) - eps
    eps.mul_(0)
    return result


@wrong("sds", "Python number")
def returns_item(x, t, eps, predict_noise, cond):
    return predict_noise(x, t, cond).sum().item()


@right("sds")
def prints_a_lot(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod):
    for i in range(200):
        print("step", i, np.float64(i))
    _, c, u = sds(x, t, eps, predict_noise, cond, uncond, guidance_scale, alphas_cumprod)
    return u + guidance_scale * (c - u) - eps


@wrong("cfg", "in place")
def cfg_in_place(eps_cond, eps_uncond, guidance_scale):
    eps_cond -= eps_uncond
    return eps_uncond + guidance_scale * eps_cond


# ---- slips seen in courses


@wrong("sds", "interleaved")
class EmbeddingsInterleaved(StarterB):
    """[uncond, cond] repeated as a whole: in a batch each chunk holds both."""

    def get_sds_loss(self, latents, text_embeddings, guidance_scale=100, grad_scale=1):
        t, noise = self.draw(latents), torch.randn_like(latents)
        two = text_embeddings[:: len(latents)].repeat(len(latents), 1, 1)
        with torch.no_grad():
            pred = self.get_noise_preds(
                self.scheduler.add_noise(latents, noise, t), t, two, guidance_scale
            )
        return ((pred - noise) * latents).sum() / len(latents)


@wrong("sds", "'NoneType'", "hand in the object instead of its class")
class PromptFirst(StarterA):
    """Its prompt is encoded by a method that nobody called."""

    embeddings = None

    def sds_loss(self, latents, guidance_scale=100):
        return self.unet(
            latents, torch.tensor(500), self.embeddings.repeat(len(latents), 1, 1)
        ).sample.sum()
