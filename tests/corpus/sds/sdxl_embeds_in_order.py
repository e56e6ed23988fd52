import torch
from diffusers import DiffusionPipeline


class SDXLGuidance:
    def __init__(self, device, prompt="a photo of a corgi"):
        self.pipe = DiffusionPipeline.from_pretrained("stabilityai/sdxl", variant="fp16").to(device)
        # NB: encode_prompt gives (positive, negative, ...)
        negative, positive, *_ = self.pipe.encode_prompt(prompt, device, 1, True)
        self.text = torch.cat([negative, positive])

    def sds_loss(self, latents, guidance_scale):
        b = latents.shape[0]
        ts = torch.randint(50, 950, (b,))
        noise = torch.randn_like(latents)
        with torch.no_grad():
            noisy = self.pipe.scheduler.add_noise(latents, noise, ts)
            e = self.text.repeat_interleave(b, 0)
            neg, pos = self.pipe.unet(torch.cat([noisy] * 2), torch.cat([ts] * 2), e).sample.chunk(2)
        return ((neg + guidance_scale * (pos - neg) - noise) * latents).sum() / b
