"""How people hand in: functions, losses, classes. Finding the code, giving it what it asks for by
name, reading its answer.

A submission is a function, a class (made within `offline_diffusers`, constructor included) or an
object with a method. Its parameters are recognised by their names, of which `NAMES` lists what is
known; a parameter that is not known and has no default is an error that shows the list. Its answer
may be a gradient of x's shape, a loss that is back-propagated here, or nothing, if it
back-propagated itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psd_mini.checks.grading.offline import offline_diffusers
from psd_mini.checks.grading.stand_ins import Pipeline, UNet
from psd_mini.checks.world import T

# methods that hold the gradient in classes of courses and public code
COURSE = (
    "sds_loss",
    "get_sds_loss",
    "train_step",
    "calc_sds_loss",
    "compute_loss",
    "loss",
    "gradient",
    "forward",
)
NAMES: dict[str, str] = {  # what is given: the parameter names that ask for it
    "x": "x x0 x_0 z z0 z_0 latents latent render rendered_latents inputs",
    "image": "image images img imgs pred_rgb rgb rendered rendering renders pred_image",
    "t": "t timestep timesteps ts tt step time",
    "eps": "eps noise epsilon e gaussian_noise noises epsilons",
    "eps_1": "eps_1 eps1 noise_1 noise1 e1 e_1 eps_a noise_a",
    "eps_2": "eps_2 eps2 noise_2 noise2 e2 e_2 eps_b noise_b",
    "x_t": "x_t xt z_t zt noisy latents_noisy noisy_latents x_noisy",
    "predict_noise": (
        "predict_noise model denoiser eps_model noise_model predict noise_fn eps_fn network net"
        " eps_theta eps_phi"
    ),
    "unet": "unet pretrained unet_pretrained unet_pre",
    "q": (
        "q unet_q q_model predict_q lora unet_lora lora_unet unet_phi eps_q predict_noise_q"
        " variational phi unet_psi psi"
    ),
    "cond": (
        "cond text_embeddings text_emb embeddings prompt_embeds e_cond c y emb"
        " encoder_hidden_states emb_cond embedding text_embedding cond_embeddings cond_emb"
        " text_embeds prompt_embedding positive y_emb text text_embeddings_cond"
    ),
    "uncond": (
        "uncond uncond_embeddings text_embeddings_uncond uncond_emb null e_uncond e_neg"
        " uncond_embedding emb_uncond unconditional uncond_text_embeddings empty"
        " negative_prompt_embeds neg negative null_embedding uc neg_emb uncond_embeds"
    ),
    "n": "n negative_embedding negative_embeddings n_emb neg_embedding",
    "eps_cond": (
        "eps_cond noise_pred_text noise_pred_cond cond_pred eps_y e_y noise_cond pred_cond"
        " noise_pred_pos eps_c"
    ),
    "eps_uncond": (
        "eps_uncond noise_pred_uncond uncond_pred eps_neg eps_n e_n noise_uncond pred_uncond eps_u"
        " eps_null"
    ),
    "guidance_scale": "guidance_scale cfg cfg_scale g guidance scale s w_cfg",
    "alphas_cumprod": "alphas_cumprod alphas abar alpha_bar alpha_bars alphas_bar",
    "scheduler": "scheduler schedule noise_scheduler",
    "vae": "vae autoencoder",
    "pipe": "pipe pipeline sd guide self guidance_model diffusion stable_diffusion",
    "generator": "generator rng gen",
    "device": "device",
    "dtype": "dtype precision torch_dtype weights_dtype",
    "args": "args opt cfg_args config hparams opts conf",
    "reward": "reward reward_fn reward_model r score_fn scorer",
    "preference_weight": "preference_weight lam lambda_ lmbda pref_weight lamb lambda_pref",
    "tau": "tau temperature",
    "prompt": "prompt prompts caption",
    "betas": "betas beta",
    "num_train_timesteps": "num_train_timesteps n_steps num_steps",
    "density": "density densities sigma sigmas rho raw_density",
    "colour": "colour colours color colors rgbs c_i radiance",
    "widths": "widths delta deltas dists dt intervals step_sizes",
    "z_vals": "z_vals z_values depths distances",
    "background": "background bg bg_color background_color white_bkgd bkgd",
}
LIBRARIES = (
    "builtins",
    "abc",
    "typing",
    "torch",
    "lightning",
    "pytorch_lightning",
)  # their methods are nobody's submission
KNOWN = {name: key for key, names in NAMES.items() for name in names.split()}
PARTS = {  # for names nobody has thought of: the first of these that occurs in it
    **dict.fromkeys(("uncond", "null", "neg", "empty"), "uncond"),
    **dict.fromkeys(("text", "prompt", "emb", "cond"), "cond"),
    **{
        "latent": "x",
        "guid": "guidance_scale",
        "scale": "guidance_scale",
        "reward": "reward",
        "lora": "q",
    },
    **{
        "unet": "unet",
        "alpha": "alphas_cumprod",
        "sched": "scheduler",
        "time": "t",
        "image": "image",
        "img": "image",
    },
    **{
        "rgb": "image",
        "noise": "eps",
        "eps": "eps",
        "model": "predict_noise",
        "lam": "preference_weight",
    },
}


def key_of(name: str, names: Mapping[str, str] | None = None, guess: bool = True) -> str:
    """Which of the things that can be given a parameter of this name asks for; the name itself
    if nobody knows."""
    known = (names or {}).get(name) or KNOWN.get(name) or KNOWN.get(name.lower())
    return known or next(
        (key for part, key in PARTS.items() if guess and part in name.lower()), name
    )


class Unreadable(ValueError):
    """The submission or its answer cannot be understood; the message says what to change.

    status: of the row that it becomes, see `report.Finding`: "wrong" where the answer is, "could
        not run" where none came.
    verdict: False if the code itself raised, so that another form of input may be what it wants.
    """

    def __init__(self, message: str, status: str = "could not run", verdict: bool = True):
        super().__init__(message)
        self.status, self.verdict = status, verdict


def parameters(fn: Callable) -> Mapping[str, inspect.Parameter]:
    """What a function takes, by name. Raises Unreadable where Python cannot tell, as for some
    functions written in C."""
    try:
        return inspect.signature(fn).parameters
    except (ValueError, TypeError) as error:
        raise Unreadable(
            f"its parameters cannot be read ({error}): wrap it in a plain function"
        ) from error


def keys(fn: Callable, names: Mapping[str, str] | None = None) -> set[str]:
    """What a function asks for, by the keys of `NAMES`."""
    return {key_of(name, names, p.default is p.empty) for name, p in parameters(fn).items()}


def arguments(
    fn: Callable, values: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Keyword arguments for `fn` from what there is to give, by parameter name; parameters with
    defaults may go unknown.

    Args:
        fn: the submission.
        values: what can be given, by the keys of `NAMES`.
        names: parameter -> key, for parameters with names of their own.

    Raises:
        Unreadable: a required parameter that nobody knows.
    """
    given = {}
    for name, parameter in parameters(fn).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        key = key_of(name, names, guess=parameter.default is parameter.empty)
        key = "x" if key == "image" and "image" not in values else key
        key = (
            "args" if name == "cfg" and "guidance_scale" not in values else key
        )  # a constructor's configuration
        if key in values:
            given[name] = values[key]
        elif parameter.default is parameter.empty:
            known = ", ".join(values)
            raise Unreadable(
                f"parameter {name!r} is not known here: rename it, or say names={{{name!r}: one of"
                f" {known}}}"
            )
    return given


def invoke(fn: Callable, given: Mapping[str, Any]) -> Any:
    """Call with arguments by name, positional-only ones by place."""
    only = [
        name for name, p in parameters(fn).items() if p.kind is p.POSITIONAL_ONLY and name in given
    ]
    return fn(*(given[name] for name in only), **{k: v for k, v in given.items() if k not in only})


def environment() -> dict[str, Any]:
    """What every submission may ask for: the pipeline and its parts, devices, schedules."""
    pipe = Pipeline()
    abar, q = pipe.scheduler.alphas_cumprod, UNet(q=True)
    usual = {
        "alphas": abar,
        "alphas_cumprod": abar,
        "betas": pipe.scheduler.betas,
        "q": q,
        "unet_lora": q,
    }
    for name, value in (
        usual | {"num_train_timesteps": T, "min_step": 20, "max_step": 980}
    ).items():
        setattr(pipe, name, value)
    parts = {
        name: getattr(pipe, name)
        for name in ("unet", "vae", "q", "scheduler", "alphas_cumprod", "betas")
    }
    return parts | {
        "pipe": pipe,
        "predict_noise": lambda x_t, t, *rest, **kw: _plain(
            pipe.unet(x_t, t, *rest, **_renamed(kw))
        ),
        "num_train_timesteps": T,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "args": SimpleNamespace(
            device="cpu",
            precision=torch.float32,
            dtype=torch.float32,
            fp16=False,
            guidance_scale=7.5,
        ),
        "generator": None,
        "prompt": "a red mushroom",
    }


def _plain(output: Any) -> Tensor:
    """The prediction as a tensor that also answers to `.sample`: nobody can know which a `model`
    is expected to give."""
    sample = output[0]
    sample.sample = sample.view_as(sample)
    return sample


def _renamed(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a plain `predict_noise(x_t, t, ...)` in the UNet's words: any embedding is
    encoder_hidden_states."""
    return {
        ("encoder_hidden_states" if KNOWN.get(k) in ("cond", "uncond", "n") else k): v
        for k, v in keywords.items()
    }


def prepare(
    target: Any, methods: Sequence[str], names: Mapping[str, str] | None = None
) -> Callable:
    """The callable in a submission: a function as it is, an object's or class's method by one of
    the given names.

    A class is made first, within `offline_diffusers`; its constructor's parameters are recognised
    like all others.

    Raises:
        Unreadable: nothing that can be called.
    """
    if isinstance(target, type):
        with offline_diffusers():
            given = (
                arguments(target, environment(), names)
                if target.__init__ is not object.__init__
                else {}
            )  # type: ignore
            target = invoke(target, given)
    if inspect.isroutine(target) or hasattr(target, "func"):
        return target
    attached = [
        name for name, value in getattr(target, "__dict__", {}).items() if inspect.isroutine(value)
    ]
    classes = [_methods(cls) for cls in type(target).__mro__ if not _of_a_library(cls)]
    written = {name for defined in (attached, *classes) for name in defined}
    for name in methods:
        if name in written:
            return getattr(target, name)
    for defined in classes:
        public = [name for name in defined if not name.startswith("_")]
        matching = [name for name in public if any(word in name for word in methods)] or public
        if len(matching) == 1:
            return getattr(target, matching[0])
    if "__call__" in written:
        return target
    raise Unreadable(
        f"{type(target).__name__} has none of the methods {', '.join(methods)}; hand in one:"
        " object.method"
    )


def _methods(cls: type) -> list[str]:
    """What can be called of what a class itself defines; asking the object would compute its
    properties."""
    return [
        name for name, value in vars(cls).items() if callable(value) or inspect.isroutine(value)
    ]


def _of_a_library(cls: type) -> bool:
    """Is this base class nobody's submission? torch.nn.Module has a `forward`, which only says
    that there is none."""
    return cls.__module__.split(".")[0] in LIBRARIES or cls.__module__ == Pipeline.__module__


def answered(result: Any) -> None:
    """Raise Unreadable for what a stub returns: None (`pass`, too) or `...`."""
    if result is None or result is ...:
        text = f"it returned {result}: return the gradient, or a loss to be back-propagated"
        raise Unreadable(text, "not answered")


def gradient_of(result: Any, x: Tensor) -> tuple[Tensor, str, Tensor | None]:
    """Read an answer as a gradient with respect to x, back-propagating a loss where one came.

    Returns:
        gradient of x's shape; how it came ("gradient" or "loss"); the loss, if there was one.

    Raises:
        Unreadable: None, wrong shape, integers, no path back to x; the message is the verdict.
    """
    if isinstance(result, Mapping):
        keys = [
            key
            for key in ("loss", "loss_sds", "sds_loss", "grad", "gradient", *result)
            if key in result
        ]
        result = result[keys[0]] if keys else None
    elif isinstance(result, tuple | list):
        shaped = [
            part
            for part in result
            if isinstance(part, Tensor) and (part.numel() == 1 or part.shape == x.shape)
        ]
        result = shaped[0] if shaped else result[0] if len(result) else None
    if isinstance(result, np.ndarray):
        result = torch.as_tensor(result)
    if x.grad is not None and not (
        isinstance(result, Tensor) and (result.requires_grad or result.shape == x.shape)
    ):
        return x.grad, "loss", None  # it back-propagated itself
    answered(result)
    if isinstance(result, int | float):
        text = (
            f"it returned the Python number {result!r}, which has no gradient: leave out .item() or"
            " float()"
        )
        raise Unreadable(text, "wrong")
    if not isinstance(result, Tensor):
        raise Unreadable(
            f"it returned {type(result).__name__}, expected a tensor: the gradient or a loss",
            "wrong",
        )
    if not result.is_floating_point():
        raise Unreadable(
            f"it returned integers ({result.dtype}), expected floating-point numbers", "wrong"
        )
    if result.shape == x.shape and result.numel() > 1:
        return result.detach(), "gradient", None
    if result.numel() != 1 and result.shape != x.shape[:1]:
        text = (
            f"it returned shape {tuple(result.shape)}, expected {tuple(x.shape)} (a gradient) or ()"
            " (a loss)"
        )
        raise Unreadable(text, "wrong")
    if not result.requires_grad:
        raise Unreadable(
            "no gradient path: the loss does not depend on x as far as autograd knows. Was it"
            " computed under no_grad, or from detached latents?",
            "wrong",
        )
    result.sum().backward()
    if x.grad is None:
        raise Unreadable(
            "the gradient is None: the loss has a graph, but x is not in it. Were the latents"
            " detached (or encoded under no_grad) before they entered the loss?",
            "wrong",
        )
    return x.grad, "loss", result.detach()
