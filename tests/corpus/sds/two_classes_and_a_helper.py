import torch
from torch import nn


def extract(table, t, like):
    return table.to(like)[t].reshape(-1, *([1] * (like.ndim - 1)))


class EMA:
    """moving average of a number, for the plots"""

    def __init__(self, decay=0.99):
        self.decay, self.value = decay, None

    def update(self, x):
        self.value = x if self.value is None else self.decay * self.value + (1 - self.decay) * x
        return self.value


class SDSLoss(nn.Module):
    def __init__(self, unet, scheduler, text_embedding, null_embedding, guidance_scale=100.0):
        super().__init__()
        self.unet, self.scheduler, self.s = unet, scheduler, guidance_scale
        self.register_buffer("pos", text_embedding)
        self.register_buffer("neg", null_embedding)
        self.ema = EMA()

    def forward(self, latents):
        b = len(latents)
        t = torch.randint(20, 980, (b,), device=latents.device)
        noise = torch.randn_like(latents)
        abar = extract(self.scheduler.alphas_cumprod, t, latents)
        with torch.no_grad():
            x_t = abar.sqrt() * latents + (1 - abar).sqrt() * noise
            e_p = self.unet(x_t, t, encoder_hidden_states=self.pos.expand(b, -1, -1)).sample
            e_n = self.unet(x_t, t, encoder_hidden_states=self.neg.expand(b, -1, -1)).sample
            grad = (1 - abar) / abar.sqrt() * (e_n + self.s * (e_p - e_n) - noise)
            self.ema.update(grad.norm().item())
        return (grad * latents).sum() / b
