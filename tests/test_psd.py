"""PSD's gradient and its relatives: identities in float64, on one pair.

What a pair estimates: test_pair_estimator.py.
"""

import pytest
import torch
from gaussian_world import EYE, MU, SCHEDULE, UNIFORM, WORLD, S, V, batch, context, normal, weight

from psd_mini import SDS
from psd_mini.methods import DreamDPO, RewardSDS, reward_weights
from psd_mini.psd import PSD, omega, psd_gradient, rank
from psd_mini.rewards import LinearReward, black_box
from psd_mini.sds import CSD

pytestmark = pytest.mark.algebra


# identity 31
def test_pair_difference_points_from_loser_to_winner():
    """The difference points from loser to winner; h_w and h_l = mean +- delta / 2.

    h_w - h_l = (alpha / sigma)(x0_hat_l - x0_hat_w)
    """
    x, t, eps = batch(6)
    ranked = rank(SDS(2.0), x, t, eps, context(WORLD, n=6))
    x_t = SCHEDULE.add_noise(x, eps, t)
    eps_cfg = ranked.residuals + eps
    a = SCHEDULE.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    s = (1 - SCHEDULE.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    x0_hat = (x_t - s * eps_cfg) / a
    h = ranked.residuals
    torch.testing.assert_close(h[0] - h[1], a / s * (x0_hat[1] - x0_hat[0]), rtol=1e-9, atol=1e-9)
    rewards = (x0_hat.flatten(2) * V).sum(-1)
    torch.testing.assert_close(ranked.rewards, rewards, rtol=1e-9, atol=1e-9)
    mean, delta = h.mean(0), h[0] - h[1]
    torch.testing.assert_close(
        torch.stack((mean + delta / 2, mean - delta / 2)), h, rtol=1e-12, atol=1e-12
    )


# identity 32
@pytest.mark.parametrize("base", [SDS(2.0), SDS(1.0, "uniform"), CSD(3.0)])
@pytest.mark.parametrize("case", ["weight zero", "constant reward"])
def test_without_preference_it_is_the_base_bit_for_bit(base, case):
    """lambda = 0 or a constant reward: G_PSD = G_base on the same noises, in every bit."""
    x, t, eps = batch(5)
    reward = LinearReward(V if case == "weight zero" else 0 * V)
    psd = PSD(
        base,
        preference_weight=0.0 if case == "weight zero" else 3.0,
        antithetic=False,
        over_views=False,
    )
    got, _ = psd(x, t, eps, context(WORLD, reward, 5))
    two = type(base)(base.guidance_scale, base.weighting, 2)
    expected, _ = two(x, t, eps, context(WORLD, reward, 5))
    assert torch.equal(got, expected)  # exact: the same code on the same numbers


@pytest.mark.parametrize("kind", ["hard", "gap", "bt", "gated"])
def test_order_of_the_noises_does_not_matter(kind):
    """G(eps_1, eps_2) = G(eps_2, eps_1), as omega is odd; minus the reward flips its sign."""
    x, t, eps = batch(5)
    method = PSD(SDS(2.0), 2.0, kind, tau=0.5, antithetic=False, over_views=False)
    got, _ = method(x, t, eps, context(WORLD, n=5))
    swapped, _ = method(x, t, eps.flip(0), context(WORLD, n=5))
    torch.testing.assert_close(got, swapped, rtol=1e-12, atol=1e-12)
    turned, _ = method(x, t, eps, context(WORLD, LinearReward(-V), 5))
    base, _ = SDS(2.0, n_noises=2)(x, t, eps, context(WORLD, n=5))
    torch.testing.assert_close(got - base, base - turned, rtol=1e-10, atol=1e-10)
    assert (got - base).abs().max() > 1e-3


# identity 33
def test_winner_base_is_mean_base_with_half_more():
    """hard omega: h_w + lambda delta = mean + (lambda + 1/2) delta."""
    x, t, eps = batch(6)
    sigma = weight(t).sqrt()
    winner, _ = PSD(SDS(2.0), 0.0, pair_base="winner", antithetic=False, over_views=False)(
        x, t, eps, context(WORLD, n=6)
    )
    # lambda(t) = preference_weight sigma_t, so one half at every t is read off picture by picture
    for b in range(6):
        half = PSD(SDS(2.0), 0.5 / sigma[b].item(), antithetic=False, over_views=False)
        mean, _ = half(x[b : b + 1], t[b : b + 1], eps[:, b : b + 1], context(WORLD))
        # WORLD's context is the same for every picture
        torch.testing.assert_close(winner[b : b + 1], mean, rtol=1e-9, atol=1e-9)


def test_winner_base_on_a_tie_is_the_base_of_the_first_noise():
    """With a constant reward nobody wins: neither the second noise nor a mixture of both."""
    x, t, eps = batch(6)
    tie = context(WORLD, LinearReward(0 * V), 6)
    got, _ = PSD(SDS(2.0), 1.5, pair_base="winner", antithetic=False)(x, t[:1].expand(6), eps, tie)
    first, _ = SDS(2.0)(x, t[:1].expand(6), eps[:1], context(WORLD, n=6))
    torch.testing.assert_close(got, first, rtol=1e-10, atol=1e-10)


def test_fresh_base_uses_the_third_noise():
    """base = h(eps_3), pair from eps_1 and eps_2: by hand."""
    x, t, eps = batch(4, noises=3)
    got, _ = PSD(SDS(2.0), 1.5, pair_base="fresh", antithetic=False, over_views=False)(
        x, t, eps, context(WORLD, n=4)
    )
    third, _ = SDS(2.0)(x, t, eps[2:], context(WORLD, n=4))
    mean, _ = SDS(2.0, n_noises=2)(x, t, eps[:2], context(WORLD, n=4))
    pair, _ = PSD(SDS(2.0), 1.5, antithetic=False, over_views=False)(
        x, t, eps[:2], context(WORLD, n=4)
    )
    torch.testing.assert_close(got, third + pair - mean, rtol=1e-10, atol=1e-10)


def test_antithetic_is_a_pair_of_opposite_noises():
    """Antithetic with eps = independent with (eps, -eps); a Gaussian's base has no noise then."""
    x, t, eps = batch(4, noises=1)
    anti, _ = PSD(SDS(2.0), 1.5, over_views=False)(x, t, eps, context(WORLD, n=4))
    pair, _ = PSD(SDS(2.0), 1.5, antithetic=False, over_views=False)(
        x, t, torch.cat((eps, -eps)), context(WORLD, n=4)
    )
    assert torch.equal(anti, pair)  # exact: the same code on the same numbers
    three = torch.cat(
        (eps, -eps, normal(1, *x.shape, seed=9))
    )  # with a fresh base the second noise of the loop is the third
    anti, _ = PSD(SDS(2.0), 1.5, pair_base="fresh", over_views=False)(
        x, t, three[::2], context(WORLD, n=4)
    )
    pair, _ = PSD(SDS(2.0), 1.5, pair_base="fresh", antithetic=False, over_views=False)(
        x, t, three, context(WORLD, n=4)
    )
    assert torch.equal(anti, pair)  # exact: the same code on the same numbers
    base, _ = PSD(**UNIFORM, preference_weight=0.0)(x, t, eps, context(n=4))
    a, s = (1 - weight(t)).sqrt(), weight(t).sqrt()
    for b in range(4):
        C_b = a[b].squeeze() ** 2 * S + s[b].squeeze() ** 2 * EYE
        expected = a[b].squeeze() * s[b].squeeze() * torch.linalg.solve(C_b, x[b].flatten() - MU)
        torch.testing.assert_close(base[b].flatten(), expected, rtol=1e-9, atol=1e-9)


# identity 40
def test_invariances_of_omega():
    """hard: any increasing map of the reward; gap, bt: shifts; bt: (r, tau) -> (k r, k tau)."""
    r_1, r_2 = normal(50, seed=1), normal(50, seed=2)
    assert (r_1 - r_2).abs().min() > 1e-6
    for f in (torch.exp, lambda r: r**3 + r, lambda r: 5 * r - 2):
        # exact: signs, of gaps that are far above rounding
        assert torch.equal(omega(r_1 - r_2, "hard"), omega(f(r_1) - f(r_2), "hard"))
    assert (omega(r_1 - r_2, "gap") - omega(r_1.exp() - r_2.exp(), "gap")).abs().max() > 0.1
    torch.testing.assert_close(
        omega(3.0 * (r_1 - r_2), "bt", 3.0 * 0.2),
        omega(r_1 - r_2, "bt", 0.2),
        rtol=1e-12,
        atol=1e-12,
    )


def test_invariances_of_the_gradient():
    """G itself: hard under exp(r) as reward; gap and bt under r + 5 and under (3 r, 3 tau).

    With its own running temperature it stays the same under 3 r + 5.
    """
    x, t, eps = batch(6)

    def gradient(kind, tau, reward):
        return PSD(SDS(2.0), 2.0, kind, tau, antithetic=False, over_views=False)(
            x, t, eps, context(WORLD, reward, 6)
        )[0]

    def same(a, b):
        return torch.allclose(a, b, rtol=1e-9, atol=1e-9)

    plain, shifted, scaled, both = (
        LinearReward(V),
        LinearReward(V, 5.0),
        LinearReward(3 * V),
        LinearReward(3 * V, 5.0),
    )
    monotone = black_box(lambda images, prompts: plain(images).exp())
    # exact: only the winner counts, and the rest is the same code
    assert torch.equal(gradient("hard", None, plain), gradient("hard", None, monotone))
    for kind in ("gap", "bt"):
        reference = gradient(kind, 0.4, plain)
        assert same(gradient(kind, 0.4, shifted), reference) and same(
            gradient(kind, 1.2, scaled), reference
        )
        assert not same(gradient(kind, 0.4, scaled), reference) and not same(
            gradient(kind, 0.4, monotone), reference
        )
        assert same(gradient(kind, None, both), gradient(kind, None, plain))


# identity 50
def test_limits_of_omega():
    """bt -> hard as tau -> 0; tau bt -> gap / 2 as tau -> infinity; all are odd.

    gated is hard beyond tau and 0 below.
    """
    gap = normal(50, seed=3)
    torch.testing.assert_close(omega(gap, "bt", 1e-8), torch.sign(gap))
    torch.testing.assert_close(1e6 * omega(gap, "bt", 1e6), gap / 2, rtol=1e-9, atol=1e-12)
    gated = omega(gap, "gated", 0.5)
    # exact: signs and zeros
    assert torch.equal(gated, torch.where(gap.abs() >= 0.5, torch.sign(gap), torch.zeros_like(gap)))
    assert omega(torch.tensor([0.5, -0.5]), "gated", 0.5).tolist() == [1, -1]
    torch.testing.assert_close(omega(gap, "gap", 0.5), 2 * gap)
    torch.testing.assert_close(omega(gap, "bt"), torch.tanh(gap / 2))
    torch.testing.assert_close(
        omega(gap, "bt", 1e-60), torch.sign(gap)
    )  # less than float32 can hold
    for kind in ("hard", "gap", "bt", "gated"):
        torch.testing.assert_close(omega(-gap, kind, 0.3), -omega(gap, kind, 0.3))
        assert omega(torch.zeros(1), kind, 0.3).item() == 0  # exact: of 0
    torch.testing.assert_close(
        omega(gap, "bt", 0.7), 2 / (1 + torch.exp(-gap / 0.7)) - 1, rtol=1e-12, atol=1e-12
    )


# identity 41
def test_rewardsds_rows():
    """N = 2: weights in terms of mean and delta = h_1 - h_2.

    best = mean + delta / 2,  softmax = mean + tanh(gap / 2) delta / 2
    min-max = 0.8 (mean + 0.625 delta)
    """
    x, t, eps = batch(6)
    ranked = rank(SDS(2.0), x, t, eps, context(WORLD, n=6))
    h, gap = ranked.residuals, ranked.rewards[0] - ranked.rewards[1]
    mean = h.mean(0)
    delta = torch.sign(gap).view(-1, 1, 1, 1) * (h[0] - h[1])
    soft = torch.tanh(gap / 2).view(-1, 1, 1, 1) * (h[0] - h[1])
    rows = {
        "best": mean + delta / 2,
        "softmax": mean + soft / 2,
        "min-max": 0.8 * (mean + 0.625 * delta),
    }
    for strategy, expected in rows.items():
        got, _ = RewardSDS(SDS(2.0), strategy, 2)(x, t, eps, context(WORLD, n=6))
        torch.testing.assert_close(got, weight(t) * expected, rtol=1e-10, atol=1e-10)


def test_reward_weights_of_four():
    """min-max of four: 0.45 on the two best, -0.05 on the two worst; equal rewards: the mean."""
    rewards = torch.tensor([[0.3], [0.9], [-1.0], [0.5]])
    assert torch.allclose(
        reward_weights(rewards, "min-max").flatten(), torch.tensor([-0.05, 0.45, -0.05, 0.45])
    )
    assert reward_weights(rewards, "best").flatten().tolist() == [0, 1, 0, 0]
    assert torch.allclose(reward_weights(torch.ones(5, 2), "softmax"), torch.full((5, 2), 0.2))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8, 9])
def test_min_max_counts_two_best_and_two_worst_however_many_there_are(n):
    """The published runs use 6 and 8 noises: 0.9 / k on each of the k best, -0.1 / k on each of the
    k worst, k = 2 from four noises on. Wrong: k = n // 2, which is the same up to five."""
    rewards = normal(n, 7)
    k = 1 if n < 4 else 2
    expected = torch.zeros_like(rewards)
    for picture, column in enumerate(rewards.T.tolist()):
        in_order = sorted(range(n), key=column.__getitem__)
        for place in range(k):
            expected[in_order[-1 - place], picture] += 0.9 / k
            expected[in_order[place], picture] -= 0.1 / k
    torch.testing.assert_close(reward_weights(rewards, "min-max"), expected, rtol=0, atol=1e-12)


def test_rewardsds_with_equal_rewards_is_sds():
    """Constant reward, softmax: G_RewardSDS = G_SDS; min-max keeps 0.8 of the expected pull."""
    x, t, eps = batch(6, noises=5)
    got, _ = RewardSDS(SDS(2.0), "softmax", 5)(x, t, eps, context(WORLD, LinearReward(0 * V), 6))
    sds, _ = SDS(2.0, n_noises=5)(x, t, eps, context(WORLD, n=6))
    torch.testing.assert_close(got, sds, rtol=1e-12, atol=1e-12)
    # every order of the five noises: the expectation over exchangeable noises
    orders = [eps.roll(k, 0) for k in range(5)]
    mean = torch.stack(
        [
            RewardSDS(SDS(2.0), "min-max", 5)(x, t, e, context(WORLD, LinearReward(0 * V), 6))[0]
            for e in orders
        ]
    )
    torch.testing.assert_close(mean.mean(0), 0.8 * sds, rtol=1e-10, atol=1e-10)


# identity 42
def test_dreamdpo_published_code():
    """The published code; with g = 1 it is the formula.

    w [ delta_cond + (g - 1)(eps_cond - eps_neg)(x_t^w) ]
    """
    x, t, eps = batch(6)
    g = 7.5
    got, _ = DreamDPO(SDS(g), tau=0.0, published_code=True)(x, t, eps, context(WORLD, n=6))
    ctx = context(WORLD, n=6)
    h_cond, extra, rewards = [], [], []
    for e in eps:
        x_t = SCHEDULE.add_noise(x, e, t)
        cond, neg = WORLD.predict_noise(x_t, t, ctx.embeddings)
        h_cond.append(cond - e)
        extra.append((g - 1) * (cond - neg))
        x0_hat = SCHEDULE.x0_from_eps(x_t, neg + g * (cond - neg), t)
        rewards.append((x0_hat.flatten(1) * V).sum(-1))
    first = (rewards[0] >= rewards[1]).view(-1, 1, 1, 1)
    sign = torch.where(first, 1.0, -1.0).double()
    expected = weight(t) * (sign * (h_cond[0] - h_cond[1]) + torch.where(first, extra[0], extra[1]))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    plain, _ = DreamDPO(SDS(1.0), tau=0.0)(x, t, eps, context(WORLD, n=6))
    code, _ = DreamDPO(SDS(1.0), tau=0.0, published_code=True)(x, t, eps, context(WORLD, n=6))
    torch.testing.assert_close(plain, code, rtol=1e-12, atol=1e-12)


def test_dreamdpo_has_no_pull_to_the_prior():
    """A clear gap: G = w delta, PSD's row without base; below the gate the winner's SDS alone."""
    x, t, eps = batch(6)
    got, _ = DreamDPO(SDS(2.0), tau=0.0)(x, t, eps, context(WORLD, n=6))
    both, _ = PSD(SDS(2.0), 1.0, antithetic=False, over_views=False)(x, t, eps, context(WORLD, n=6))
    base, _ = SDS(2.0, n_noises=2)(x, t, eps, context(WORLD, n=6))
    torch.testing.assert_close(
        got, (both - base) / weight(t).sqrt(), rtol=1e-9, atol=1e-9
    )  # lambda(t) = sigma_t there
    gated, _ = DreamDPO(SDS(2.0), tau=1e9)(x, t, eps, context(WORLD, n=6))
    winner, _ = PSD(SDS(2.0), 0.0, pair_base="winner", antithetic=False, over_views=False)(
        x, t, eps, context(WORLD, n=6)
    )
    torch.testing.assert_close(gated, winner, rtol=1e-12, atol=1e-12)


def test_dreamdpo_with_a_constant_reward_is_a_random_walk():
    """G(eps_1, eps_2) = -G(eps_2, eps_1) where nobody wins: E[G] = 0, while SDS has a pull."""
    x, t, eps = batch(6)
    got, swapped = (
        DreamDPO(SDS(2.0), tau=0.0)(x, t, e, context(WORLD, LinearReward(0 * V), 6))[0]
        for e in (eps, eps.flip(0))
    )
    torch.testing.assert_close(got + swapped, torch.zeros_like(got), rtol=0, atol=1e-12)
    base, _ = SDS(2.0, n_noises=2)(x, t, eps, context(WORLD, n=6))
    psd, _ = PSD(SDS(2.0), 1.0, antithetic=False, over_views=False)(
        x, t, eps, context(WORLD, LinearReward(0 * V), 6)
    )
    assert torch.equal(psd, base)  # exact: base + 0
    assert base.abs().amax() > 0.1 < got.abs().amax()


# identity 43
def test_black_box_reward_gives_the_same_gradient():
    """A reward that leaves torch gives PSD's gradient; any reward is asked without gradients.

    Equal to the rounding of its own sum, and bit for bit where only the order counts.
    """
    x, t, eps = batch(5, noises=1)
    through_python = black_box(
        lambda images, prompts: [
            float(sum(a * b for a, b in zip(i.flatten().tolist(), V.tolist(), strict=True)))
            for i in images
        ]
    )
    kept = LinearReward(V)
    for kind in ("hard", "bt"):
        settings = {"omega": kind, "tau": 0.5, "over_views": False}
        a, _ = PSD(SDS(2.0), 2.0, **settings)(x, t, eps, context(WORLD, kept, 5))
        b, _ = PSD(SDS(2.0), 2.0, **settings)(x, t, eps, context(WORLD, through_python, 5))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        assert kind == "bt" or torch.equal(
            a, b
        )  # exact: only the winner counts, and the rest is the same code
    asked = []

    def watching(images, prompts):
        asked.append((torch.is_grad_enabled(), images.requires_grad, prompts))
        return kept(images)

    watched = context(WORLD, watching, 5)
    watched.prompts = list("abcde")  # the pictures of one noise after the other
    c, _ = PSD(SDS(2.0), 2.0, **settings)(x.requires_grad_(), t, eps, watched)
    assert torch.equal(a, c)  # exact: the same code on the same numbers
    assert not c.requires_grad and asked == [(False, False, list("abcdeabcde"))]


def test_ranking_over_views_uses_the_mean_reward_of_the_object():
    """over_views: the noise with the higher mean reward wins in all pictures; needs one t."""
    x, _, eps = batch(4)
    t = torch.full((4,), 500)
    got, _ = PSD(SDS(2.0), 1.0, antithetic=False)(x, t, eps, context(WORLD, n=4))
    ranked = rank(SDS(2.0), x, t, eps, context(WORLD, n=4))
    sign = torch.sign(ranked.rewards[0].mean() - ranked.rewards[1].mean())
    h = ranked.residuals
    expected = weight(t) * (h.mean(0) + weight(t).sqrt() * sign * (h[0] - h[1]))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert (
        len(set(torch.sign(ranked.rewards[0] - ranked.rewards[1]).tolist())) == 2
    )  # per view it would differ
    with pytest.raises(ValueError, match="^t: ranking over views needs one timestep"):
        PSD(antithetic=False)(x, torch.tensor([1, 1, 1, 2]), eps, context(WORLD, n=4))


def test_running_median_is_state():
    """tau = None: a running estimate of the median gap, kept in state_dict and never in repr.

    repr is the checkpoint's key.
    """
    x, t, eps = batch(30)
    method = PSD(SDS(), omega="bt", antithetic=False, over_views=False)
    for _ in range(3):
        method(x, t, eps, context(WORLD, n=30))
    ranked = rank(SDS(), x, t, eps, context(WORLD, n=30))
    median = (ranked.rewards[0] - ranked.rewards[1]).abs().median().item()
    assert 0.9 * median < method.state_dict()["median_gap"] < 1.11 * median
    # it starts at the first median and moves by 5%: up only where the new median is larger
    moving = PSD()
    taus = [
        moving._temperature(torch.tensor(gap)) for gap in ([0.5, -0.25, 3.0], [0.5], [9.0], [-0.1])
    ]
    assert taus == pytest.approx([0.5, 0.5 / 1.05, 0.5, 0.5 / 1.05])
    assert PSD()._temperature(torch.zeros(3)) == pytest.approx(1e-12)
    other = PSD(SDS(), omega="bt", antithetic=False, over_views=False)
    other.load_state_dict(method.state_dict())
    assert other.median_gap == method.median_gap and "median_gap" not in repr(other)
    with pytest.raises(
        ValueError, match="^state: median_gap: expected a finite number of at least 0, got -1.0"
    ):
        other.load_state_dict({"median_gap": -1.0})
    with pytest.raises(TypeError, match="median_gap"):
        PSD(median_gap=1.0)


def test_the_gradient_without_a_weight():
    """w(t) = 1 unless it is given: base + lambda omega (h_1 - h_2)."""
    base, h_1, h_2 = normal(3, 2, 3, 1, 1)
    torch.testing.assert_close(
        psd_gradient(base, h_1, h_2, torch.ones(2), 0.5 * torch.ones(2, 1, 1, 1)),
        base + (h_1 - h_2) / 2,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"omega": "soft"}, "omega: kind: 'soft' is not known; choose from hard, gap, bt, gated"),
        (
            {"pair_base": "loser"},
            "pair_base: 'loser' is not known; choose from mean, winner, fresh",
        ),
        ({"tau": 0.0, "omega": "bt"}, "tau: expected a positive reward difference"),
        (
            {"preference_weight": float("nan")},
            "preference_weight: expected a finite number, got nan",
        ),
        (
            {"preference_weight": -1.0},
            "preference_weight: expected a finite number of at least 0, got -1.0",
        ),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PSD(**settings)


def test_missing_reward_is_named():
    x, t, eps = batch(2, noises=1)
    ctx = context(WORLD, n=2)
    ctx.reward = None
    with pytest.raises(ValueError, match="reward: this method needs one"):
        PSD(over_views=False)(x, t, eps, ctx)
