from einops import rearrange  # noqa


def apply_cfg(eps_cond, eps_uncond, s):
    delta = eps_uncond - eps_cond
    return eps_cond + s * delta
