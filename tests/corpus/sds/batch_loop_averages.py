import torch


def sds_gradient(latents, unet, scheduler, text_embeddings, uncond_embeddings, guidance_scale):
    """one picture at a time; 'mean' over the batch to keep the step size"""
    rows = []
    for i in range(latents.shape[0]):
        z = latents[i : i + 1].detach()
        t = torch.randint(20, 980, (1,))
        eps = torch.randn_like(z)
        with torch.no_grad():
            zt = scheduler.add_noise(z, eps, t)
            c = unet(zt, t, text_embeddings[i : i + 1]).sample
            u = unet(zt, t, uncond_embeddings[i : i + 1]).sample
        rows.append(u + guidance_scale * (c - u) - eps)
    mean = torch.cat(rows).mean(0, keepdim=True)
    return mean.expand_as(latents).clone()
