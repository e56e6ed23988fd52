"""Skeletons and slips of PSD, and of VSD on one UNet whose adapter is switched."""

PSD_FUNCTION = """import torch
$library


@torch.no_grad()
def psd_gradient(x, t, eps_1, eps_2, unet, vae, cond, uncond, reward, guidance_scale,
                 preference_weight, alphas_cumprod):
    abar = alphas_cumprod[t].view(-1, 1, 1, 1)
    h, r = [], []
    for k, eps in enumerate((eps_1, eps_2)):
        x_t = abar.sqrt() * x + (1 - abar).sqrt() * eps
        e_u = unet(x_t, t, encoder_hidden_states=uncond).sample
        e_c = unet(x_t, t, encoder_hidden_states=cond).sample
        e = $guided
        x0_hat = $x0_hat
        r.append(reward(vae.decode($shown / vae.config.scaling_factor).sample))
        h.append($residual)
    omega = ($omega).view(-1, 1, 1, 1)
    return $combined
"""
PSD_CLASS = """import torch
$library
from diffusers import StableDiffusionPipeline


class PreferenceGuidance(torch.nn.Module):
    def __init__(self, opt, reward_fn):
        super().__init__()
        self.opt, self.reward_fn = opt, reward_fn
        self.pipe = StableDiffusionPipeline.from_pretrained(opt.model)

    def psd_loss(self, latents, text_embeddings, uncond_embeddings):
        guidance_scale, preference_weight = self.opt.guidance, self.opt.lam
        x, vae, reward = latents.detach(), self.pipe.vae, self.reward_fn
        t = torch.randint(50, 950, (len(x),))
        abar = self.pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        h, r = [], []
        with torch.no_grad():
            for k in range(2):
                eps = torch.randn_like(x)
                x_t = self.pipe.scheduler.add_noise(x, eps, t)
                e_u = self.pipe.unet(x_t, t, uncond_embeddings).sample
                e_c = self.pipe.unet(x_t, t, text_embeddings).sample
                e = $guided
                x0_hat = $x0_hat
                r.append(reward(vae.decode($shown / vae.config.scaling_factor).sample))
                h.append($residual)
            omega = ($omega).view(-1, 1, 1, 1)
            grad = $combined
        return (grad * latents).sum() / len(latents)
"""
PSD_PIECES = {
    "guided": "e_u + guidance_scale * (e_c - e_u)",
    "x0_hat": "(x_t - (1 - abar).sqrt() * e) / abar.sqrt()",
    "shown": "x0_hat",
    "residual": "e - eps",
    "omega": "torch.sign(r[0] - r[1])",
    "combined": "(h[0] + h[1]) / 2 + preference_weight * omega * (h[0] - h[1])",
}
PSD_SLIPS = {
    "right": ("right", "", {}),
    "right-tanh": ("right", "", {"omega": "torch.tanh((r[0] - r[1]) / 2)"}),
    "winner-loser-swapped": ("wrong", "swapped", {"omega": "torch.sign(r[1] - r[0])"}),
    "x0-without-sigma": ("wrong", "x0_hat|not shown", {"x0_hat": "(x_t - e) / abar.sqrt()"}),
    "x0-without-alpha": (
        "wrong",
        "not divided by alpha",
        {"x0_hat": "x_t - (1 - abar).sqrt() * e"},
    ),
    "reward-of-x_t": ("wrong", "noisy x_t", {"shown": "x_t"}),
    "reward-of-render": ("wrong", "render itself", {"shown": "x"}),
    "omega-unsigned": ("wrong", "not signed", {"omega": "(r[0] - r[1]).abs()"}),
    "no-base": (
        "wrong",
        "base is missing",
        {"combined": "preference_weight * omega * (h[0] - h[1])"},
    ),
    "base-is-sum": (
        "wrong",
        "sum of both",
        {"combined": "h[0] + h[1] + preference_weight * omega * (h[0] - h[1])"},
    ),
    "noise-added": ("wrong", "added", {"residual": "e + eps"}),
    "noise-not-subtracted": ("wrong", "no noise|not subtracted", {"residual": "e"}),
    "one-unguided": (
        "wrong",
        "one of the two|alike",
        {"guided": "e_u + (guidance_scale if k == 0 else 1.0) * (e_c - e_u)"},
    ),
    "loser-noise-kept": (
        "wrong",
        "noise of one|not subtracted",
        {"residual": "e - eps if k == 0 else e"},
    ),
    "sign": (
        "wrong",
        "sign|ascent",
        {"combined": "-(h[0] + h[1]) / 2 - preference_weight * omega * (h[0] - h[1])"},
    ),
    "pull-on-the-mean": (
        "wrong",
        "weights are|no influence|preference term",
        {"combined": "(h[0] + h[1]) / 2 * (1 + preference_weight * omega)"},
    ),
}
PSD_SKELETONS = {
    "function": (
        PSD_FUNCTION,
        "",
        "m.psd_gradient(x, t, eps_1, eps_2, unet, vae, cond, uncond, reward, g, lam, abar)",
        "style:function",
    ),
    "class": (
        PSD_CLASS,
        "o = m.PreferenceGuidance(opt(model='sd', guidance=g, lam=lam), reward)",
        "o.psd_loss(x, cond, uncond)",
        "ctor:opt method:psd_loss reward:in-ctor",
    ),
}

VSD_SWITCHES = {  # how one UNet becomes the prior ("off") and q ("on")
    "adapters": (
        "self.unet.disable_adapters()",
        "self.unet.enable_adapters()",
        'self.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"]))',
    ),
    "set_scale": (
        "self.kw = {'cross_attention_kwargs': {'scale': 0}}",
        "self.kw = {'cross_attention_kwargs': {'scale': 1}}",
        "self.unet.set_attn_processor(make_lora(self.unet.attn_processors))",
    ),
}
VSD_CLASS = """import torch
from peft import LoraConfig
$library
from diffusers.models.attention_processor import LoRAAttnProcessor


def make_lora(processors):
    return {name: LoRAAttnProcessor(hidden_size=320) for name in processors}


class VSDGuidance:
    def __init__(self, pipe):
        self.unet, self.scheduler, self.kw = pipe.unet, pipe.scheduler, {}
        $adapter

    @torch.no_grad()
    def ask(self, x_t, t, e, lora):
        if lora:
            $on
        else:
            $off
        return self.unet(x_t, t, encoder_hidden_states=e, **self.kw).sample

    def vsd_loss(self, latents, text_embeddings, uncond_embeddings, guidance_scale):
        t = torch.randint(20, 980, (len(latents),))
        noise = torch.randn_like(latents)
        x_t = self.scheduler.add_noise(latents.detach(), noise, t)
        c = self.ask(x_t, t, text_embeddings, lora=False)
        u = self.ask(x_t, t, uncond_embeddings, lora=False)
        q = self.ask(x_t, t, text_embeddings, lora=$q_lora)
        grad = $grad
        return (grad * latents).sum() / len(latents)
"""
GUIDED = "u + guidance_scale * (c - u)"
VSD_SLIPS = {
    "right": ("right", "", {}),
    "adapter-off-for-q": ("wrong", "pretrained network|q's prediction", {"q_lora": "False"}),
    "noise-for-q": (
        "wrong",
        "this is SDS|noise is subtracted instead",
        {"grad": f"{GUIDED} - noise + 0 * q"},
    ),
    "sign": ("wrong", "sign|ascent", {"grad": f"q - ({GUIDED})"}),
    "cond-uncond-swapped": (
        "wrong",
        "swapped|flipped|away",
        {"grad": "c + guidance_scale * (u - c) - q"},
    ),
    "guidance-plus-one": ("wrong", r"g \+ 1|s\+1", {"grad": "c + guidance_scale * (c - u) - q"}),
}
