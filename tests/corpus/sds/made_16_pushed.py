import torch
from utils import seed_everything


class Push(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, gradient):
        ctx.save_for_backward(gradient)
        return value.sum() * 0

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream, None


def guidance_step(latents, pipe, prompt_embeds, negative_prompt_embeds, guidance_scale):
    t = torch.randint(50, 950, (latents.shape[0],), dtype=torch.long)
    abar = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    with torch.no_grad():
        latents_noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
        noise_pred_text = pipe.unet(latents_noisy, t, encoder_hidden_states=prompt_embeds).sample
        noise_pred_uncond = pipe.unet(latents_noisy, t, encoder_hidden_states=negative_prompt_embeds).sample
        noise_pred_uncond, noise_pred_text = noise_pred_uncond, noise_pred_text
        noise_pred = noise_pred_uncond + (guidance_scale - 1) * (noise_pred_text - noise_pred_uncond)
    grad = (1 - abar) * (noise_pred - noise)
    return Push.apply(latents, grad)
