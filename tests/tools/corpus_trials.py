"""One trial of a submission: load it, give it what its row in verdicts.json names, call it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from corpus_world import (
    ABAR,
    BETAS,
    LOG,
    SCALING,
    SHAPE,
    WIDTH,
    Pipeline,
    Settings,
    UNet,
    fixed,
    reward,
)

CORPUS = Path(__file__).parent.parent / "corpus"
LAM = 0.7


class Mismatch(Exception):
    """The answer is not what the kind's formula says; the text says where."""


def load(name: str):
    """The submission as a module two packages deep, so that relative imports find something."""
    called = "handed_in.inner.submission"
    loader = importlib.machinery.SourceFileLoader(called, str(CORPUS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(called, loader))
    sys.modules[called] = module
    importlib.import_module("handed_in.inner")
    loader.exec_module(module)
    return module


def givens(seed: int, batch: int, g: float) -> dict:
    """Everything that a call in the table may name."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (what a submission may draw from)
    pipe = Pipeline()
    pipe.unet.requires_grad_(False)
    cond, uncond, n = (fixed(1, 77, WIDTH, seed=30 + i).float() * 3 for i in range(3))
    cond, uncond = cond.repeat(batch, 1, 1), uncond.repeat(batch, 1, 1)
    values = {
        "x": 3 * fixed(batch, *SHAPE, seed=40 + seed).float(),
        "image": torch.rand(batch, 3, 64, 64).repeat_interleave(8, 2).repeat_interleave(8, 3),
        "hwc": torch.rand(64, 64, 3),
        "rays": torch.rand(4096, 3),
        "n": n,
    }
    for value in values.values():
        value.requires_grad_()
    both = torch.cat((uncond, cond))
    prompts = SimpleNamespace(get_text_embeddings=lambda *_: torch.cat((cond, uncond)))
    noises = {f"eps{end}": torch.randn(batch, *SHAPE) for end in ("", "_1", "_2")}
    parts = {"unet": pipe.unet, "vae": pipe.vae, "scheduler": pipe.scheduler, "pipe": pipe}
    values |= noises | parts | {"cond": cond, "uncond": uncond, "both": both, "g": g, "lam": LAM}
    values |= {"t": torch.randint(50, 950, (batch,)), "abar": ABAR.float(), "reward": reward}
    values |= {"q_unet": UNet(is_q=True), "prompt_utils": prompts, "torch": torch}
    return values | {"opt": lambda **kw: SimpleNamespace(**kw), "BETAS": BETAS.float()}


def run(name: str, truth: dict, seed: int, batch: int, g: float) -> tuple[dict, object]:
    """One trial: what was given, and what the call gave."""
    module = load(name)
    values = givens(seed, batch, g) | {"m": module, "OmegaConf": Settings}
    for log in vars(LOG).values():
        log.clear()
    LOG.draws += [values[key].double() for key in ("eps", "eps_1", "eps_2")]
    exec(truth.get("pre", ""), values)
    LOG.calls.clear()
    return values, eval(truth["call"], values)


def gradient(values: dict, answer) -> tuple[torch.Tensor, torch.Tensor]:
    """x and G: the latents that were distilled, and their gradient."""
    x = LOG.encoded[-1] * SCALING if LOG.encoded else values["x"]
    if isinstance(answer, torch.Tensor) and answer.shape == x.shape:
        return x.detach().double(), answer.detach().double()
    if isinstance(answer, torch.Tensor) and answer.requires_grad:
        answer.sum().backward()
    grad = LOG.encoded[-1].grad if LOG.encoded else x.grad
    if grad is None:
        raise Mismatch("no gradient at the latents")
    return x.detach().double(), grad.double() / (SCALING if LOG.encoded else 1)
