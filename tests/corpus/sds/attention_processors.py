import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor


class Prior:
    def __init__(self, opt):
        self.opt = opt
        self.pipe = StableDiffusionPipeline.from_pretrained("sd").to(opt.device)
        self.pipe.unet.set_attn_processor(AttnProcessor())
        self.n_attn = len(self.pipe.unet.attn_processors)
        for p in self.pipe.unet.parameters():
            p.requires_grad = False

    def train_step(self, latents, text_embeddings):
        """text_embeddings: [uncond, text]"""
        b = latents.shape[0]
        t = torch.randint(20, 980, (b,), dtype=torch.int64)
        noise = torch.randn_like(latents)
        with torch.no_grad():
            noisy = self.pipe.scheduler.add_noise(latents, noise, t)
            out = self.pipe.unet(torch.cat([noisy] * 2), torch.cat([t] * 2), text_embeddings)
            u, c = out.sample.split(b)
            res = u + self.opt.guidance_scale * (c - u) - noise
        loss = (latents * res.detach()).sum(dim=(1, 2, 3))
        return loss.mean()
