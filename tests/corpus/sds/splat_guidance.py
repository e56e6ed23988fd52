# SD guidance for our gaussian splatting project
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision.transforms.functional as TF
import kornia
from diffusers import DDIMScheduler, StableDiffusionPipeline


class SplatGuidance(nn.Module):
    def __init__(self, device, fp16=True, vram_O=False, sd_version="2.1", hf_key=None,
                 t_range=[0.02, 0.98]):
        super().__init__()
        self.device = device
        self.dtype = torch.float16 if fp16 else torch.float32
        if hf_key is not None:
            key = hf_key
        else:
            key = {"2.1": "stabilityai/stable-diffusion-2-1-base",
                   "1.5": "runwayml/stable-diffusion-v1-5"}[sd_version]
        pipe = StableDiffusionPipeline.from_pretrained(key, torch_dtype=self.dtype)
        if vram_O:
            pipe.enable_sequential_cpu_offload()
            pipe.enable_vae_slicing()
            pipe.enable_attention_slicing(1)
        else:
            pipe.to(device)
        self.vae, self.unet = pipe.vae, pipe.unet
        self.tokenizer, self.text_encoder = pipe.tokenizer, pipe.text_encoder
        self.scheduler = DDIMScheduler.from_pretrained(key, subfolder="scheduler")
        self.T = self.scheduler.config.num_train_timesteps
        self.lo, self.hi = int(self.T * t_range[0]), int(self.T * t_range[1])
        self.acp = self.scheduler.alphas_cumprod.to(device)
        self.embeddings = {}

    @torch.no_grad()
    def get_text_embeds(self, prompts, negative_prompts):
        self.embeddings["pos"] = self.encode_text(prompts)
        self.embeddings["neg"] = self.encode_text(negative_prompts)

    def encode_text(self, prompt):
        tok = self.tokenizer(prompt, padding="max_length",
                             max_length=self.tokenizer.model_max_length, return_tensors="pt")
        return self.text_encoder(tok.input_ids.to(self.device))[0]

    def encode_imgs(self, imgs):
        post = self.vae.encode(2 * imgs - 1).latent_dist
        return post.sample() * self.vae.config.scaling_factor

    def train_step(self, pred_rgb, step_ratio=None, guidance_scale=100, as_latent=False):
        B = pred_rgb.shape[0]
        pred_rgb = pred_rgb.to(self.dtype)
        if as_latent:
            z = F.interpolate(pred_rgb, (64, 64), mode="bilinear") * 2 - 1
        else:
            z = self.encode_imgs(F.interpolate(pred_rgb, (512, 512), mode="bilinear"))
        with torch.no_grad():
            if step_ratio is not None:
                step = np.round((1 - step_ratio) * self.T).clip(self.lo, self.hi)
                t = torch.full((B,), int(step), dtype=torch.long, device=self.device)
            else:
                t = torch.randint(self.lo, self.hi + 1, (B,), device=self.device)
            w = (1 - self.acp[t]).view(B, 1, 1, 1)
            eps = torch.randn_like(z)
            zt = self.scheduler.add_noise(z, eps, t)
            emb = torch.cat([self.embeddings["neg"].expand(B, -1, -1),
                             self.embeddings["pos"].expand(B, -1, -1)])
            out = self.unet(torch.cat([zt, zt]), torch.cat([t, t]), encoder_hidden_states=emb).sample
            e_neg, e_pos = out.chunk(2)
            e = e_neg + guidance_scale * (e_pos - e_neg)
            grad = torch.nan_to_num(w * (e - eps))
            target = z - grad
        return 0.5 * F.mse_loss(z.float(), target.float(), reduction="sum") / B
