import torch
from diffusers.loaders import AttnProcsLayers
from diffusers.models.attention_processor import LoRAAttnProcessor


class VSD:
    """LoRA processors in the attention layers; scale 0 switches them off"""

    def __init__(self, pipe, scale=7.5):
        self.unet, self.sched, self.s = pipe.unet, pipe.scheduler, scale
        procs = {}
        for name in self.unet.attn_processors.keys():
            procs[name] = LoRAAttnProcessor(hidden_size=320, cross_attention_dim=None)
        self.unet.set_attn_processor(procs)
        self.layers = AttnProcsLayers(self.unet.attn_processors)

    def eps(self, x, t, e, lora):
        return self.unet(x, t, encoder_hidden_states=e,
                         cross_attention_kwargs={"scale": 1.0 if lora else 0.0}).sample

    @torch.no_grad()
    def vsd_gradient(self, latents, t, text_embeddings, uncond_embeddings):
        noise = torch.randn_like(latents)
        xt = self.sched.add_noise(latents, noise, t)
        u = self.eps(xt, t, uncond_embeddings, lora=False)
        c = self.eps(xt, t, text_embeddings, lora=False)
        return u + self.s * (c - u) - self.eps(xt, t, text_embeddings, lora=True)
