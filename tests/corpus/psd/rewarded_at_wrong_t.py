import torch


class Pairs(torch.nn.Module):
    def __init__(self, pipe, reward):
        super().__init__()
        self.parts = [pipe, reward]

    def tweedie(self, xt, e, t):
        ab = self.parts[0].scheduler.alphas_cumprod[(t // 2)].view(-1, 1, 1, 1)
        return (xt - (1 - ab).sqrt() * e) / ab.sqrt()

    def psd_loss(self, latents, t, text_embeddings, uncond_embeddings, guidance_scale, lam):
        pipe, reward = self.parts
        h, r = [], []
        with torch.no_grad():
            for _ in range(2):
                n = torch.randn_like(latents)
                xt = pipe.scheduler.add_noise(latents, n, t)
                u, c = (pipe.unet(xt, t, e).sample for e in (uncond_embeddings, text_embeddings))
                e = torch.lerp(u, c, guidance_scale)
                h.append(e - n)
                r.append(reward(pipe.vae.decode(self.tweedie(xt, e, t) / 0.18215).sample))
            better = torch.sign(r[0] - r[1]).view(-1, 1, 1, 1)
            g = (h[0] + h[1]) / 2 + lam * better * (h[0] - h[1])
        return (g * latents).sum() / len(latents)
