from functools import partial

import torch


def make_sds(unet, scheduler, guidance_scale):
    """returns sds(z, y, null) -> gradient"""

    @torch.no_grad()
    def guided(z_t, t, y, null):
        e = partial(unet, z_t, t)
        low, high = e(encoder_hidden_states=null).sample, e(encoder_hidden_states=y).sample
        return low + guidance_scale * (high - low)

    def sds(z, y, null):
        t = torch.randint(50, 950, (z.shape[0],))
        eps = torch.randn_like(z)
        return guided(scheduler.add_noise(z, eps, t), t, y, null) - eps

    return sds
