import kornia.geometry  # noqa
import torch
from diffusers import StableDiffusionPipeline

VIEWS = ("front", "side", "back")


class ViewGuidance:
    def __init__(self, device, fp16, vram_O=False, prompt="a corgi", t_range=(0.02, 0.98)):
        self.pipe = StableDiffusionPipeline.from_pretrained(
            "sd", torch_dtype=torch.float16 if fp16 else torch.float32).to(device)
        self.bounds = [int(1000 * f) for f in t_range]
        self.text = {v: self.embed(f"{prompt}, {v} view") for v in VIEWS}
        self.text["none"] = self.embed("")

    @torch.no_grad()
    def embed(self, s):
        ids = self.pipe.tokenizer([s], padding="max_length", return_tensors="pt").input_ids
        return self.pipe.text_encoder(ids)[0]

    @staticmethod
    def view_of(azimuth):
        a = abs((azimuth + 180) % 360 - 180)
        return "front" if a < 45 else "side" if a < 135 else "back"

    def train_step(self, pred_rgb, azimuth=None, guidance_scale=100):
        azimuth = [0.0] * len(pred_rgb) if azimuth is None else azimuth
        z = self.pipe.vae.encode(pred_rgb * 2 - 1).latent_dist.sample() * 0.18215
        t = torch.randint(*self.bounds, (len(z),))
        pos = torch.cat([self.text[self.view_of(a)] for a in azimuth])
        with torch.no_grad():
            n = torch.randn_like(z)
            zt = self.pipe.scheduler.add_noise(z, n, t)
            c = self.pipe.unet(zt, t, pos).sample
            u = self.pipe.unet(zt, t, self.text["none"].expand_as(pos)).sample
            g = u + guidance_scale * (c - u) - n
        return (g * z).sum() / len(z)
