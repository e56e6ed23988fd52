def cfg(noise_pred_text, noise_pred_uncond, guidance_scale, phi=0.7):
    """the rescale trick against washed-out pictures"""
    out = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
    dims = list(range(1, out.ndim))
    back = out * noise_pred_text.std(dims, keepdim=True) / out.std(dims, keepdim=True)
    return phi * back + (1 - phi) * out
