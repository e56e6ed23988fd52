import pytorch_lightning as pl
import torch
from diffusers import StableDiffusionPipeline


class SDSModule(pl.LightningModule):
    def __init__(self, hparams):
        super().__init__()
        self.opt = hparams
        self.pipe = [StableDiffusionPipeline.from_pretrained(hparams.model)]  # hidden from pl

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.opt.lr)

    def training_step(self, batch, batch_idx):
        loss = self.sds_loss(batch["latents"], batch["cond"], batch["uncond"])
        self.log("train/sds", loss)
        return loss

    def sds_loss(self, latents, cond, uncond):
        pipe = self.pipe[0]
        t = torch.randint(20, 980, (latents.shape[0],))
        eps = torch.randn_like(latents)
        with torch.no_grad():
            xt = pipe.scheduler.add_noise(latents, eps, t)
            e_c, e_u = pipe.unet(xt, t, cond).sample, pipe.unet(xt, t, uncond).sample
            w = 1 - pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
            grad = w * (e_u + self.opt.scale * (e_c - e_u) - eps)
        return (grad * latents).sum() / latents.shape[0]
