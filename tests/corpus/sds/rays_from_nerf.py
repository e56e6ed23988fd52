import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from einops import rearrange


class RayPrior(torch.nn.Module):
    # pred: one colour for every ray of a full picture, row by row
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.vae = AutoencoderKL.from_pretrained(args.model, subfolder="vae").to(args.device)
        self.unet = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet").to(args.device)
        self.ddpm = DDPMScheduler.from_pretrained(args.model, subfolder="scheduler")

    def compute_loss(self, rgb, embeddings):
        img = rearrange(rgb, "(h w) c -> 1 c h w", h=self.args.H, w=self.args.W)
        img = torch.nn.functional.interpolate(img, (512, 512), mode="bilinear")
        lat = self.vae.encode(2 * img - 1).latent_dist.mode() * 0.18215
        step = torch.randint(20, 980, (1,))
        e = torch.randn(lat.shape)
        with torch.no_grad():
            noisy = self.ddpm.add_noise(lat, e, step)
            out = self.unet(noisy.expand(2, -1, -1, -1), step, embeddings).sample
            guided = out[:1] + self.args.guidance * (out[1:] - out[:1])
            target = lat - (guided - e)
        return 0.5 * ((lat - target) ** 2).sum()
