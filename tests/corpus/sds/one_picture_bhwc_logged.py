from loguru import logger
import torch
from torch.nn import functional as F
from diffusers import StableDiffusionPipeline


class Teacher:
    def __init__(self, config):
        self.c = config
        self.pipe = StableDiffusionPipeline.from_pretrained(config.sd).to(config.device)
        logger.info("teacher ready on {}", config.device)

    def encode(self, picture):
        assert picture.ndim == 4 and picture.shape[-1] == 3, "channels last please"
        chw = picture.movedim(-1, 1)
        chw = F.interpolate(chw, (512, 512), mode="bilinear", align_corners=True)
        return self.pipe.vae.encode(chw.mul(2).sub(1)).latent_dist.sample().mul(0.18215)

    def loss(self, picture, positive, negative):
        z0 = self.encode(picture)
        T = self.pipe.scheduler.config.num_train_timesteps
        t = torch.randint(int(self.c.t_lo * T), int(self.c.t_hi * T), (len(z0),))
        with torch.no_grad():
            noise = torch.randn_like(z0)
            zt = self.pipe.scheduler.add_noise(z0, noise, t)
            p = self.pipe.unet(zt, t, encoder_hidden_states=positive).sample
            n = self.pipe.unet(zt, t, encoder_hidden_states=negative).sample
            d = n.lerp(p, self.c.cfg) - noise
            d = d * (1 - self.pipe.scheduler.alphas_cumprod[t])[:, None, None, None]
        logger.debug("t={} |d|={:.3f}", t.tolist(), d.norm().item())
        return 0.5 * F.mse_loss(z0, (z0 - d).detach())
