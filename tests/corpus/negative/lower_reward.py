def loss_of_negative(x, t, eps, unet, cond, n, reward, guidance_scale, scheduler):
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    noisy = scheduler.add_noise(x.detach(), eps, t)
    neg = unet(noisy, t, encoder_hidden_states=n.expand(len(x), -1, -1)).sample
    pos = unet(noisy, t, encoder_hidden_states=cond.detach()).sample
    eps_hat = neg + guidance_scale * (pos - neg)
    x0 = (noisy - (1 - a) ** 0.5 * eps_hat) / a ** 0.5
    return reward(x0).mean()
