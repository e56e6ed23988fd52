"""SVG generation: the raster picture goes through augmentations, then SDS."""
import torch
import kornia.augmentation as K
from diffusers import StableDiffusionPipeline

augment = torch.nn.Sequential(
    K.RandomPerspective(distortion_scale=0.5, p=0.0),
    K.RandomHorizontalFlip(p=0.0),
)


class PixelSDS:
    def __init__(self, device="cuda", sd_version="1.5", use_aug=False):
        names = {"1.4": "CompVis/stable-diffusion-v1-4", "1.5": "runwayml/stable-diffusion-v1-5"}
        self.pipe = StableDiffusionPipeline.from_pretrained(names[sd_version]).to(device)
        self.device, self.use_aug = device, use_aug

    @torch.inference_mode()
    def set_text(self, prompt, negative):
        def enc(s):
            ids = self.pipe.tokenizer(s, padding="max_length", return_tensors="pt").input_ids
            return self.pipe.text_encoder(ids.to(self.device))[0]
        self.y, self.null = enc(prompt).clone(), enc(negative).clone()

    def sds(self, x_aug, cfg=100.0):
        if self.use_aug:
            x_aug = augment(x_aug)
        z = self.pipe.vae.encode(x_aug * 2 - 1).latent_dist.sample()
        z = z * self.pipe.vae.config.scaling_factor
        t = torch.randint(50, 951, (len(z),), device=self.device)
        with torch.no_grad():
            e = torch.randn_like(z)
            zt = self.pipe.scheduler.add_noise(z, e, t)
            y, n = (v.expand(len(z), -1, -1) for v in (self.y, self.null))
            ec, en = self.pipe.unet(zt, t, y).sample, self.pipe.unet(zt, t, n).sample
            g = en + cfg * (ec - en) - e
        return (z * g).sum(1).mean(0).sum()
