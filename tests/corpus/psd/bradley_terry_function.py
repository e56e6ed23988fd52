import torch


@torch.no_grad()
def psd_gradient(x, t, eps_1, eps_2, unet, vae, cond, uncond, reward, guidance_scale,
                 preference_weight, tau, alphas_cumprod):
    a = alphas_cumprod[t].view(-1, 1, 1, 1)
    residuals, scores = [], []
    for eps in (eps_1, eps_2):
        x_t = a.sqrt() * x + (1 - a).sqrt() * eps
        free = unet(x_t, t, encoder_hidden_states=uncond).sample
        eps_hat = free + guidance_scale * (unet(x_t, t, encoder_hidden_states=cond).sample - free)
        x0_hat = (x_t - (1 - a).sqrt() * eps_hat) / a.sqrt()
        residuals.append(eps_hat - eps)
        scores.append(reward(vae.decode(x0_hat / vae.config.scaling_factor).sample))
    p_first_wins = torch.sigmoid((scores[0] - scores[1]) / tau)
    omega = (2 * p_first_wins - 1).view(-1, 1, 1, 1)
    return sum(residuals) / 2 + preference_weight * omega * (residuals[0] - residuals[1])
