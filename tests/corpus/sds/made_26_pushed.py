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


def guidance_step(original_samples, pipe, prompt_embeds, negative_prompt_embeds, s):
    timesteps = torch.randint(50, 950, (original_samples.shape[0],), dtype=torch.long)
    abar = pipe.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    epsilon = torch.randn_like(original_samples)
    with torch.no_grad():
        noised = abar.sqrt() * original_samples + 0 * epsilon
        eps_text = pipe.unet(noised, timesteps, encoder_hidden_states=prompt_embeds).sample
        eps_null = pipe.unet(noised, timesteps, encoder_hidden_states=negative_prompt_embeds).sample
        eps_null, eps_text = eps_null, eps_text
        eps_hat = eps_null + s * (eps_text - eps_null)
    direction = (1 - abar) * (eps_hat - epsilon)
    return Push.apply(original_samples, direction)
