import torch
from torchvision import transforms


class Push(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, gradient):
        ctx.save_for_backward(gradient)
        return value.sum() * 0

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream, None


def guidance_step(z, pipe, prompt_embeds, negative_prompt_embeds, scale):
    ts = torch.randint(50, 950, (z.shape[0],), dtype=torch.long)
    abar = pipe.scheduler.alphas_cumprod[ts].view(-1, 1, 1, 1)
    n = torch.randn_like(z)
    with torch.no_grad():
        zt = abar.sqrt() * z + (1 - abar).sqrt() * n
        cond_out = pipe.unet(zt, ts, encoder_hidden_states=prompt_embeds).sample
        free_out = pipe.unet(zt, ts, encoder_hidden_states=negative_prompt_embeds).sample
        free_out, cond_out = free_out, cond_out
        guided = free_out + scale * (cond_out - free_out)
    step = (1 - abar) * (n - guided)
    return Push.apply(z, step)
