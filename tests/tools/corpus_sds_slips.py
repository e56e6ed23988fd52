"""Slips of an SDS gradient: the lines of a right submission, and what replaces them.

`PIECES` are written in neutral names, which a naming of `NAMINGS` replaces:

    x0, t, eps, x_t, e_c, e_u, g        render, time, noise, noised render, predictions, scale
    e, d                                guided prediction, gradient
"""

PIECES = {
    "x_t": "abar.sqrt() * x0 + (1 - abar).sqrt() * eps",
    "asked": "t",
    "order": "e_u, e_c",
    "guided": "e_u + g * (e_c - e_u)",
    "residual": "e - eps",
    "weight": "1 - abar",
    "target": "(x0 - d).detach()",
    "scaling": "0.18215",
    "factor": "0.5 * ",
    "sum": 'reduction="sum"',
    "grad_mode": "torch.no_grad()",
}
# slip: (expected verdict, words of the diagnosis, pieces that are replaced, w(t), constant factor)
SLIPS = {
    "right": ("right", "", {}, "s**2", "1"),
    "right-uniform": ("right", "", {"weight": "torch.ones_like(abar)"}, "1", "1"),
    "right-alpha": ("right", "", {"weight": "abar.sqrt() * (1 - abar)"}, "a*s**2", "1"),
    "right-sigma": ("right", "", {"weight": "(1 - abar).sqrt()"}, "s", "1"),
    "right-lerp": ("right", "", {"guided": "torch.lerp(e_u, e_c, g)"}, "s**2", "1"),
    "right-weights": ("right", "", {"guided": "g * e_c + (1 - g) * e_u"}, "s**2", "1"),
    "mean": ("scaled", "mean over", {"sum": 'reduction="mean"'}, "s**2", "1/N"),
    "twice": ("scaled", "1/2|twice|factor 2", {"factor": ""}, "s**2", "2"),
    "mean-and-twice": (
        "scaled",
        "mean over; 1/2|twice|factor 2",
        {"sum": 'reduction="mean"', "factor": ""},
        "s**2",
        "2/N",
    ),
    "noise-not-subtracted": ("wrong", "not subtracted|prediction alone", {"residual": "e"}, "", ""),
    "noise-added": ("wrong", "added", {"residual": "e + eps"}, "", ""),
    "sign": ("wrong", "sign|ascent", {"residual": "eps - e"}, "", ""),
    "noise-redrawn": (
        "wrong",
        "redrawn|not the one",
        {"residual": "e - torch.randn_like(eps)"},
        "",
        "",
    ),
    "picture-subtracted": (
        "wrong",
        "picture itself|not subtracted",
        {"residual": "e - x0.detach()"},
        "",
        "",
    ),
    "order": ("wrong", "swapped|flipped|chunks", {"order": "e_c, e_u"}, "", ""),
    "guidance-plus-one": ("wrong", r"g \+ 1|s\+1", {"guided": "e_c + g * (e_c - e_u)"}, "", ""),
    "guidance-minus-one": (
        "wrong",
        r"g - 1|s-1",
        {"guided": "e_u + (g - 1) * (e_c - e_u)"},
        "",
        "",
    ),
    "guidance-no-front": ("wrong", "in front is missing", {"guided": "g * (e_c - e_u)"}, "", ""),
    "guidance-flipped": ("wrong", "flipped|away", {"guided": "e_u - g * (e_c - e_u)"}, "", ""),
    "guidance-ignored": ("wrong", "ignored", {"guided": "e_c + 0 * g * e_u"}, "", ""),
    "no-roots": ("wrong", "square root", {"x_t": "abar * x0 + (1 - abar) * eps"}, "", ""),
    "root-of-signal-only": (
        "wrong",
        "square root",
        {"x_t": "abar.sqrt() * x0 + (1 - abar) * eps"},
        "",
        "",
    ),
    "sigma-linear": (
        "wrong",
        r"1 - alpha_t|1 - sqrt",
        {"x_t": "abar.sqrt() * x0 + (1 - abar.sqrt()) * eps"},
        "",
        "",
    ),
    "alpha-sigma-swapped": (
        "wrong",
        "swapped",
        {"x_t": "(1 - abar).sqrt() * x0 + abar.sqrt() * eps"},
        "",
        "",
    ),
    "signal-not-scaled": (
        "wrong",
        "not scaled by alpha",
        {"x_t": "x0 + (1 - abar).sqrt() * eps"},
        "",
        "",
    ),
    "noise-not-scaled": ("wrong", "not scaled by sigma", {"x_t": "abar.sqrt() * x0 + eps"}, "", ""),
    "no-noise": ("wrong", "no noise", {"x_t": "abar.sqrt() * x0 + 0 * eps"}, "", ""),
    "asked-a-step-later": ("wrong", "off by one", {"asked": "(t - 1)"}, "", ""),
    "asked-in-fractions": ("wrong", r"integers|0\.\.999", {"asked": "(t / 1000)"}, "", ""),
    "asked-half-as-far": ("wrong", r"came at t|noise level|UNet", {"asked": "(t // 2)"}, "", ""),
    "target-at-x_t": ("wrong", "x_t", {"target": "(x_t - d).detach()"}, "", ""),
    "target-not-detached": ("wrong", "exactly zero|detached", {"target": "x0 - d"}, "", ""),
    "latents-unscaled": ("wrong", r"scaling_factor|0\.18215", {"scaling": "1.0"}, "", ""),
    "weight-negative": ("wrong", "sign|ascent", {"weight": "-(1 - abar)"}, "", ""),
    "picture-scaled-twice": (
        "wrong",
        r"scaling|0\.18|came at",
        {"scaling": "0.18215 * vae.config.scaling_factor"},
        "",
        "",
    ),
}
NEEDS = {  # slips that only some skeletons can have: the piece that must be in the skeleton
    "mean": "sum",
    "twice": "factor",
    "mean-and-twice": "sum",
    "target-at-x_t": "target",
    "target-not-detached": "target",
    "latents-unscaled": "scaling",
    "picture-scaled-twice": "scaling",
}
NAMINGS = (  # what the neutral names are called
    "x0=latents t=t eps=noise x_t=latents_noisy e_c=noise_pred_text e_u=noise_pred_uncond "
    "g=guidance_scale e=noise_pred d=grad picture=pred_rgb Guide=StableDiffusion",
    "x0=x_start t=timestep eps=noise x_t=x_noisy e_c=pos e_u=neg g=cfg_scale e=out d=delta "
    "picture=inputs Guide=SDSGuidance",
    "x0=original_samples t=timesteps eps=epsilon x_t=noised e_c=eps_text e_u=eps_null g=s "
    "e=eps_hat d=direction picture=images Guide=DiffusionPrior",
    "x0=z t=ts eps=n x_t=zt e_c=cond_out e_u=free_out g=scale e=guided d=step picture=im "
    "Guide=Distiller",
)
