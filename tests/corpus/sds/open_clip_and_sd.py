import open_clip
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline


class Losses:
    def __init__(self, args):
        self.args = args
        self.pipe = StableDiffusionPipeline.from_pretrained("runwayml/stable-diffusion-v1-5")
        self.clip = None
        if args.lambda_clip > 0:
            self.clip, _, self.pre = open_clip.create_model_and_transforms(
                "ViT-B-32", pretrained="laion2b_s34b_b79k")

    def calculate_clip(self, im, text):
        f = self.clip.encode_image(self.pre(im))
        return 1 - F.cosine_similarity(f, self.clip.encode_text(open_clip.tokenize(text))).mean()

    def calculate_sds(self, im, pos, neg):
        p = self.pipe
        z = p.vae.encode(F.interpolate(im, (512, 512)) * 2 - 1).latent_dist.sample() * 0.18215
        t = torch.randint(20, 980, (z.shape[0],))
        abar = p.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        sigma = (1 - abar).sqrt()
        eps = torch.randn_like(z)
        with torch.no_grad():
            zt = abar.sqrt() * z + sigma * eps
            cond, free = (p.unet(zt, t, e).sample for e in (pos, neg))
            delta = free + self.args.scale * (cond - free) - eps
        return ((sigma * delta).detach() * z).sum()
