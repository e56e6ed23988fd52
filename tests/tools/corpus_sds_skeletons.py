"""How people lay out an SDS gradient: code with holes for the pieces of `corpus_sds_slips`."""

FUNCTION = """import torch
import torch.nn.functional as F
$library


def sds_loss(x0, text_embeddings, uncond_embeddings, unet, alphas_cumprod, g=100.0):
    b = x0.shape[0]
    t = torch.randint(20, 980, (b,))
    eps = torch.randn_like(x0)
    abar = alphas_cumprod[t].view(b, 1, 1, 1)
    with $grad_mode:
        x_t = $x_t
        both = torch.cat([uncond_embeddings, text_embeddings])
        out_ = unet(torch.cat([x_t] * 2), torch.cat([$asked] * 2), encoder_hidden_states=both)
        $order = out_.sample.chunk(2)
        e = $guided
    d = ($weight) * ($residual)
    return ${factor}F.mse_loss(x0, $target, $sum)
"""
PICTURE_CLASS = """import torch
import torch.nn as nn
import torch.nn.functional as F
$library
from diffusers import DDIMScheduler, StableDiffusionPipeline


class Guide(nn.Module):
    def __init__(self, device, fp16, vram_O=False, sd_version="2.1", hf_key=None):
        super().__init__()
        self.device = device
        key = hf_key or "stabilityai/stable-diffusion-2-1-base"
        kind = torch.float16 if fp16 else torch.float32
        pipe = StableDiffusionPipeline.from_pretrained(key, torch_dtype=kind).to(device)
        if vram_O:
            pipe.enable_attention_slicing(1)
        self.vae, self.unet = pipe.vae, pipe.unet
        self.scheduler = DDIMScheduler.from_pretrained(key, subfolder="scheduler")
        self.alphas = self.scheduler.alphas_cumprod.to(device)

    def encode(self, picture):
        vae = self.vae
        return vae.encode(2 * picture - 1).latent_dist.sample() * $scaling

    def train_step(self, text_embeddings, picture, g=100):
        \"\"\"text_embeddings: [uncond, text]\"\"\"
        x0 = self.encode(F.interpolate(picture, (512, 512), mode="bilinear"))
        t = torch.randint(20, 981, (len(x0),), device=self.device)
        abar = self.alphas[t][:, None, None, None]
        with $grad_mode:
            eps = torch.randn_like(x0)
            x_t = $x_t
            two = torch.cat([x_t, x_t])
            out_ = self.unet(two, ($asked).repeat(2), encoder_hidden_states=text_embeddings)
            $order = out_.sample.chunk(2)
            e = $guided
        d = torch.nan_to_num(($weight) * ($residual))
        return ${factor}F.mse_loss(x0, $target, $sum)
"""
OPTIONS_CLASS = """import torch
$library
from diffusers import DDPMScheduler, UNet2DConditionModel


class Guide:
    def __init__(self, opt):
        self.opt = opt
        self.unet = UNet2DConditionModel.from_pretrained(opt.model, subfolder="unet")
        self.noise_scheduler = DDPMScheduler.from_pretrained(opt.model, subfolder="scheduler")

    def set_text(self, text_z, null_z):
        self.text_z, self.null_z = text_z, null_z

    def predict(self, x_t, t, z):
        return self.unet(x_t, t, encoder_hidden_states=z.expand(len(x_t), -1, -1)).sample

    def calc_grad(self, x0):
        g = self.opt.guidance
        t = torch.randint(self.opt.t_min, self.opt.t_max, (x0.size(0),))
        abar = self.noise_scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        with $grad_mode:
            eps = torch.randn(x0.shape, dtype=x0.dtype)
            x_t = $x_t
            $order = (self.predict(x_t, $asked, z) for z in (self.null_z, self.text_z))
            e = $guided
            d = ($weight) * ($residual)
        x0.backward(d)
"""
PUSHED = """import torch
$library


class Push(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, gradient):
        ctx.save_for_backward(gradient)
        return value.sum() * 0

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream, None


def guidance_step(x0, pipe, prompt_embeds, negative_prompt_embeds, g):
    t = torch.randint(50, 950, (x0.shape[0],), dtype=torch.long)
    abar = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    eps = torch.randn_like(x0)
    with $grad_mode:
        x_t = $x_t
        e_c = pipe.unet(x_t, $asked, encoder_hidden_states=prompt_embeds).sample
        e_u = pipe.unet(x_t, $asked, encoder_hidden_states=negative_prompt_embeds).sample
        $order = e_u, e_c
        e = $guided
    d = ($weight) * ($residual)
    return Push.apply(x0, d)
"""
REGISTERED = """from dataclasses import dataclass

import torch
import torch.nn.functional as F
import threestudio
from threestudio.utils.base import BaseObject
from diffusers import StableDiffusionPipeline
$library


@threestudio.register("guidance-$number")
class Guide(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        model: str = "runwayml/stable-diffusion-v1-5"
        guidance_scale: float = 100.0
        min_step: int = 20
        max_step: int = 980

    cfg: Config

    def configure(self):
        self.pipe = StableDiffusionPipeline.from_pretrained(self.cfg.model)

    def compute_loss(self, picture, text_embeddings):
        g, vae = self.cfg.guidance_scale, self.pipe.vae
        img = F.interpolate(picture.permute(0, 3, 1, 2), (512, 512), mode="bilinear")
        x0 = vae.encode(img * 2 - 1).latent_dist.sample() * $scaling
        t = torch.randint(self.cfg.min_step, self.cfg.max_step + 1, [x0.shape[0]])
        eps = torch.randn_like(x0)
        abar = self.pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        with $grad_mode:
            x_t = $x_t
            out_ = self.pipe.unet(x_t.repeat(2, 1, 1, 1), ($asked).repeat(2), text_embeddings)
            $order = out_.sample.chunk(2)
            e = $guided
            d = ($weight) * ($residual)
        loss = ${factor}F.mse_loss(x0, $target, $sum)
        return {"loss_sds": loss, "grad_norm": d.norm()}
"""
# skeleton: (code, how somebody who has read it calls it, "doors" that it goes through)
SKELETONS = {
    "function": (FUNCTION, "", "m.sds_loss(x, cond, uncond, unet, abar, g)", "style:function"),
    "picture-class": (
        PICTURE_CLASS,
        "o = m.Guide('cpu', False)",
        "o.train_step(both, image, g)",
        "ctor:fp16-vram_O method:train_step",
    ),
    "options-class": (
        OPTIONS_CLASS,
        "o = m.Guide(opt(model='sd', guidance=g, t_min=20, t_max=980));"
        " o.set_text(cond[:1], uncond[:1])",
        "o.calc_grad(x)",
        "ctor:opt embeds:set_text method:calc_grad style:backward-inside",
    ),
    "pushed": (PUSHED, "", "m.guidance_step(x, pipe, cond, uncond, g)", "style:autograd.Function"),
    "registered": (
        REGISTERED,
        "o = m.Guide({'guidance_scale': g})",
        "o.compute_loss(image.permute(0, 2, 3, 1), both)['loss_sds']",
        "import:threestudio ctor:cfg-nested-dataclass image:BHWC method:compute_loss",
    ),
}
