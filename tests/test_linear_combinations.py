"""The table of methods that are linear combinations of noise predictions: each row against its own
page or formula. float64; predictions by plain algebra on the other side."""

import pytest
import torch
from plain_mixture import SCHEDULE, close, levels
from relatives import (
    COVARIANCES,
    MEANS,
    NEG,
    NULL,
    PRIOR,
    TOLERANCE,
    WEIGHTS,
    G,
    Y,
    case,
    differs,
    noised,
    picture,
    plain_noise,
)
from worlds import small_world

from psd_mini import CSD, PSD, SDS, Context, GaussianMixture
from psd_mini.methods import ROWS, Coefficients, LinearCombination, make_method
from psd_mini.methods.linear_combinations import Parts
from psd_mini.rewards import LinearReward

pytestmark = pytest.mark.algebra


class World(GaussianMixture):
    """The relatives' world with a null prompt."""

    def embed(self, prompts):
        assert prompts == [""]
        return NULL[None]


WORLD = World(WEIGHTS, MEANS, COVARIANCES, SCHEDULE)


def asked(method, x, t, eps, context=None):
    """The package's gradient with three prompts, and how many pictures the prior was asked."""
    context = context or Context(WORLD, torch.stack((Y, NEG)))
    gradient = method(picture(x), t, picture(eps)[None], context)[0].flatten(1)
    return gradient, context.cost.prior_evaluations


def row(name, weighting="uniform"):
    return LinearCombination(G, weighting, row=name)


def plain(x, t, eps):
    return [plain_noise(noised(x, t, eps), t, prompt) for prompt in (Y, NEG, NULL)]


def test_rows_equal_the_pages_of_sds_and_csd():
    x, t, eps = case()
    for weighting in ("uniform", "sds", "fantasia3d"):
        for name, page in (("sds", SDS(G, weighting)), ("csd", CSD(G, weighting))):
            got, cost = asked(row(name, weighting), x, t, eps)
            expected, page_cost = asked(page, x, t, eps)
            close(got, expected, TOLERANCE)
            assert cost == page_cost == 2 * len(x)
    close(asked(row("bridge"), x, t, eps)[0], G * asked(CSD(), x, t, eps)[0] / weight(t), TOLERANCE)
    differs(asked(row("sds"), x, t, eps)[0], asked(row("csd"), x, t, eps)[0])


def weight(t):
    return levels(t)[1] ** 2


def test_rows_equal_the_formulas_of_the_papers():
    """SJC without a control variate: eps_cfg. NFSD: dD + g dC. CSD with two weights. The bridge."""
    x, t, eps = case()
    y, neg, null = plain(x, t, eps)
    close(asked(row("sjc"), x, t, eps)[0], neg + G * (y - neg), TOLERANCE)
    domain = torch.where((t < 200)[:, None], null, null - neg)
    close(asked(row("nfsd"), x, t, eps)[0], domain + G * (y - null), TOLERANCE)
    differs(asked(row("nfsd"), x, t, eps)[0], null - neg + G * (y - null))
    w1, w2 = 2.0, 0.7
    two = LinearCombination(1.0, "uniform", row=Coefficients(w1, -w2, w2 - w1))
    close(asked(two, x, t, eps)[0], w1 * (y - null) + w2 * (null - neg), TOLERANCE)
    close(asked(row("bridge"), x, t, eps)[0], G * (y - neg), TOLERANCE)
    # ESD between SDS and VSD; q's coefficient goes to `methods.VSD`
    assert ROWS["vsd"](G, torch.ones(1)) == Coefficients(G, 1 - G, own=-1)


def test_the_prior_is_asked_for_what_has_a_coefficient():
    """Two prompts or three; NFSD leaves the negative out where every t of the batch is small."""
    x, t, eps = case()
    expected = {"sds": 2, "sjc": 2, "csd": 2, "nfsd": 3, "bridge": 2}
    assert {name: asked(row(name), x, t, eps)[1] / len(x) for name in expected} == expected
    early = torch.full_like(t, 199)
    assert asked(row("nfsd"), x, early, eps)[1] == 2 * len(x)
    assert asked(LinearCombination(1.0, row="sds"), x, t, eps)[1] == len(x)  # 1 - g = 0
    assert asked(LinearCombination(row=Coefficients(negative=2.0)), x, t, eps)[1] == len(x)


def test_the_sum_of_a_row_says_what_is_left_where_all_predictions_agree():
    """eps_y = eps_n = eps_0 = eps: G = w (sum of the coefficients) eps."""
    _, _, eps = case()
    for name, total in {"sds": 0, "sjc": 1, "csd": 0, "nfsd": None, "bridge": 0}.items():
        for late in (0.0, 1.0):
            method = row(name)
            numbers = method._coefficients(torch.tensor(late).double())
            same = picture(eps)[None]
            agreed = method.residual(Parts(same, same, same, same, numbers), same)[0].flatten(1)
            wanted = 1 - late if total is None else total
            close(agreed, wanted * eps, TOLERANCE)


def test_nfsd_without_a_negative_prompt_is_csd_above_its_switch():
    """eps_n = eps_0: g (eps_y - eps_0) there, and guided against the null prompt below."""
    x, t, eps = case()
    y, _, null = plain(x, t, eps)
    context = Context(WORLD, torch.stack((Y, NULL)))
    got = asked(row("nfsd"), x, t, eps, context)[0]
    early = (t < 200)[:, None]
    close(got, G * (y - null) + early * null, TOLERANCE)


def test_a_row_is_a_base_of_psd():
    """PSD without weight is the row on the pair's noises; ranking sees its own guided picture."""
    x, t, eps = case()
    context = Context(WORLD, torch.stack((Y, NEG)), None, [""] * 6, LinearReward(Y))
    base = row("nfsd")
    got = PSD(base, 0.0, over_views=False)(picture(x), t, picture(eps)[None], context)[0]
    mean = (asked(base, x, t, eps)[0] + asked(base, x, t, -eps)[0]) / 2
    close(got.flatten(1), mean, TOLERANCE)
    y, neg, null = plain(x, t, eps)
    for name, second in (("nfsd", null), ("sds", neg), ("bridge", neg), ("csd", neg)):
        predictions = row(name).predict(picture(x), t, picture(eps)[None], context)
        close(row(name).guided(predictions)[0].flatten(1), second + G * (y - second), TOLERANCE)


def test_rows_by_name_ask_the_prior_for_the_null_prompt():
    """In the toy world too; a prior that cannot embed is named."""
    prior = small_world()
    cameras = prior.draw_cameras(2, torch.Generator().manual_seed(0))
    x, t = torch.rand(2, 3, 8, 8), torch.tensor([100, 600])
    eps = torch.randn(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    embeddings = prior.embed(["a red ball", "gray", ""])
    context = Context(prior, embeddings[:2], cameras)
    got = make_method("nfsd", 3.0)(x, t, eps, context)[0]
    y, neg, null = prior.predict_noise(
        prior.schedule.add_noise(x, eps[0], t), t, embeddings, cameras
    )
    late = torch.tensor([0.0, 1.0]).view(-1, 1, 1, 1)
    weight_t = prior.schedule.weight(t, "sds", x)
    torch.testing.assert_close(got, weight_t * (null - late * neg + 3 * (y - null)))
    assert context.predictions.eps_hat.shape == (3, *eps.shape)
    with pytest.raises(TypeError, match="^prior: expected an object with embed"):
        asked(row("nfsd"), *case(), Context(PRIOR, torch.stack((Y, NEG))))
