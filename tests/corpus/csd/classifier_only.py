import torch
from diffusers import StableDiffusionPipeline
from torchvision.transforms import Resize


class ClassifierScore:
    def __init__(self, device, fp16, vram_O=False):
        self.sd = StableDiffusionPipeline.from_pretrained(
            "sd", torch_dtype=torch.float16 if fp16 else torch.float32).to(device)
        self.size = Resize(512)

    def prompt(self, text, negative=""):
        def one(s):
            tokens = self.sd.tokenizer(s, padding="max_length", return_tensors="pt")
            return self.sd.text_encoder(tokens.input_ids)[0]
        self.y, self.null = one(text), one(negative)

    def train_step(self, images):
        z = self.sd.vae.encode(self.size(images) * 2 - 1).latent_dist.sample() * 0.18215
        n = len(z)
        t = torch.randint(20, 500, (n,))
        with torch.no_grad():
            zt = self.sd.scheduler.add_noise(z, torch.randn_like(z), t)
            pos = self.sd.unet(zt, t, self.y.repeat(n, 1, 1)).sample
            neg = self.sd.unet(zt, t, self.null.repeat(n, 1, 1)).sample
            w = (1 - self.sd.scheduler.alphas_cumprod[t])[:, None, None, None]
            g = w * (pos - neg)
        return (g * z).sum() / n
