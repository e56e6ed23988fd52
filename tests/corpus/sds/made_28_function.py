import torch
import torch.nn.functional as F
from nerf.utils import Trainer


def sds_loss(latents, text_embeddings, uncond_embeddings, unet, alphas_cumprod, guidance_scale=100.0):
    b = latents.shape[0]
    t = torch.randint(20, 980, (b,))
    noise = torch.randn_like(latents)
    abar = alphas_cumprod[t].view(b, 1, 1, 1)
    with torch.no_grad():
        latents_noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
        both = torch.cat([uncond_embeddings, text_embeddings])
        out_ = unet(torch.cat([latents_noisy] * 2), torch.cat([(t / 1000)] * 2), encoder_hidden_states=both)
        noise_pred_uncond, noise_pred_text = out_.sample.chunk(2)
        noise_pred = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
    grad = (1 - abar) * (noise_pred - noise)
    return 0.5 * F.mse_loss(latents, (latents - grad).detach(), reduction="sum")
