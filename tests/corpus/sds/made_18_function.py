import torch
import torch.nn.functional as F
from nerf.utils import Trainer


def sds_loss(original_samples, text_embeddings, uncond_embeddings, unet, alphas_cumprod, s=100.0):
    b = original_samples.shape[0]
    timesteps = torch.randint(20, 980, (b,))
    epsilon = torch.randn_like(original_samples)
    abar = alphas_cumprod[timesteps].view(b, 1, 1, 1)
    with torch.no_grad():
        noised = abar.sqrt() * original_samples + (1 - abar).sqrt() * epsilon
        both = torch.cat([uncond_embeddings, text_embeddings])
        out_ = unet(torch.cat([noised] * 2), torch.cat([timesteps] * 2), encoder_hidden_states=both)
        eps_null, eps_text = out_.sample.chunk(2)
        eps_hat = eps_null - s * (eps_text - eps_null)
    direction = (1 - abar) * (eps_hat - epsilon)
    return 0.5 * F.mse_loss(original_samples, (original_samples - direction).detach(), reduction="sum")
