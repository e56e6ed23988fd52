import torch
from peft import LoraConfig
from .utils import save_image_grid
from diffusers.models.attention_processor import LoRAAttnProcessor


def make_lora(processors):
    return {name: LoRAAttnProcessor(hidden_size=320) for name in processors}


class VSDGuidance:
    def __init__(self, pipe):
        self.unet, self.scheduler, self.kw = pipe.unet, pipe.scheduler, {}
        self.unet.set_attn_processor(make_lora(self.unet.attn_processors))

    @torch.no_grad()
    def ask(self, x_t, t, e, lora):
        if lora:
            self.kw = {'cross_attention_kwargs': {'scale': 1}}
        else:
            self.kw = {'cross_attention_kwargs': {'scale': 0}}
        return self.unet(x_t, t, encoder_hidden_states=e, **self.kw).sample

    def vsd_loss(self, latents, text_embeddings, uncond_embeddings, guidance_scale):
        t = torch.randint(20, 980, (len(latents),))
        noise = torch.randn_like(latents)
        x_t = self.scheduler.add_noise(latents.detach(), noise, t)
        c = self.ask(x_t, t, text_embeddings, lora=False)
        u = self.ask(x_t, t, uncond_embeddings, lora=False)
        q = self.ask(x_t, t, text_embeddings, lora=True)
        grad = u + guidance_scale * (c - u) - q
        return (grad * latents).sum() / len(latents)
