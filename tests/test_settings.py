"""Bad settings end in one line that names them; ties and enormous weights do as documented."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from psd_mini import (
    PSD,
    SDS,
    Context,
    GaussianMixture,
    ToyWorldPrior,
    VoxelField,
    distill,
    scaled_linear_schedule,
)
from psd_mini._internal.runs import NonFiniteError
from psd_mini.methods import (
    KINDS,
    METHODS,
    VSD,
    WITH_NETWORK,
    Coefficients,
    DreamDPO,
    Exact,
    HiFA,
    LinearCombination,
    Mixture,
    NoiseRule,
    Regression,
    RewardGradient,
    RewardSDS,
    RunningGaussian,
    make_method,
    reward_weights,
)
from psd_mini.methods.rewardsds import STRATEGIES
from psd_mini.psd import rank
from psd_mini.rewards import LinearReward, black_box, make_reward
from psd_mini.sds import CSD
from psd_mini.world.pool import make_views, pool_cameras

NAN, INF = math.nan, math.inf
V = torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64)
MEANS = torch.tensor([[0.4, -1.0, 0.7], [-0.4, 1.0, -0.7]], dtype=torch.float64)
PRIOR = GaussianMixture(torch.ones(2), MEANS, 0.5, scaled_linear_schedule())
PRIOR.embed = lambda prompts: torch.zeros(len(prompts), 2).double()


def case(method, reward):
    """Five renders at one timestep, noises for the method, and a context with that reward."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 1, 1, generator=generator, dtype=torch.float64)
    eps = torch.randn(method.n_noises, *x.shape, generator=generator, dtype=torch.float64)
    return (
        x,
        torch.full((5,), 500),
        eps,
        Context(PRIOR, torch.eye(2).double(), None, [""] * 5, reward),
    )


WEIGHTED = {"PSD": PSD, **{kind: partial(RewardGradient, kind) for kind in KINDS}}


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("weight", [-1.0, NAN, INF, -INF, "1", None])
def test_preference_weight_is_finite_and_not_negative(name, weight):
    with pytest.raises(
        ValueError, match="^preference_weight: expected a finite number( of at least 0)?, got "
    ) as error:
        WEIGHTED[name](preference_weight=weight)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SDS(NAN), "guidance_scale: expected a finite number, got nan"),
        (lambda: CSD(INF), "guidance_scale: expected a finite number, got inf"),
        (lambda: SDS("7.5"), "guidance_scale: expected a finite number, got '7.5'"),
        (
            lambda: make_method("magic"),
            "method: 'magic' is not known; choose from sds, sds2, csd, nfsd, ",
        ),
        (
            lambda: make_method("sds", 1.0, 2.0),
            "preference_weight: sds has no such weight; methods that have: psd, ",
        ),
        (
            lambda: make_method("psd", NAN),
            "guidance_scale: expected a finite number or (a finite number, a finite number), got",
        ),
        (lambda: make_method("sds2", -INF), "guidance_scale: expected a finite number or"),
        (
            lambda: make_method("dps", 2.0, -1.0),
            "preference_weight: expected a finite number of at least 0, got -1.0",
        ),
        (
            lambda: make_method("rewardsds", 2.0, 1.0),
            "preference_weight: rewardsds has no such weight",
        ),
        (
            lambda: make_method("dreamdpo", 2.0, 1.0),
            "preference_weight: dreamdpo has no such weight",
        ),
        (
            lambda: SDS(weighting="dreamfusion"),
            "weighting: 'dreamfusion' is not known; choose from sds, uniform, fantasia3d",
        ),
        (lambda: SDS(n_noises=0), "n_noises: expected a whole number of at least 1, got 0"),
        (lambda: RewardSDS(n_noises=1), "n_noises: expected a whole number of at least 2, got 1"),
        (lambda: RewardSDS(n_noises=2.5), "n_noises: expected a whole number, got 2.5"),
        (
            lambda: RewardSDS(strategy="worst"),
            "strategy: 'worst' is not known; choose from best, softmax, min-max",
        ),
        (
            lambda: LinearCombination(row="ddpm"),
            "row: 'ddpm' is not known; choose from sds, sjc, csd, nfsd, bridge, vsd",
        ),
        (
            lambda: LinearCombination(row="vsd"),
            "row: expected a coefficient of a prompt, and none of a model of the renders",
        ),
        (
            lambda: LinearCombination(row=Coefficients(noise=1.0)),
            "row: expected a coefficient of a prompt, and none of a model of the renders",
        ),
        (lambda: VSD(own=3), "own: expected an object with step, noise, update, state_dict"),
        (lambda: VSD(entropy=NAN), "entropy: expected a finite number, got nan"),
        (lambda: HiFA(denoise_steps=0), "denoise_steps: expected a whole number of at least 1"),
        (
            lambda: NoiseRule(rule="random"),
            "rule: 'random' is not known; choose from fixed, inverted",
        ),
        (lambda: NoiseRule(inversion_steps=0), "inversion_steps: expected a whole number of at"),
        (lambda: NoiseRule(above=-0.1), "above: expected a share, got -0.1"),
        (lambda: NoiseRule(fresh=1.5), "fresh: expected a share, got 1.5"),
        (lambda: VSD(lookahead=-1.0), "lookahead: expected a finite number of at least 0"),
        (lambda: Mixture(-0.1), "width: expected a finite number of at least 0, got -0.1"),
        (lambda: RunningGaussian(width=-1.0), "width: expected a finite number of at least 0"),
        (lambda: RunningGaussian(0.0), "rate: expected a share above 0 and at most 1, got 0.0"),
        (lambda: RunningGaussian(1.5), "rate: expected a share above 0 and at most 1, got 1.5"),
        (
            lambda: RunningGaussian().load_state_dict({}),
            "state: expected the parameters of a RunningGaussian, got {}",
        ),
        (lambda: DreamDPO(tau=-0.001), "tau: expected a finite number of at least 0, got -0.001"),
        (lambda: DreamDPO(tau=NAN), "tau: expected a finite number, got nan"),
        (lambda: PSD(tau=NAN), "tau: expected a finite number or None, got nan"),
        (lambda: PSD(tau=-1.0), "tau: expected a positive reward difference, got -1.0"),
        (lambda: Exact(beta=0.0), "beta: expected a positive temperature, got 0.0"),
        (lambda: Exact(beta=-1.0), "beta: expected a positive temperature, got -1.0"),
        (lambda: Exact(beta=NAN), "beta: expected a finite number, got nan"),
    ],
)
def test_bad_settings_are_named_in_one_line(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_methods_by_name():
    """Every name makes what the table says.

    The guidance scale goes to its base and the weight to those that have one. The checkpoint's key,
    repr, holds all settings and their defaults.
    """
    sds = "SDS(guidance_scale=3.0, weighting='sds', n_noises=1)"
    rows = sds.replace("SDS", "LinearCombination").replace(")", ", row='ROW')")
    own = "own=RunningGaussian(rate=0.1, width=None), entropy=1.0, lookahead=0.0"
    lora = own.replace("RunningGaussian(rate=0.1, width=None)", "LowRank(rank=4, rate=1.0)")
    vsd = sds.replace("SDS", "VSD").replace(")", f", {own})")
    expected = {
        "sds": sds,
        "sds2": sds.replace("n_noises=1", "n_noises=2"),
        "csd": sds.replace("SDS", "CSD"),
        **{row: rows.replace("ROW", row) for row in ("nfsd", "bridge")},
        "sdi": (
            f"NoiseRule(base={sds}, rule='inverted', inversion_steps=10, inversion_guidance=1.0, "
            f"above={1 / 60}, fresh=0.3)"
        ),
        "vsd": vsd,
        "l2-vsd": vsd.replace("lookahead=0.0", "lookahead=0.01"),
        "vsd-lora": vsd.replace(own, lora),
        "l2-vsd-lora": vsd.replace(own, lora.replace("lookahead=0.0", "lookahead=0.01")),
        "hifa": "HiFA(guidance_scale=3.0, weighting='uniform', n_noises=1, denoise_steps=4)",
        "psd": (
            f"PSD(base={sds}, preference_weight=1.0, omega='hard', tau=None, pair_base='mean', "
            "antithetic=True, over_views=True)"
        ),
        "dreamdpo": f"DreamDPO(base={sds}, tau=0.001, published_code=False)",
        "rewardsds": f"RewardSDS(base={sds}, strategy='min-max', n_noises=4, over_views=False)",
        "exact": f"Exact(base={sds}, beta=0.02)",
        **{
            kind: f"RewardGradient(kind='{kind}', base={sds}, preference_weight=50.0)"
            for kind in KINDS
        },
    }
    assert {name: repr(make_method(name, 3.0)) for name in METHODS} == expected
    assert repr(make_method("psd")) == repr(PSD()) == repr(PSD(SDS(1.0)))
    for name in ("psd", *KINDS):
        weighted = make_method(name, 3.0, 7.0)
        assert repr(weighted).startswith(expected[name].split("base=")[0]) and weighted.base == SDS(
            3.0
        )
        assert weighted.preference_weight == 7.0  # exact: a setting
    noises = {name: make_method(name).n_noises for name in METHODS}
    assert noises == {
        "sds": 1,
        "sds2": 2,
        "csd": 1,
        "nfsd": 1,
        "bridge": 1,
        "sdi": 1,
        "vsd": 1,
        "l2-vsd": 1,
        "vsd-lora": 1,
        "l2-vsd-lora": 1,
        "hifa": 1,
        "psd": 1,
        "dreamdpo": 2,
        "rewardsds": 4,
        "exact": 1,
        **dict.fromkeys(KINDS, 1),
    }
    for fixed in (
        DreamDPO,
        Exact,
        partial(RewardGradient, "dps"),
        partial(Regression, ("mushroom", "red")),
    ):
        with pytest.raises(TypeError, match="n_noises"):  # it follows from the method
            fixed(n_noises=5)
    with pytest.raises(TypeError, match="_tilted"):
        Exact(_tilted={})


UNMETERED = ("exact", *WITH_NETWORK)  # they need a prior of another kind
METERED = {
    **{name: partial(make_method, name, 2.0) for name in METHODS if name not in UNMETERED},
    "fresh": lambda: PSD(SDS(2.0), 3.0, "bt", 0.5, "fresh", over_views=False),
}


@pytest.mark.parametrize("name", METERED)
def test_metrics_are_what_they_are_called(name):
    """gradient_rms = sqrt(mean G^2); reward = mean of R over noises and views.

    PSD: reward_gap = mean |R_1 - R_2| and preference_share = |preference term| / |base|, where the
    base is PSD without weight.
    """
    method = METERED[name]()
    x, t, eps, context = case(method, LinearReward(V))
    t = t + 499 if name == "fresh" else t  # there the base is smaller than 1
    gradient, metrics = method(x, t, eps, context)
    expected = {"gradient_rms": (gradient**2).mean().item() ** 0.5}
    if name in ("psd", "fresh", "dreamdpo", "rewardsds"):
        noises = torch.cat((eps[:1], -eps[:1])) if isinstance(method, PSD) else eps
        ranked = rank(SDS(2.0), x, t, noises, context, over_views=name == "psd").rewards
        expected["reward"] = ranked.mean().item()
    if isinstance(method, PSD):
        base, _ = replace(method, preference_weight=0.0)(x, t, eps, context)
        expected["reward_gap"] = (ranked[0] - ranked[1]).abs().mean().item()
        expected["preference_share"] = ((gradient - base).norm() / base.norm()).item()
    assert metrics == pytest.approx(expected, rel=1e-9)


MISBEHAVING = {
    "NaN": (lambda i, p: torch.full((len(i),), NAN), "returned NaN or infinity for image 0"),
    "inf": (lambda i, p: torch.full((len(i),), INF), "returned NaN or infinity for image 0"),
    "shape": (lambda i, p: torch.zeros(len(i), 1), "returned shape"),
    "float": (lambda i, p: 0.5, "returned shape"),
    "device": (lambda i, p: torch.zeros(len(i), device="meta"), "answered on device meta"),
    "raises": (lambda i, p: {}["score"], "raised KeyError: 'score'"),
}
ASKING = {"PSD": PSD(), "DreamDPO": DreamDPO(), "RewardSDS": RewardSDS()}


@pytest.mark.parametrize("name", [*ASKING, *KINDS])
@pytest.mark.parametrize("how", MISBEHAVING)
def test_every_method_refuses_a_misbehaving_reward(name, how):
    """Whichever method asks: ValueError "reward: NAME ...", and no gradient comes out."""
    answer, message = MISBEHAVING[how]
    answer.differentiable = True
    method = ASKING[name] if name in ASKING else RewardGradient(name)
    with pytest.raises(ValueError, match=f"^reward: <lambda> {message}"):
        method(*case(method, answer))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_without_a_gradient_is_named(kind):
    """The scores are detached from the pictures: autograd's own message would name nothing."""
    answer = lambda i, p: (i.detach().flatten(1) ** 2).sum(-1)  # noqa: E731
    answer.differentiable = True
    with pytest.raises(
        ValueError, match="^reward: its scores carry no gradient to the picture; a black box works"
    ):
        RewardGradient(kind)(*case(RewardGradient(kind), answer))


@pytest.mark.parametrize(
    "reward", [LinearReward(0 * V, 3.0), black_box(lambda images, prompts: [7] * len(images))]
)
def test_when_all_rewards_tie(reward):
    """PSD is the base, bit for bit, for every omega; the others break ties by order.

    PSD's running temperature has then never seen a difference. DreamDPO's winner is the first
    noise; RewardSDS takes the first as best, softmax the mean.
    """
    for kind in ("hard", "gap", "bt", "gated"):
        for tau in (0.5, None):
            psd = PSD(SDS(2.0), 3.0, kind, tau, antithetic=False)
            x, t, eps, context = case(psd, reward)
            for _ in range(2):
                # exact: base + 0
                assert torch.equal(
                    psd(x, t, eps, context)[0], SDS(2.0, n_noises=2)(x, t, eps, context)[0]
                )
    first, second = (SDS(2.0)(x, t, e[None], context)[0] for e in eps)
    rows = [
        (DreamDPO(SDS(2.0), tau=0.0), first - second),
        (PSD(SDS(2.0), 1.0, pair_base="winner", antithetic=False), first),
        (DreamDPO(SDS(2.0), tau=0.1), first),
        (RewardSDS(SDS(2.0), "best", 2), first),
        (RewardSDS(SDS(2.0), "softmax", 2), (first + second) / 2),
        (RewardSDS(SDS(2.0), "min-max", 2), 0.9 * first - 0.1 * second),
    ]
    for method, expected in rows:
        torch.testing.assert_close(method(x, t, eps, context)[0], expected, rtol=1e-12, atol=1e-12)
    assert reward_weights(torch.ones(4, 1), "min-max").flatten().tolist() == pytest.approx(
        [0.45, 0.45, -0.05, -0.05]
    )
    assert {reward_weights(torch.ones(4, 1), strategy).dtype for strategy in STRATEGIES} == {
        torch.float32
    }


def test_an_enormous_weight_is_used_as_it_is():
    """preference_weight = 1e30 in float64: G / 1e30 is the preference term alone, finite."""
    methods = {
        "PSD": lambda w: PSD(SDS(2.0), w),
        **{k: partial(RewardGradient, k, SDS(2.0)) for k in KINDS},
    }
    for make in methods.values():
        x, t, eps, context = case(make(1.0), LinearReward(V))
        huge, one, zero = (make(w)(x, t, eps, context)[0] for w in (1e30, 1.0, 0.0))
        torch.testing.assert_close(huge / 1e30, one - zero, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("weight", "what"), [(1e30, "the loss"), (1e39, "the method's gradient")])
def test_the_loop_refuses_a_weight_that_single_precision_cannot_hold(weight, what):
    """At 1e30 the gradient fits but not its square, at 1e39 not even the gradient."""
    prior, field = ToyWorldPrior(views=make_views(pool_cameras(2), 8)), VoxelField(8)
    before = [value.clone() for value in field.state_dict().values()]
    options = {
        "steps": 3,
        "resolution": 8,
        "n_samples": 4,
        "cameras_per_step": 2,
        "progress": False,
    }
    with pytest.raises(
        NonFiniteError, match=f"^step 0: {what}.* is not finite.*last good state"
    ) as error:
        distill(
            field,
            prior,
            PSD(preference_weight=weight),
            "a ball",
            reward=make_reward("colorfulness"),
            **options,
        )
    assert "\n" not in str(error.value)
    # exact: copies
    assert all(torch.equal(a, b) for a, b in zip(before, field.state_dict().values(), strict=True))


def test_exact_needs_a_prior_that_can_be_tilted():
    context = Context(
        PRIOR, torch.zeros(2, 3), None, [""], lambda images, prompts: images.sum((1, 2, 3))
    )
    with pytest.raises(ValueError, match="^method: exact needs a prior with `tilted`"):
        Exact()(torch.zeros(1, 3, 4, 4), torch.tensor([5]), torch.zeros(1, 1, 3, 4, 4), context)
