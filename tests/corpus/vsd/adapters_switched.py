import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig


class Variational:
    """one UNet in memory: the adapter is the second network"""

    def __init__(self, device, rank=4):
        self.pipe = StableDiffusionPipeline.from_pretrained("stabilityai/stable-diffusion-2-1-base")
        self.pipe.to(device)
        self.unet = self.pipe.unet.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian",
                                         target_modules=["to_k", "to_q", "to_v", "to_out.0"]))

    def vsd_loss(self, latents, text_embeddings, uncond_embeddings, guidance_scale):
        t = torch.randint(20, 980, (latents.shape[0],))
        noise = torch.randn_like(latents)
        noisy = self.pipe.scheduler.add_noise(latents.detach(), noise, t)
        with torch.no_grad():
            self.unet.disable_adapters()
            cond = self.unet(noisy, t, encoder_hidden_states=text_embeddings).sample
            free = self.unet(noisy, t, encoder_hidden_states=uncond_embeddings).sample
            self.unet.enable_adapters()
            q = self.unet(noisy, t, encoder_hidden_states=text_embeddings).sample
        w = (1 - self.pipe.scheduler.alphas_cumprod[t]).view(-1, 1, 1, 1)
        grad = w * (free + guidance_scale * (cond - free) - q)
        return (grad * latents).sum() / latents.shape[0]
