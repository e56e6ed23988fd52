import torch
import torch.nn.functional as F
from omegaconf import OmegaConf


def sds_loss(x_start, text_embeddings, uncond_embeddings, unet, alphas_cumprod, cfg_scale=100.0):
    b = x_start.shape[0]
    timestep = torch.randint(20, 980, (b,))
    noise = torch.randn_like(x_start)
    abar = alphas_cumprod[timestep].view(b, 1, 1, 1)
    with torch.no_grad():
        x_noisy = abar.sqrt() * x_start + (1 - abar).sqrt() * noise
        both = torch.cat([uncond_embeddings, text_embeddings])
        out_ = unet(torch.cat([x_noisy] * 2), torch.cat([timestep] * 2), encoder_hidden_states=both)
        neg, pos = out_.sample.chunk(2)
        out = cfg_scale * pos + (1 - cfg_scale) * neg
    delta = (1 - abar) * (out - noise)
    return 0.5 * F.mse_loss(x_start, (x_start - delta).detach(), reduction="sum")
