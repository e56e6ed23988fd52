import torch


class NegativeEmbedding:
    """moves the negative prompt's embedding to where the denoised picture is liked"""

    def __init__(self, unet, scheduler, reward_fn, guidance_scale=7.5):
        self.unet, self.scheduler = unet, scheduler
        self.reward, self.s = reward_fn, guidance_scale

    def x0(self, x_t, t, e):
        a = self.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (x_t - (1 - a).sqrt() * e) / a.sqrt()

    def negative_loss(self, x, t, noise, cond, negative_embedding):
        b = len(x)
        x_t = self.scheduler.add_noise(x.detach(), noise, t)
        with torch.no_grad():
            pos = self.unet(x_t, t, cond.detach()).sample
        neg = self.unet(x_t, t, negative_embedding.expand(b, -1, -1)).sample
        guided = neg + self.s * (pos - neg)
        return -self.reward(self.x0(x_t, t, guided)).mean()
