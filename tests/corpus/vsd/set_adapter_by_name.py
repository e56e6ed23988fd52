import torch
from peft import LoraConfig, get_peft_model


class TwoAdapters:
    def __init__(self, pipe):
        config = LoraConfig(r=4, target_modules=["to_q", "to_k"])
        self.net = get_peft_model(pipe.unet, config, adapter_name="q")
        self.net.set_adapter("q")
        self.scheduler = pipe.scheduler

    @torch.no_grad()
    def calc_grad(self, z, pos, neg, scale):
        t = torch.randint(50, 950, (len(z),))
        xt = self.scheduler.add_noise(z, torch.randn_like(z), t)
        q = self.net(xt, t, encoder_hidden_states=pos).sample
        with self.net.disable_adapter():
            c = self.net(xt, t, encoder_hidden_states=pos).sample
            u = self.net(xt, t, encoder_hidden_states=neg).sample
        sigma = (1 - self.scheduler.alphas_cumprod[t]).sqrt()[:, None, None, None]
        return sigma * (u + scale * (c - u) - q)
