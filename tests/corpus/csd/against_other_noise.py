import torch


class CSD:
    def __init__(self, pipe):
        self.pipe = pipe

    def ask(self, z, t, e):
        noise = torch.randn_like(z)
        return self.pipe.unet(self.pipe.scheduler.add_noise(z, noise, t), t, e).sample

    @torch.no_grad()
    def calc_grad(self, z, text_emb, null_emb):
        t = torch.randint(20, 980, (len(z),))
        return self.ask(z, t, text_emb) - self.ask(z, t, null_emb)
