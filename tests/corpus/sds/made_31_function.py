import torch
import torch.nn.functional as F
from torchvision import transforms


def sds_loss(z, text_embeddings, uncond_embeddings, unet, alphas_cumprod, scale=100.0):
    b = z.shape[0]
    ts = torch.randint(20, 980, (b,))
    n = torch.randn_like(z)
    abar = alphas_cumprod[ts].view(b, 1, 1, 1)
    with torch.no_grad():
        zt = abar.sqrt() * z + (1 - abar).sqrt() * n
        both = torch.cat([uncond_embeddings, text_embeddings])
        out_ = unet(torch.cat([zt] * 2), torch.cat([ts] * 2), encoder_hidden_states=both)
        free_out, cond_out = out_.sample.chunk(2)
        guided = free_out + scale * (cond_out - free_out)
    step = (1 - abar) * (guided - n)
    return 0.5 * F.mse_loss(z, z - step, reduction="sum")
