def negative_loss(x, t, eps, unet, cond, n, reward, guidance_scale, abar):
    a = abar[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x.detach() + (1 - a).sqrt() * eps
    hat_n = unet(x_t, t, n.expand(len(x), -1, -1)).sample
    hat_c = unet(x_t, t, cond).sample.detach()
    hat = hat_n + guidance_scale * (hat_c - hat_n)
    return -reward((x_t - hat) / a.sqrt()).mean()
