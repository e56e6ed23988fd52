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


def guidance_step(x_start, pipe, prompt_embeds, negative_prompt_embeds, cfg_scale):
    timestep = torch.randint(50, 950, (x_start.shape[0],), dtype=torch.long)
    abar = pipe.scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
    noise = torch.randn_like(x_start)
    with torch.no_grad():
        x_noisy = abar.sqrt() * x_start + (1 - abar) * noise
        pos = pipe.unet(x_noisy, timestep, encoder_hidden_states=prompt_embeds).sample
        neg = pipe.unet(x_noisy, timestep, encoder_hidden_states=negative_prompt_embeds).sample
        neg, pos = neg, pos
        out = neg + cfg_scale * (pos - neg)
    delta = (1 - abar) * (out - noise)
    return Push.apply(x_start, delta)
