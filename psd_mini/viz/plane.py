"""A page to play with: one particle in the plane, and where each method would move it.

It shows a mixture of Gaussians, a reward that grows along a direction, r(x) = v . x, and a particle
that can be dragged. Arrows are minus the brackets of

    SDS              h = eps_cfg - eps
    CSD              eps_cond - eps_null
    pixel gradient   h - (sigma_t / beta) v
    PSD              (h_1 + h_2) / 2 + lambda sigma_t omega(R_1 - R_2) (h_1 - h_2)
    exact optimum    eps*(x_t) - eps, of the tilted prior p(x) exp(r(x) / beta) / Z

averaged over 128 pairs of opposite noises; buttons take steps along one of them with fresh noise.
The page is plane.html beside this file. It computes all that itself and asks no server for
anything; tests run its formulas in a JavaScript engine and compare them with `psd_gradient`,
`GaussianMixture` and their neighbours.
"""

import html
import json
from pathlib import Path
from string import Template

import torch
from jaxtyping import Float, Real
from torch import Tensor

from psd_mini._internal.arguments import ArgumentError
from psd_mini.mixture import GaussianMixture
from psd_mini.viz.viewer import Html

PAGE = Path(__file__).with_name("plane.html")


def plane(
    prior: GaussianMixture,
    reward: Float[Tensor, "2"],
    beta: float,
    prompt: Real[Tensor, " m"] | None = None,
    tau: float = 1.0,
    extent: float = 3.0,
) -> Html:
    """The page for one mixture, reward and prompt.

    Args:
        prior: in the plane, with diagonal or isotropic covariances.
        reward: v, reward units per unit of x.
        beta: temperature of the tilted prior, reward units, positive.
        prompt: log-weights that the prompt adds to the M components; None adds nothing.
        tau: temperature of omega, reward units.
        extent: the page shows [-extent, extent] in both directions.

    Raises:
        ValueError: a mixture of other points, or with full covariances.
    """
    if prior.eigenvectors is not None or prior.means.shape[1] != 2:
        expected = "a mixture in the plane with diagonal covariances"
        raise ArgumentError(f"prior: expected {expected}, got means {tuple(prior.means.shape)}")
    prompt = torch.zeros(len(prior.means)) if prompt is None else prompt
    alpha_bar = prior.schedule.alphas_cumprod.double()
    world = _mixture(prior) | {
        "tilted": _mixture(prior.tilt_linear(reward, beta)[0]),
        "prompt": prompt.clamp(min=-1e9).tolist(),
        "reward": reward.tolist(),
        "alpha": [round(value, 9) for value in alpha_bar.sqrt().tolist()],
        "sigma": [round(value, 9) for value in (1 - alpha_bar).sqrt().tolist()],
        "start": [0.3 * extent, -0.5 * extent],
        **{"beta": beta, "tau": tau, "extent": extent},
    }
    page = Template(PAGE.read_text()).substitute(WORLD=json.dumps(world))
    frame = f'<iframe width=720 height=450 style="border:0" srcdoc="{html.escape(page)}"></iframe>'
    return Html(f'<div style="background:white">{frame}</div>')


def _mixture(mixture: GaussianMixture) -> dict[str, list]:
    """The parameters as lists."""
    return {
        "logWeights": mixture.log_weights.clamp(min=-1e9).tolist(),
        "means": mixture.means.tolist(),
        "variances": mixture.eigenvalues.expand_as(mixture.means).tolist(),
    }
