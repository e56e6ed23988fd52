"""A model of the renders that is a network: the prior's own, with low-rank additions.

    eps_psi(x_t, t, e) = U(x_t, t, e), where each linear map W of U's attention is replaced by

        W + B A,    A (r, in) normal / sqrt(in),    B (out, r) zero at first        psi = (A, B)

so q begins as the prior itself, and eps_cfg - eps_q as nothing but guidance. One step of gradient
descent on what a model of the renders is trained on,

    L(psi) = mean (eps_psi(x_t, t, e) - eps)^2,    d_psi = -eta grad L,

moves it towards the renders. The camera enters as it does for the prior: by the view's words. The
prior's own weights are never touched: the additions are made by hooks that are there while q is
asked, and only then.

What each part does. A small rank r and a small eta make q smooth and late (`running_gaussian` says
what a lag does). If r and eta are large enough to fit the renders, eps_psi = eps and VSD is SDS.
The network is not linear in psi, so L-VSD and L2-VSD (`VSD.lookahead`) differ by O(eta^2).

Cost: beside the prior's answers, for each step one forward and one backward pass (in which the
network runs again, picture by picture, to keep no graph), one forward pass for eps_psi, and one
more for a lookahead.

References: Hu et al. 2021 (LoRA, arXiv 2106.09685); Wang et al. 2023 (VSD, arXiv 2305.16213), who
train such additions by AdamW at 1e-4; Lei et al. 2025 (L2-VSD, arXiv 2507.09748): one step of eta
between 1e-3 and 1. Tests assert d_psi by finite differences, and that the prior is the same bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from psd_mini._internal.arguments import at_least, needs, validated
from psd_mini.methods.score_model import ScoreModel
from psd_mini.sds import Context, Noises, Renders, Timesteps

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")  # attention's linear maps, as diffusers names them


def attention_maps(unet: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps of a network's attention layers, by name."""
    named = unet.named_modules()
    return {n: m for n, m in named if isinstance(m, nn.Linear) and n.endswith(ADAPTED)}


@contextmanager
def added(unet: nn.Module, parameters: dict[str, Tensor]) -> Iterator[None]:
    """Within this block each of `attention_maps` answers W x + B A x."""

    def with_addition(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            a, b = (parameters[f"{name}.{part}"].to(output) for part in "AB")
            return output + inputs[0] @ a.T @ b.T

        return hook

    maps = attention_maps(unet).items()
    handles = [linear.register_forward_hook(with_addition(name)) for name, linear in maps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@validated
@dataclass
class LowRank(ScoreModel):
    """The prior's network with additions of rank r; for learned priors.

    Args:
        rank: r, at least 1.
        rate: eta, at least 0. On the small learned prior L falls from 0.44 to 0.25 in 20 steps at
            1, to 0.11 at 10, and not at all at 100.
    """

    rank: int = 4
    rate: float = 1.0
    parameters: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        at_least("rate", self.rate, 0, whole=False)

    def start(self, prior: Any) -> None:
        """A and B at their first values, if there are none yet."""
        needs("prior", prior, "unet")
        generator = torch.Generator().manual_seed(0)
        for name, linear in attention_maps(prior.unet).items():
            if f"{name}.A" not in self.parameters:
                n_out, n_in = linear.weight.shape
                drawn = torch.randn(self.rank, n_in, generator=generator) / n_in**0.5
                self.parameters[f"{name}.A"] = drawn.to(linear.weight.device)
                self.parameters[f"{name}.B"] = linear.weight.new_zeros(n_out, self.rank).float()

    def ask(self, x: Renders, t: Timesteps, eps: Noises, context: Context, psi: Any) -> Noises:
        """eps_psi (N, B, C, h, w); differentiable in psi where that requires gradients."""
        n, cameras = len(eps), context.cameras
        if cameras is not None:
            cameras = cameras[torch.arange(len(cameras)).repeat(n)]
        x_t = context.prior.schedule.add_noise(x, eps, t).flatten(0, 1)
        # a prompt that requires gradients makes the prior keep a graph
        prompt = context.embeddings[:1].detach().requires_grad_(torch.is_grad_enabled())
        with context.cost.timed("prior"), added(context.prior.unet, psi):
            eps_psi = context.prior.predict_noise(x_t, t.repeat(n), prompt, cameras)
        context.cost.prior_evaluations += len(x_t)
        return eps_psi.view_as(eps)

    def step(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> dict[str, Tensor]:
        self.start(context.prior)
        psi = {name: value.clone().requires_grad_() for name, value in self.parameters.items()}
        with torch.enable_grad():
            # L = mean (eps_psi - eps)^2
            loss = (self.ask(x, t, eps, context, psi) - eps).square().mean()
            with added(context.prior.unet, psi):  # the network runs again in the backward pass
                gradients = torch.autograd.grad(loss, list(psi.values()))
        # d_psi = -eta grad L
        return {name: -self.rate * g for name, g in zip(psi, gradients, strict=True)}

    @torch.no_grad()
    def noise(
        self, x: Renders, t: Timesteps, eps: Noises, context: Context, moved: Any = None
    ) -> Noises:
        self.start(context.prior)
        psi = {name: p + (moved or {}).get(name, 0) for name, p in self.parameters.items()}
        return self.ask(x, t, eps, context, psi)
