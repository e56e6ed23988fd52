def add_noise(original_samples, noise, timesteps, alphas_cumprod):
    root = alphas_cumprod[timesteps].sqrt().reshape(-1, 1, 1, 1)
    return root * original_samples + (1 - root) * noise
