import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from .utils import seed_everything


class Inject(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, g):
        ctx.g = g
        return (x * 0).sum()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.g, None


class Guide:
    def __init__(self, opt):
        self.opt = opt
        self.unet = UNet2DConditionModel.from_pretrained("sd", subfolder="unet").to(opt.device)
        self.sched = DDIMScheduler.from_pretrained("sd", subfolder="scheduler")

    def train_step(self, text_z, inputs):
        b = inputs.size(0)
        ts = torch.randint(self.opt.min_t, self.opt.max_t, (b,))
        noise = torch.randn_like(inputs)
        with torch.no_grad():
            x_t = self.sched.add_noise(inputs, noise, ts)
            text, empty = self.unet(torch.cat((x_t, x_t)), torch.cat((ts, ts)), text_z).sample.chunk(2)
            e = empty + self.opt.cfg_scale * (text - empty)
        w = 1 - self.sched.alphas_cumprod[ts].view(b, 1, 1, 1)
        return Inject.apply(inputs, w * (e - noise)) / b
