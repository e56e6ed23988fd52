def do_cfg(noise_pred, guidance_scale):
    """noise_pred holds [uncond, cond]"""
    uncond, cond = noise_pred.chunk(2)
    return uncond + guidance_scale * (cond - uncond)
