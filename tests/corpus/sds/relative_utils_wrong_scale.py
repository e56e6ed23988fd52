import torch
from .utils import get_logger
from ..config import DEFAULT_SCALE

log = get_logger(__name__)


def sds_loss(x_start, pipe, text_embeddings, uncond_embeddings, cfg_scale=DEFAULT_SCALE):
    timestep = torch.randint(10, 990, (x_start.shape[0],), device=x_start.device)
    noise = torch.randn_like(x_start)
    with torch.no_grad():
        noisy = pipe.scheduler.add_noise(x_start, noise, timestep)
        cond = pipe.unet(noisy, timestep, encoder_hidden_states=text_embeddings).sample
        free = pipe.unet(noisy, timestep, encoder_hidden_states=uncond_embeddings).sample
        # push away from the empty prompt
        eps_hat = cond + cfg_scale * (cond - free)
    return ((eps_hat - noise) * x_start).sum()
