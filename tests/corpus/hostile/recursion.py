def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    return sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler)
