import torch


def render_rays(densities, colours, widths, background):
    light = torch.ones(densities.shape[0], 1).to(densities)
    out = torch.zeros_like(colours[:, 0])
    for rho, c, d in zip(densities.unbind(1), colours.unbind(1), widths.unbind(1)):
        stays = torch.exp(-rho * d).unsqueeze(1)
        out = out + light * (1 - stays) * c
        light = light * stays
    return out + light * background
