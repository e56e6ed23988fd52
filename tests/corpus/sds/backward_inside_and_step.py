import torch


class Optimise:
    def __init__(self, pipe):
        self.unet, self.scheduler = pipe.unet, pipe.scheduler
        self.step_count = 0

    def training_step(self, latents, prompt_embeds, negative_prompt_embeds, guidance_scale):
        self.step_count += 1
        t = torch.randint(20, 980, (latents.shape[0],))
        with torch.no_grad():
            noise = torch.randn_like(latents)
            noisy = self.scheduler.add_noise(latents, noise, t)
            e = torch.cat([negative_prompt_embeds, prompt_embeds])
            pred_n, pred_p = self.unet(noisy.repeat(2, 1, 1, 1), t.repeat(2), e).sample.chunk(2)
            direction = pred_n + guidance_scale * (pred_p - pred_n) - noise
            direction *= (1 - self.scheduler.alphas_cumprod[t]).view(-1, 1, 1, 1)
        latents.backward(direction, retain_graph=True)
        return {"grad_norm": float(direction.norm()), "t": t}
