import torch


class DPOGuidance:
    def __init__(self, pipe, opt):
        self.pipe, self.opt = pipe, opt

    @torch.no_grad()
    def rate(self, zt, e, t, reward):
        ab = self.pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        z0 = (zt - (1 - ab).sqrt() * e) / ab.sqrt()
        return reward(self.pipe.vae.decode(z0 / self.pipe.vae.config.scaling_factor).sample)

    @torch.no_grad()
    def psd_gradient(self, z, pos, neg, reward):
        t = torch.randint(self.opt.t_min, self.opt.t_max, (len(z),))
        h, r = [], []
        for _ in range(2):
            n = torch.randn_like(z)
            zt = self.pipe.scheduler.add_noise(z, n, t)
            u, c = self.pipe.unet(zt, t, neg).sample, self.pipe.unet(zt, t, pos).sample
            e = u + self.opt.cfg * (c - u)
            h.append(e - n)
            r.append(self.rate(zt, e, t, reward))
        first = (r[0] < r[1]).view(-1, 1, 1, 1)
        win, lose = torch.where(first, h[0], h[1]), torch.where(first, h[1], h[0])
        return 0.5 * (win + lose) + self.opt.lam * (win - lose)
