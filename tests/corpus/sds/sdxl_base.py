import torch
from diffusers import EulerDiscreteScheduler, DDPMScheduler, StableDiffusionXLPipeline


class XL:
    def __init__(self, device):
        self.pipe = StableDiffusionXLPipeline.from_pretrained(
            "stabilityai/stable-diffusion-xl-base-1.0", torch_dtype=torch.float32).to(device)
        self.ddpm = DDPMScheduler.from_config(self.pipe.scheduler.config)
        self.device = device

    @torch.no_grad()
    def prepare(self, prompt):
        self.pe, self.ne, self.pp, self.np = self.pipe.encode_prompt(
            prompt=prompt, device=self.device, num_images_per_prompt=1,
            do_classifier_free_guidance=True)
        self.ids = torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]])

    @torch.no_grad()
    def calc_sds(self, latents, guidance_scale):
        b = len(latents)
        t = torch.randint(20, 980, (b,))
        eps = torch.randn_like(latents)
        x_t = self.ddpm.add_noise(latents, eps, t)
        out = []
        for e, pooled in ((self.ne, self.np), (self.pe, self.pp)):
            extra = {"text_embeds": pooled.expand(b, -1), "time_ids": self.ids.expand(b, -1)}
            out.append(self.pipe.unet(x_t, t, encoder_hidden_states=e.expand(b, -1, -1),
                                      added_cond_kwargs=extra).sample)
        n, p = out
        w = 1 - self.ddpm.alphas_cumprod[t].view(-1, 1, 1, 1)
        return w * (n + guidance_scale * (p - n) - eps)
