"""What a preference weight means: the temperature beta that PSD's pair comes to, level by level.

    python tests/tools/claims_weights.py     prints the table of tests/results/claims.md

At one render x and level t the exact preference term is known (the docstring of `psd_mini.psd`):

    d(beta) = E_eps[ eps*(x_t; beta) - eps_hat(x_t) ] = -(sigma_t / beta) E[ grad V_t(x_t) ]

and a pair's expected pull at preference_weight 1 is m = sigma_t E[ omega(R_1 - R_2) (h_1 - h_2) ].
The beta of the table is the one whose d(beta) is nearest to m; the cosine of the two and
|m - d| / |m| are what no weight repairs (bias). The noise of a pair is E|pull - m|^2 / |m|^2 for
each evaluation of the prior: two a pair. Half of the pairs find m, the other half its length, so
that chance adds nothing to |m|.
"""

from __future__ import annotations

import torch

from psd_mini import SDS, ToyWorldPrior, distill, make_field
from psd_mini.psd import omega, rank
from psd_mini.rendering import render
from psd_mini.rewards import make_reward
from psd_mini.sds import Context

BETAS = torch.logspace(-2, 1, 19)
LEVELS = (0.98, 0.95, 0.9, 0.7, 0.4, 0.1)
STEPS = (0, 120)  # of SDS, before x is looked at
PAIRS, AT_ONCE = 512, 64
PROMPT = "a mushroom"


def exact_terms(found, t, context, tilted) -> torch.Tensor:
    """d(beta) for every tilted prior, (len(tilted), B, ...): the mean over the noises of a call."""
    n, b = found.x_t.shape[:2]
    cameras = context.cameras[torch.arange(b).repeat(n)]
    x_t, t = found.x_t.flatten(0, 1), t.repeat(n)
    terms = []
    for prior in tilted:
        answer = prior.predict_noise(x_t, t, context.embeddings[:1], cameras)[0]
        terms.append((answer.view_as(found.x_t) - found.eps_cond).mean(0))
    return torch.stack(terms)


def measure(x, t, context, tilted) -> tuple[float, float, float, float]:
    """beta, cosine, |m - d| / |m| and noise per evaluation at one render and level."""
    generator = torch.Generator().manual_seed(0)
    sigma_t = context.prior.schedule.alpha_sigma(t, x)[1]
    pulls = []
    for _ in range(PAIRS // AT_ONCE):
        eps = torch.randn(AT_ONCE, *x.shape, generator=generator)
        ranked = rank(SDS(), x, t, torch.cat((eps, -eps)), context, over_views=True)
        gap = ranked.rewards[:AT_ONCE] - ranked.rewards[AT_ONCE:]
        h_1, h_2 = ranked.residuals.split(AT_ONCE)
        pulls.append(sigma_t * omega(gap, "hard")[..., None, None, None] * (h_1 - h_2))
        if len(pulls) == 1:  # d varies little from noise to noise
            exact = exact_terms(ranked.predictions, t, context, tilted)
    pull = torch.cat(pulls).flatten(1)
    m, other = pull[::2].mean(0), pull[1::2].mean(0)
    length = (m @ other).clamp(min=1e-12).sqrt()
    mean = pull.mean(0)
    d = exact.flatten(1)
    # |m - d|^2 with |m|^2 free of chance
    distance = length**2 - 2 * d @ mean + d.square().sum(1)
    best = int(distance.argmin())
    cosine = (d[best] @ mean / (d[best].norm() * length)).item()
    noise = (pull - mean).square().sum(1).mean() / length**2
    left = (distance[best].clamp(min=0).sqrt() / length).item()
    return BETAS[best].item(), cosine, left, 2 * noise.item()


def main() -> None:
    torch.set_num_threads(1)
    prior = ToyWorldPrior(32)
    print("| proxy | steps of SDS | t | beta at weight 1 | cosine | left over | noise |")
    print("|---|---|---|---|---|---|---|")
    for kind in ("rugged", "smooth"):
        reward = make_reward(f"proxy:{kind}")
        rewards = prior.component_rewards(reward, PROMPT)
        tilted = [ToyWorldPrior(32, views=prior.views, log_prior=rewards / b) for b in BETAS]
        for steps in STEPS:
            field = make_field("voxel", torch.Generator().manual_seed(0))
            if steps:
                distill(field, prior, SDS(), PROMPT, steps=steps, progress=False)
            generator = torch.Generator().manual_seed(1)
            cameras = prior.draw_cameras(4, generator)
            with torch.no_grad():
                x = prior.encode(render(field, cameras, 32, generator=generator).rgb)
            context = Context(prior, prior.embed([PROMPT, ""]), cameras, [PROMPT] * 4, reward)
            for level in LEVELS:
                t = torch.full((4,), round(level * 999))
                beta, cosine, left, noise = measure(x, t, context, tilted)
                row = f"{level:g} | {beta:.3g} | {cosine:.2f} | {left:.2f} | {noise:,.0f}"
                print(f"| {kind} | {steps} | {row} |", flush=True)


if __name__ == "__main__":
    main()
