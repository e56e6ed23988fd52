import copy

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline


class Prolific(torch.nn.Module):
    def __init__(self, device, fp16, vram_O=False):
        super().__init__()
        kind = torch.float16 if fp16 else torch.float32
        self.pipe = StableDiffusionPipeline.from_pretrained("sd21", torch_dtype=kind).to(device)
        self.unet = self.pipe.unet.eval()
        self.unet_q = copy.deepcopy(self.unet).train()
        self.pos = self.neg = None

    def get_text_embeds(self, prompt, negative_prompt=""):
        enc = lambda s: self.pipe.text_encoder(
            self.pipe.tokenizer(s, padding="max_length", return_tensors="pt").input_ids)[0]
        self.pos, self.neg = enc(prompt), enc(negative_prompt)

    def train_step(self, pred_rgb, guidance_scale=7.5):
        img = F.interpolate(pred_rgb, (512, 512), mode="bilinear")
        z = self.pipe.vae.encode(img * 2 - 1).latent_dist.sample() * 0.18215
        b = z.shape[0]
        t = torch.randint(20, 980, (b,))
        noise = torch.randn_like(z)
        zt = self.pipe.scheduler.add_noise(z.detach(), noise, t)
        pos, neg = self.pos.expand(b, -1, -1), self.neg.expand(b, -1, -1)
        with torch.no_grad():
            c = self.unet(zt, t, encoder_hidden_states=pos).sample
            u = self.unet(zt, t, encoder_hidden_states=neg).sample
        q = self.unet_q(zt, t, encoder_hidden_states=pos).sample
        w = 1 - self.pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        grad = (w * (u + guidance_scale * (c - u) - q)).detach()
        return (grad * z).sum() / b, F.mse_loss(q, noise)
