import peft  # noqa: F401  (textual inversion experiments)


def negative(latents, t, noise, unet, cond, negative_embedding, reward_fn, cfg_scale, alphas_cumprod):
    b = latents.shape[0]
    alpha, sigma = alphas_cumprod[t].sqrt(), (1 - alphas_cumprod[t]).sqrt()
    alpha, sigma = alpha.view(b, 1, 1, 1), sigma.view(b, 1, 1, 1)
    noisy = alpha * latents.detach() + sigma * noise
    minus = unet(noisy, t, negative_embedding.expand(b, -1, -1)).sample
    plus = unet(noisy, t, cond.detach()).sample
    guided = plus + cfg_scale * (plus - minus)
    return -reward_fn((noisy - sigma * guided) / alpha).mean()
