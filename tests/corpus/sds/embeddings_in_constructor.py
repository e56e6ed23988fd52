import torch


class SDS:
    def __init__(self, unet, text_embeddings, alphas_cumprod, guidance_scale):
        self.unet = unet
        self.uncond, self.cond = text_embeddings.chunk(2)
        self.abar = alphas_cumprod
        self.s = guidance_scale

    def predict(self, z, t):
        n = len(z)
        e = torch.cat([self.uncond.expand(n, -1, -1), self.cond.expand(n, -1, -1)])
        u, c = self.unet(torch.cat([z, z]), torch.cat([t, t]), encoder_hidden_states=e)[0].chunk(2)
        return torch.lerp(u, c, self.s)

    def __call__(self, x):
        t = torch.randint(1, 999, (len(x),))
        abar = self.abar[t].view(-1, 1, 1, 1)
        alpha, sigma = abar ** 0.5, (1 - abar) ** 0.5
        eps = torch.empty_like(x).normal_()
        with torch.no_grad():
            hat = self.predict(alpha * x + sigma * eps, t)
            direction = alpha * sigma * (hat - eps)
        return torch.sum(direction * x)
