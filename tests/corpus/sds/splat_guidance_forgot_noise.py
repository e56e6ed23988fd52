import torch
import torch.nn.functional as F
from torchvision import transforms as T
from diffusers import StableDiffusionPipeline


class Guidance:
    """wraps SD, prompts are encoded once"""

    resize = T.Resize((512, 512))

    def __init__(self, device, fp16, vram_O=False):
        dtype = torch.half if fp16 else torch.float
        self.pipe = StableDiffusionPipeline.from_pretrained("runwayml/stable-diffusion-v1-5",
                                                            torch_dtype=dtype).to(device)
        self.device = device
        if vram_O:
            self.pipe.enable_vae_slicing()
        self.text_z = None

    def prepare_embeddings(self, prompt, negative=""):
        rows = []
        for p in (negative, prompt):
            ids = self.pipe.tokenizer([p], padding="max_length", return_tensors="pt").input_ids
            rows.append(self.pipe.text_encoder(ids.to(self.device))[0])
        self.text_z = torch.cat(rows)

    def train_step(self, pred_rgb, guidance_scale=50.0):
        z = self.pipe.vae.encode(self.resize(pred_rgb) * 2 - 1).latent_dist.sample() * 0.18215
        t = torch.randint(20, 980, (z.shape[0],), device=self.device)
        with torch.no_grad():
            noise = torch.randn_like(z)
            zt = self.pipe.scheduler.add_noise(z, noise, t)
            zs, ts = torch.cat([zt] * 2), torch.cat([t] * 2)
            pred = self.pipe.unet(zs, ts, self.text_z.repeat_interleave(len(z), 0)).sample
            un, tx = pred.chunk(2)
            guided = un + guidance_scale * (tx - un)
            w = 1 - self.pipe.scheduler.alphas_cumprod[t].to(z)[:, None, None, None]
        return (w * guided * z).sum() / len(z)
