import torch


def guide(noise_pred_uncond, noise_pred_text, cfg_scale):
    return torch.lerp(noise_pred_uncond, noise_pred_text, cfg_scale)
