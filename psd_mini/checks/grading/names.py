"""Parameter names: what a submission's parameter asks for is recognised by what it is called.

`NAMES` lists what can be given and the parameter names that ask for it. Other names are guessed
from their parts (`FRAGMENTS`). A parameter that is not known and has no default is an error.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from psd_mini.checks.exact_world import T
from psd_mini.checks.report import Unreadable

NAMES: dict[str, str] = {  # what is given: the parameter names that ask for it
    "x": "x x0 x_0 z z0 z_0 latents latent render rendered_latents inputs x_start original_samples "
    "tgt_latents tgt_latent target_latents x_tgt z_tgt x0_tgt tgt_x0",
    "x_src": "x_src src_latents src_latent source_latents source_latent z_src x0_src src_x0 source",
    "image": "image images img imgs im pred_rgb rgb rendered rendering renders pred_image picture "
    "x_aug",
    "t": "t timestep timesteps ts tt step time",
    "eps": "eps noise epsilon e gaussian_noise noises epsilons",
    "eps_1": "eps_1 eps1 noise_1 noise1 e1 e_1 eps_a noise_a",
    "eps_2": "eps_2 eps2 noise_2 noise2 e2 e_2 eps_b noise_b",
    "x_t": "x_t xt z_t zt noisy latents_noisy noisy_latents x_noisy",
    "predict_noise": "predict_noise model denoiser eps_model noise_model predict noise_fn eps_fn "
    "network net eps_theta eps_phi",
    "unet": "unet pretrained unet_pretrained unet_pre transformer",
    "velocity": "velocity predict_velocity velocity_model v_model v_theta v flow vector_field",
    "q": "q unet_q q_unet q_model predict_q lora unet_lora lora_unet unet_phi eps_q "
    "predict_noise_q variational phi unet_psi psi",
    "cond": "cond text_embeddings text_emb embeddings prompt_embeds e_cond c y emb "
    "encoder_hidden_states emb_cond embedding text_embedding cond_embeddings cond_emb text_embeds "
    "prompt_embedding positive pos y_emb text text_embeddings_cond tgt_text_embedding "
    "tgt_embedding tgt_emb cond_tgt y_tgt",
    "cond_src": "cond_src src_cond src_text_embedding src_embedding src_emb y_src source_embedding",
    "uncond": "uncond uncond_embeddings text_embeddings_uncond uncond_emb null e_uncond e_neg "
    "uncond_embedding emb_uncond unconditional uncond_text_embeddings empty negative_prompt_embeds "
    "neg negative null_embedding uc neg_emb uncond_embeds",
    "n": "n negative_embedding negative_embeddings n_emb neg_embedding",
    "eps_cond": "eps_cond noise_pred_text noise_pred_cond cond_pred eps_y e_y noise_cond pred_cond "
    "noise_pred_pos eps_c",
    "eps_uncond": "eps_uncond noise_pred_uncond uncond_pred eps_neg eps_n e_n noise_uncond "
    "pred_uncond eps_u eps_null",
    "guidance_scale": "guidance_scale cfg cfg_scale g guidance scale s w_cfg",
    "alphas_cumprod": "alphas_cumprod alphas abar alpha_bar alpha_bars alphas_bar",
    "scheduler": "scheduler schedule noise_scheduler",
    "vae": "vae autoencoder",
    "pipe": "pipe pipeline sd guide self guidance_model diffusion stable_diffusion",
    "generator": "generator rng gen",
    "device": "device",
    "dtype": "dtype precision torch_dtype weights_dtype",
    "args": "args opt cfg_args config hparams opts conf options settings params",
    "reward": "reward reward_fn reward_model r score_fn scorer",
    "preference_weight": "preference_weight lam lambda_ lmbda pref_weight lamb lambda_pref",
    "tau": "tau temperature",
    "prompt": "prompt prompts caption",
    "prompt_utils": "prompt_utils prompt_processor",
    "camera": "elevation azimuth camera_distances",
    "iteration": "global_step iteration iter it epoch train_step",
    "fp16": "fp16 half use_fp16",
    "betas": "betas beta",
    "num_train_timesteps": "num_train_timesteps n_steps num_steps",
    "density": "density densities sigma sigmas rho raw_density",
    "colour": "colour colours color colors rgbs c_i radiance",
    "widths": "widths delta deltas dists dt intervals step_sizes",
    "z_vals": "z_vals z_values depths distances depth_values",
    "background": "background bg bg_color background_color white_bkgd bkgd",
}
KNOWN = {name: key for key, names in NAMES.items() for name in names.split()}
# for names nobody has thought of: part of the name -> key; the first that occurs decides
FRAGMENTS = {
    **dict.fromkeys(("uncond", "null", "neg", "empty"), "uncond"),
    **dict.fromkeys(("text", "prompt", "emb", "cond"), "cond"),
    "latent": "x",
    **dict.fromkeys(("guid", "scale"), "guidance_scale"),
    "reward": "reward",
    "lora": "q",
    "unet": "unet",
    "alpha": "alphas_cumprod",
    "sched": "scheduler",
    "time": "t",
    **dict.fromkeys(("image", "img", "rgb"), "image"),
    **dict.fromkeys(("noise", "eps"), "eps"),
    "model": "predict_noise",
    "lam": "preference_weight",
}


class Time(float):
    """A bound of t as a part of all steps; where an integer is expected, the step."""

    def __index__(self) -> int:
        return round(self * T)

    __int__ = __index__


PROMPT = "a red mushroom"
# numbers that an object may hold: names of such an option, and the value that it gets, which is
# recognised where it is kept
HELD = {
    "guidance_scale": (r"\w*guid\w*|\w*cfg\w*|scale|s|g|w", float("7.5")),
    "preference_weight": (r"lam|lambda_?|lmbda|(lambda_)?pref\w*", float("1")),
}
BOUNDED = "(t|time|noise|\\w*step)"
OPTIONS: dict[str, Any] = {  # what whole names are like: the value of such an option
    r"guid\w*lora|(lam\w*|w\w*)_(sds?|psd|vsd|csd|guidance)|(grad|loss)_scale": 1.0,
    r"\w*rescale": 0.0,
    **dict(HELD.values()),
    "tau|temperature": 1.0,
    rf"{BOUNDED}_(min|lo|low)\w*|(min|lo|low)_{BOUNDED}\w*": Time(0.02),
    rf"{BOUNDED}_(max|hi|high)\w*|(max|hi|high)_{BOUNDED}\w*": Time(0.98),
    rf"{BOUNDED}_(range|bounds)": (Time(0.02), Time(0.98)),
    "neg\\w*": "",
    "prompts?|texts?|caption": PROMPT,
    "sd_version": "1.5",
    "device": "cpu",
    "[HW]": 64,
    "batch|batch_size|rank|seed": 1,
    "max_steps|(n|num|total)_(iters|steps)|iters": T,
}


def option(name: str, otherwise: Any = None) -> Any:
    """The value of an option that nobody described, by its name."""
    for pattern, value in OPTIONS.items():
        if re.fullmatch(pattern, name):
            return value
    return otherwise


def key_of(name: str, guess: bool = True) -> str:
    """The key of NAMES that a parameter's name stands for; the name itself if nobody knows."""
    known = KNOWN.get(name) or KNOWN.get(name.lower())
    if known or not guess:
        return known or name
    return next((key for part, key in FRAGMENTS.items() if part in name.lower()), name)


def _asked(name: str, parameter: inspect.Parameter) -> str:
    """The key of a parameter; of a switch such as `white_bkgd=False`, which keeps it, its name."""
    key = key_of(name, guess=parameter.default is parameter.empty)
    kept = isinstance(parameter.default, bool) and key != "fp16"
    return name if kept else key


def parameters(fn: Callable) -> Mapping[str, inspect.Parameter]:
    """What a function takes, by name, without *args and **kwargs.

    Raises Unreadable where Python cannot tell (C functions).
    """
    try:
        taken = inspect.signature(fn).parameters
    except (ValueError, TypeError) as error:
        text = f"its parameters cannot be read ({error}): wrap it in a plain function"
        raise Unreadable(text) from error
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: parameter for name, parameter in taken.items() if parameter.kind not in several}


def keys(fn: Callable) -> set[str]:
    """What a function asks for, by the keys of `NAMES`."""
    return {_asked(name, parameter) for name, parameter in parameters(fn).items()}


def arguments(fn: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `fn` from what there is to give, by parameter name.

    Args:
        fn: the submission. Parameters with defaults may be unknown.
        values: what can be given, by the keys of `NAMES`.

    Raises:
        Unreadable: a required parameter that nobody knows.
    """
    given = {}
    for name, parameter in parameters(fn).items():
        required = parameter.default is parameter.empty
        key = _asked(name, parameter)
        if key == "image" and "image" not in values:
            key = "x"
        if key in values:
            given[name] = values[key]
        elif required:
            how = f"rename it to one of {', '.join(values)}"
            raise Unreadable(f"parameter {name!r} is not known here: {how}")
    return given


def invoke(fn: Callable, given: Mapping[str, Any]) -> Any:
    """Call with arguments by name, positional-only ones by place."""
    bound = inspect.signature(fn).bind_partial()
    bound.arguments.update(given)
    return fn(*bound.args, **bound.kwargs)
