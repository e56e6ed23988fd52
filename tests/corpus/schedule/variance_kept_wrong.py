from einops import rearrange


def diffuse(x, t, noise, alphas_cumprod):
    keep = rearrange(alphas_cumprod[t].sqrt(), "b -> b 1 1 1")
    return keep * x + (1 - keep ** 2) * noise
