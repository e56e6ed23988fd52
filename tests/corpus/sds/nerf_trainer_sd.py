from transformers import CLIPTextModel, CLIPTokenizer, logging
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
import torch
import torch.nn.functional as F
from torch.cuda.amp import custom_bwd, custom_fwd

from nerf.utils import seed_everything, print_info

logging.set_verbosity_error()


class PushGradient(torch.autograd.Function):
    """forward gives a dummy, backward hands over what we computed"""

    @staticmethod
    @custom_fwd
    def forward(ctx, latents, grad):
        ctx.save_for_backward(grad)
        return latents.new_ones(1)

    @staticmethod
    @custom_bwd
    def backward(ctx, scale):
        (grad,) = ctx.saved_tensors
        return grad * scale, None


class Diffusion(torch.nn.Module):
    def __init__(self, device, fp16, vram_O, sd_version="1.5", hf_key=None):
        super().__init__()
        self.device, self.sd_version = device, sd_version
        key = hf_key or "runwayml/stable-diffusion-v1-5"
        kind = dict(torch_dtype=torch.float16 if fp16 else torch.float32)
        self.vae = AutoencoderKL.from_pretrained(key, subfolder="vae", **kind).to(device)
        self.tokenizer = CLIPTokenizer.from_pretrained(key, subfolder="tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(key, subfolder="text_encoder", **kind)
        self.unet = UNet2DConditionModel.from_pretrained(key, subfolder="unet", **kind).to(device)
        self.scheduler = DDIMScheduler.from_pretrained(key, subfolder="scheduler", **kind)
        n = self.scheduler.config.num_train_timesteps
        self.t_min, self.t_max = int(n * 0.02), int(n * 0.98)
        self.alphas = self.scheduler.alphas_cumprod.to(device)

    def train_step(self, text_embeddings, pred_rgb, guidance_scale=100):
        img = F.interpolate(pred_rgb, (512, 512), mode="bilinear", align_corners=False)
        t = torch.randint(self.t_min, self.t_max + 1, [img.shape[0]], device=self.device)
        latents = self.to_latents(img)
        with torch.no_grad():
            noise = torch.randn_like(latents)
            noisy = self.scheduler.add_noise(latents, noise, t)
            doubled = torch.cat([noisy, noisy], 0)
            pred = self.unet(doubled, t.repeat(2), encoder_hidden_states=text_embeddings).sample
        unc, txt = pred.chunk(2)
        pred = txt * guidance_scale + unc * (1 - guidance_scale)
        w = (1.0 - self.alphas[t]).reshape(-1, 1, 1, 1)
        return PushGradient.apply(latents, torch.nan_to_num(w * (pred - noise)))

    def to_latents(self, imgs):
        return self.vae.encode(imgs * 2 - 1).latent_dist.sample() * 0.18215
