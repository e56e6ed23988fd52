"""Stand-ins for diffusers: which network answers, other forms of pictures, SDXL, DDIM inversion.

Beside every right submission stands a wrong neighbour, which must never pass.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from psd_mini.checks.grading.stand_ins import (
    InverseScheduler,
    LoRA,
    Pipeline,
    PipelineXL,
    Scheduler,
    StandIn,
    UNet,
)
from psd_mini.checks.sds import check_sds, check_vsd


def noised(latents, scheduler):
    t = torch.randint(50, 950, (len(latents),))
    noise = torch.randn_like(latents)
    return scheduler.add_noise(latents.detach(), noise, t), t, noise


def by_methods(unet, on):
    unet.enable_adapters() if on else unet.disable_adapters()
    return {}


def by_name(unet, on):
    unet.set_adapters(["q"], [1.0 if on else 0.0])
    return {}


def by_scale(unet, on):
    return {"cross_attention_kwargs": {"scale": 1.0 if on else 0.0}}


def by_processors(unet, on):
    one = LoRA() if on else StandIn()
    unet.set_attn_processor(dict.fromkeys(unet.attn_processors, one))
    return {}


SWITCHES = [by_methods, by_name, by_scale, by_processors]


def vsd_with(switch, prior=False, q=True):
    """VSD on one UNet, its adapters switched to `prior` and `q` for the two predictions."""

    @torch.no_grad()
    def vsd(latents, unet, scheduler, text_embeddings, uncond_embeddings, guidance_scale):
        x_t, t, _ = noised(latents, scheduler)
        eps_q = unet(x_t, t, text_embeddings, **switch(unet, q)).sample
        cond = unet(x_t, t, text_embeddings, **switch(unet, prior)).sample
        uncond = unet(x_t, t, uncond_embeddings, **switch(unet, prior)).sample
        return uncond + guidance_scale * (cond - uncond) - eps_q

    return vsd


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_adapters_say_which_network_answers(switch):
    assert check_vsd(vsd_with(switch)).ok
    never_on = check_vsd(vsd_with(switch, q=False))
    assert not never_on.ok and "pretrained network used for both" in str(never_on)
    assert not check_vsd(vsd_with(switch, prior=True)).ok
    assert not check_vsd(vsd_with(switch, prior=True, q=False)).ok


class InContext:
    """peft's way: the adapter is added here, and left within a `with`."""

    def __init__(self, pipe):
        self.unet, self.scheduler = pipe.unet, pipe.scheduler
        self.unet.add_adapter(None, adapter_name="q")

    @torch.no_grad()
    def vsd_loss(self, z, text_embeddings, uncond_embeddings, guidance_scale):
        x_t, t, _ = noised(z, self.scheduler)
        with self.unet.disable_adapter():
            cond = self.unet(x_t, t, text_embeddings).sample
            uncond = self.unet(x_t, t, uncond_embeddings).sample
            inside = self.unet(x_t, t, text_embeddings).sample
        eps_q = self.eps_q(inside, x_t, t, text_embeddings)
        return uncond + guidance_scale * (cond - uncond) - eps_q

    def eps_q(self, inside, x_t, t, e):
        return self.unet(x_t, t, e).sample


class StaysInContext(InContext):
    def eps_q(self, inside, x_t, t, e):
        return inside


def test_an_adapter_that_is_left_within_a_context():
    assert check_vsd(InContext).ok
    assert not check_vsd(StaysInContext).ok


class TwoUNets:
    """The second network is a copy under one of q's names."""

    def __init__(self, pipe):
        self.unet, self.scheduler = pipe.unet, pipe.scheduler
        self.unet_lora = copy.deepcopy(pipe.unet)

    @torch.no_grad()
    def vsd_loss(self, z, text_embeddings, uncond_embeddings, guidance_scale):
        x_t, t, _ = noised(z, self.scheduler)
        cond, uncond = (self.unet(x_t, t, e).sample for e in (text_embeddings, uncond_embeddings))
        eps_q = self.unet_lora(x_t, t, text_embeddings).sample
        return uncond + guidance_scale * (cond - uncond) - eps_q


class OneUNetTwice(TwoUNets):
    def __init__(self, pipe):
        super().__init__(pipe)
        self.unet_lora = self.unet


def test_a_copy_is_the_second_network_and_the_same_one_is_not():
    assert check_vsd(TwoUNets).ok
    assert not check_vsd(OneUNetTwice).ok


def test_processors_without_adapters_are_the_prior():
    unet = UNet()
    unet.set_attn_processor(LoRA())
    assert unet.q
    unet.set_attn_processor(StandIn())
    assert not unet.q and set(map(type, unet.attn_processors.values())) == {StandIn}
    assert unet.config.in_channels == unet.config["in_channels"] == 4
    assert unet.config.get("addition_embed_type", 1) is None


def sds_maker(unet, scheduler, guidance_scale, sign=1):
    @torch.no_grad()
    def sds(z, y, null):
        x_t, t, noise = noised(z, scheduler)
        cond, uncond = unet(x_t, t, y).sample, unet(x_t, t, null).sample
        return sign * (uncond + guidance_scale * (cond - uncond) - noise)

    return sds


def wrong_maker(unet, scheduler, guidance_scale):
    return sds_maker(unet, scheduler, guidance_scale, -1)


def test_a_function_that_is_returned_is_called():
    assert check_sds(sds_maker).ok
    assert "sign" in str(check_sds(wrong_maker))


def test_inversion_is_the_step_backwards():
    """From z at an earlier level to t and back, with one prediction: exact up to rounding."""
    down, up = Scheduler(), InverseScheduler.from_config(Scheduler.config)
    z = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    eps = torch.randn_like(z)
    for scheduler in (down, up):
        scheduler.set_timesteps(10)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    assert up.timesteps.tolist() == down.timesteps.tolist()[::-1]
    higher = up.step(eps, 500, z).prev_sample
    assert (higher - z).abs().max() > 0.1
    assert torch.allclose(down.step(eps, 500, higher).prev_sample, z, rtol=0, atol=1e-10)


class XL:
    pooled_of = "cond"

    def __init__(self, device):
        self.pipe = pm_pipeline().to(device)
        cond, uncond, pooled, pooled_uncond = self.pipe.encode_prompt("a corgi", device, 1, True)
        other = {"cond": pooled, "uncond": pooled_uncond}[self.pooled_of]
        self.rows = ((uncond, pooled_uncond), (cond, other))
        self.ids = self.pipe._get_add_time_ids((512, 512), (0, 0), (512, 512), dtype=cond.dtype)

    def sds_loss(self, image, guidance_scale):
        encoded = self.pipe.vae.encode(2 * image - 1).latent_dist.sample()
        latents = encoded * self.pipe.vae.config.scaling_factor
        x_t, t, noise = noised(latents, self.pipe.scheduler)
        b, predicted = len(latents), []
        for e, pooled in self.rows:
            added = {"text_embeds": pooled.expand(b, -1), "time_ids": self.ids.expand(b, -1)}
            e = e.expand(b, -1, -1)
            with torch.no_grad():
                predicted.append(self.pipe.unet(x_t, t, e, added_cond_kwargs=added).sample)
        uncond, cond = predicted
        return ((uncond + guidance_scale * (cond - uncond) - noise) * latents).sum() / b


class OtherPooled(XL):
    pooled_of = "uncond"


def pm_pipeline():
    return Pipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")


def test_sdxl():
    assert isinstance(pm_pipeline(), PipelineXL) and pm_pipeline().vae.config.scaling_factor < 0.14
    assert type(Pipeline.from_pretrained("stabilityai/sd-turbo")) is Pipeline
    assert check_sds(XL).ok, check_sds(XL)
    assert "another prompt" in str(check_sds(OtherPooled))


def sds_of(to_bchw):
    """SDS of pictures that `to_bchw` turns into (B, 3, H, W)."""

    def sds(image, unet, vae, scheduler, text_embeddings, uncond_embeddings, guidance_scale, H, W):
        picture = F.interpolate(to_bchw(image, H, W), (512, 512), mode="bilinear")
        z = vae.encode(2 * picture - 1).latent_dist.sample() * vae.config.scaling_factor
        x_t, t, noise = noised(z, scheduler)
        with torch.no_grad():
            cond = unet(x_t, t, text_embeddings).sample
            uncond = unet(x_t, t, uncond_embeddings).sample
        return ((uncond + guidance_scale * (cond - uncond) - noise) * z).sum() / len(z)

    return sds


def one_picture(image, *_):
    assert image.ndim == 3 and image.shape[-1] == 3
    return image.permute(2, 0, 1)[None]


def of_rays(pattern):
    def to_bchw(rays, h, w):
        n, channels = rays.shape
        return {
            "(h w) c -> 1 c h w": lambda: rays.T.reshape(1, channels, h, w),
            "(h w) c -> 1 c w h": lambda: rays.T.reshape(1, channels, h, w).mT,
            "(h w c) -> 1 c h w": lambda: rays.reshape(1, channels, h, w),
        }[pattern]()

    return to_bchw


PICTURES = {  # right, and neighbours that mix the picture up
    "(B, 3, H, W)": (lambda image, *_: image, lambda image, *_: image.mT),
    "(B, H, W, 3)": (
        lambda image, *_: image.permute(0, 3, 1, 2),
        lambda image, *_: image.permute(0, 3, 2, 1),
    ),
    "(H, W, 3)": (
        one_picture,
        lambda image, *_: one_picture(image).mT,
        lambda image, h, w: image.reshape(one_picture(image).shape),
    ),
    "rays": (
        of_rays("(h w) c -> 1 c h w"),
        of_rays("(h w) c -> 1 c w h"),
        of_rays("(h w c) -> 1 c h w"),
    ),
}


@pytest.mark.parametrize("layout", PICTURES)
def test_pictures_in_every_layout(layout):
    right, *wrong = PICTURES[layout]
    report = check_sds(sds_of(right))
    assert report.ok, report
    for to_bchw in wrong:
        report = check_sds(sds_of(to_bchw))
        assert report.status == "wrong" and "use permute" in str(report).replace("\n   ", " ")


class Rays:
    """H and W stand in the object, and are not 512."""

    def __init__(self, pipe, H=48, W=64):
        self.pipe, self.H, self.W = pipe, H, W

    def shape(self):
        return 1, self.H, self.W, 3

    def sds_loss(self, rgb, text_embeddings, uncond_embeddings, guidance_scale):
        unet, vae, scheduler = self.pipe.unet, self.pipe.vae, self.pipe.scheduler
        assert rgb.ndim == 2
        fn = sds_of(lambda *_: rgb.view(self.shape()).permute(0, 3, 1, 2))
        embeddings = text_embeddings, uncond_embeddings
        return fn(rgb, unet, vae, scheduler, *embeddings, guidance_scale, 0, 0)


class RaysByColumns(Rays):
    def shape(self):
        return 1, self.W, self.H, 3


def test_rays_of_a_picture_that_the_object_knows():
    assert check_sds(Rays).ok, check_sds(Rays)
    assert check_sds(RaysByColumns).status == "wrong"


def a_typo(image, unet):
    a_typo.calls += 1
    return imagee.sum()  # noqa: F821


def test_another_form_is_not_tried_where_it_cannot_help():
    a_typo.calls = 0
    assert "imagee" in str(check_sds(a_typo)) and a_typo.calls == 1


class Inverted:
    """The noise of x_t is what DDIM inversion gives, and a fresh one is subtracted."""

    def __init__(self, pipe):
        self.unet, self.inverse = pipe.unet, InverseScheduler.from_config(pipe.scheduler.config)
        self.inverse.set_timesteps(4)

    @torch.no_grad()
    def sds_loss(self, z, text_embeddings, uncond_embeddings, guidance_scale):
        x_t = z.detach()
        for t in self.inverse.timesteps[:3]:  # t = 0 has no noise yet
            x_t = self.inverse.step(self.unet(x_t, t, uncond_embeddings).sample, t, x_t).prev_sample
        cond, uncond = (self.unet(x_t, t, e).sample for e in (text_embeddings, uncond_embeddings))
        return uncond + guidance_scale * (cond - uncond) - torch.randn_like(z)


def test_a_noise_of_inversion_is_no_fresh_one():
    assert check_sds(Inverted).status == "wrong"


@torch.no_grad()
def of_the_first_picture(x, unet, scheduler, text_embeddings, uncond_embeddings, guidance_scale):
    """In a batch it asks about one picture only."""
    x_t, t, noise = noised(x[:1], scheduler)
    cond, uncond = (unet(x_t, t, e[:1]).sample for e in (text_embeddings, uncond_embeddings))
    return (uncond + guidance_scale * (cond - uncond) - noise).expand_as(x)


def test_pictures_that_nothing_was_asked_about():
    report = check_sds(of_the_first_picture)
    assert report.status == "wrong" and "batch of 3" in str(report), report


def vsd_and_loss_of_q(target, answer):
    """VSD whose q is trained in the same call: || eps_q(x_t) - target ||^2 beside the loss of x."""

    def vsd(z, unet, unet_lora, scheduler, text_embeddings, uncond_embeddings, guidance_scale):
        x_t, t, noise = noised(z, scheduler)
        with torch.no_grad():
            cond = unet(x_t, t, text_embeddings).sample
            uncond = unet(x_t, t, uncond_embeddings).sample
            prior = uncond + guidance_scale * (cond - uncond)
        eps_q = unet_lora(x_t, t, text_embeddings).sample
        targets = {"noise": noise, "prior": prior, "x": z.detach()}
        loss = ((prior - eps_q.detach()) * z).sum() / len(z)
        return answer(loss, F.mse_loss(eps_q, targets[target]))

    return vsd


ANSWERS = [lambda loss, of_q: (loss, of_q), lambda loss, of_q: {"loss_vsd": loss, "loss_q": of_q}]


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_loss_of_q_that_comes_beside_is_judged(answer):
    """Regressed on the prior's prediction, q ends where the VSD gradient vanishes."""
    right = check_vsd(vsd_and_loss_of_q("noise", answer))
    assert right.ok and "q learns +1 noise" in str(right), right
    for target, cause in (("prior", "match the frozen model"), ("x", "must predict the noise")):
        report = check_vsd(vsd_and_loss_of_q(target, answer))
        wrong = [finding.name for finding in report.findings if not finding.ok]
        assert wrong == ["training of q"] and cause in report.causes[0], report


def test_training_that_does_not_come_is_said_not_to_be_checked():
    report = check_vsd(vsd_and_loss_of_q("prior", lambda loss, of_q: loss))
    assert report.ok and "q's training was not checked" in str(report), report


class Peft:
    """The base is frozen, an adapter is added by peft; x_t is drawn anew for its training."""

    target = "noise"

    def __init__(self, pipe):
        from peft import LoraConfig, get_peft_model

        self.scheduler = pipe.scheduler
        self.unet = get_peft_model(pipe.unet.requires_grad_(False), LoraConfig(r=4))
        self.unet.print_trainable_parameters()
        weights = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4)

    def vsd_loss(self, z, text_embeddings, uncond_embeddings, guidance_scale):
        x_t, t, _ = noised(z, self.scheduler)
        with torch.no_grad():
            with self.unet.disable_adapter():
                cond = self.unet(x_t, t, text_embeddings).sample
                uncond = self.unet(x_t, t, uncond_embeddings).sample
            eps_q = self.unet(x_t, t, text_embeddings).sample
        gradient = uncond + guidance_scale * (cond - uncond) - eps_q
        again, later, noise = noised(z, self.scheduler)
        with torch.no_grad(), self.unet.disable_adapter():
            prior = self.unet(again, later, text_embeddings).sample
        target = {"noise": noise, "prior": prior}[self.target]
        of_q = F.mse_loss(self.unet(again, later, text_embeddings).sample, target)
        return (gradient * z).sum() / len(z), of_q


class PeftOnPrior(Peft):
    target = "prior"


def test_an_adapter_has_weights_to_train_where_the_base_is_frozen():
    assert check_vsd(Peft).ok, check_vsd(Peft)
    assert "match the frozen model" in "; ".join(check_vsd(PeftOnPrior).causes)
