import torch
import torch.nn.functional as F


def sds_weight(t, alphas_cumprod):
    return torch.ones_like(alphas_cumprod[t])


def plot_sds_curve(values, path="curve.png"):
    import matplotlib.pyplot as plt

    plt.plot(values)
    plt.savefig(path)


class Trainer:
    def __init__(self, unet, scheduler, guidance_scale=30):
        self.unet = unet
        self.scheduler = scheduler
        self.guidance_scale = guidance_scale
        self.history = []

    def sds_loss(self, latents, cond, uncond):
        t = torch.randint(100, 900, (latents.shape[0],))
        noise = torch.randn(latents.shape)
        with torch.no_grad():
            noisy = self.scheduler.add_noise(latents, noise, t)
            pred = [self.unet(noisy, t, e).sample for e in (uncond, cond)]
            pred = pred[0] + self.guidance_scale * (pred[1] - pred[0])
        w = sds_weight(t, self.scheduler.alphas_cumprod)[:, None, None, None]
        loss = (w * (pred - noise) * latents).mean(dim=(1, 2, 3)).sum()
        self.history.append(loss.item())
        return loss
