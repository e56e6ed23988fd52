"""A prior that knows only dull colours, what guidance reaches beyond it, and negative words."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from worlds import normal, small_world

from psd_mini import SDS, Context, ToyWorldPrior, cfg, scaled_linear_schedule
from psd_mini.methods import NegativeWords, RewardSDS
from psd_mini.negative import evidence
from psd_mini.rewards import make_reward
from psd_mini.world import text
from psd_mini.world.metrics import judge, shown_vividness
from psd_mini.world.objects import COLOURS, OBJECTS
from psd_mini.world.pool import make_views, pool_cameras

SCHEDULE = scaled_linear_schedule()
VIEWS = make_views(pool_cameras(4), 16)
WANTED = ("mushroom", "red")
F64 = torch.float64


def picture(name, colour, vividness=1.0):
    """The world's pictures of one object at the four cameras."""
    place = text.components().index((name, colour))
    return replace(VIEWS, vividness=vividness).pictures(torch.arange(4))[:, place]


@pytest.mark.parametrize("variance", [0.0, 0.01])
@pytest.mark.parametrize("step", [20, 300, 700])
def test_evidence_is_a_divergence(step, variance):
    """KL(N(alpha_t mu_1, C_t I) || N(alpha_t mu_2, C_t I)) is the mean log-odds of mu_1.

    Catches a missing square or half, and sigma_t^2 in place of C_t.
    """
    mu_1, mu_2 = normal(5, seed=1), normal(5, seed=2)
    abar = SCHEDULE.alphas_cumprod[step].double()
    covariance = (abar * variance + 1 - abar) * torch.eye(5, dtype=F64)
    one, two = (MultivariateNormal(abar.sqrt() * mu, covariance) for mu in (mu_1, mu_2))
    distance = (mu_1 - mu_2).square().sum()
    got = evidence(distance, abar.sqrt(), (1 - abar).sqrt(), variance)
    torch.testing.assert_close(got, kl_divergence(one, two), rtol=1e-10, atol=0)


def test_the_default_radius_is_the_evidence_about_a_colour():
    """Against the mean over all pictures of one object in two colours, at t = 0.02."""
    prior = small_world(cameras=3, resolution=12)
    pictures = 2 * prior.views.pictures(torch.arange(3)).double() - 1
    of_object = pictures.view(3, len(OBJECTS), len(COLOURS), -1)
    pairs = torch.cdist(of_object, of_object).square()
    n = len(COLOURS)
    abar = SCHEDULE.alphas_cumprod[round(0.02 * 999)].double()
    mean = pairs.sum() / (3 * len(OBJECTS) * n * (n - 1))
    expected = abar * mean / (2 * (abar * 0.01 + 1 - abar))
    null, prompt = text.embed(["", "a red ball"])
    found = prior.negative_settings(null, prompt)
    assert found["radius"] == pytest.approx(expected.item(), rel=1e-4)
    assert found["lr"] == pytest.approx(found["radius"] / 100)
    dull = ToyWorldPrior(views=replace(prior.views, vividness=0.5))
    assert dull.negative_settings(null, prompt)["radius"] == pytest.approx(found["radius"])


@pytest.mark.parametrize("vividness", [0.35, 0.5, 0.75])
def test_dull_pictures_are_on_the_way_to_gray(vividness):
    """vividness = <c - gray, c* - gray> / ||c* - gray||^2: 1, 0 and v of three true pictures.

    The judge of a dull world recognises its own pictures at distance 0.
    """
    assert shown_vividness(picture(*WANTED), WANTED, VIEWS) == pytest.approx(1, abs=1e-5)
    assert shown_vividness(picture("mushroom", "gray"), WANTED, VIEWS) == pytest.approx(0, abs=1e-5)
    dull = picture(*WANTED, vividness)
    assert shown_vividness(dull, WANTED, VIEWS) == pytest.approx(vividness, abs=1e-5)
    gray = picture("mushroom", "gray")
    torch.testing.assert_close(dull, gray + vividness * (picture(*WANTED) - gray))
    found = judge(dull, replace(VIEWS, vividness=vividness))
    assert found.recognised == WANTED
    assert found.true_view_distance == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("vividness", [0.35, 0.5, 0.75])
@pytest.mark.parametrize("g", [1.0, 2.0, 3.0])
def test_the_negative_gray_leads_to_vividness_g_v(vividness, g):
    """Guided away from gray at full strength, x0_hat has vividness g v.

    The kernel keeps a part of what x_t is: at t = 700 alpha_t^2 tau_x^2 / C_t is 1e-3.
    """
    prior = ToyWorldPrior(views=replace(VIEWS, vividness=vividness))
    embeddings = text.embed(["a red mushroom", "a gray mushroom"])
    x, t = prior.encode(picture(*WANTED, vividness)), torch.full((4,), 700)
    x_t = SCHEDULE.add_noise(x, normal(4, 3, 16, 16).float(), t)
    x0_cond, x0_neg = prior.denoise(x_t, t, embeddings, prior.views.cameras)
    guided = (cfg(x0_cond, x0_neg, g) + 1) / 2
    assert shown_vividness(guided, WANTED, VIEWS) == pytest.approx(g * vividness, abs=0.01)


def words_of(prior, choice, words=("gray", "red", "blue")):
    return NegativeWords(words, text.embed([*words, ""]), 2.0, choice)


def case(prior, reward="color:red"):
    cameras = prior.views.cameras
    embeddings = text.embed(["a red mushroom", ""])
    prompts = ["a red mushroom"] * len(cameras)
    context = Context(prior, embeddings, cameras, prompts, make_reward(reward))
    return normal(len(cameras), 3, 16, 16, seed=5).float(), context


def test_random_words_are_drawn_evenly_and_ask_nothing():
    """300 draws of three words: each within 4 standard errors of 100."""
    prior = ToyWorldPrior(views=VIEWS)
    negative, (x, context) = words_of(prior, "random"), case(prior)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(300):
        drawn.append(negative.step(0.5, x, context, generator)["negative_word"])
        torch.testing.assert_close(negative.embedding, negative.embeddings[int(drawn[-1])])
    assert all(abs(drawn.count(word) - 100) < 4 * (300 * 2 / 9) ** 0.5 for word in (0, 1, 2))
    assert context.cost.prior_evaluations == 0


def test_gains_are_rewards_with_the_word_minus_without_guidance():
    """Against the denoiser asked once for each word, and the same noise.

    Catches a gain over the null prompt's guidance, or g applied the wrong way round.
    """
    prior = ToyWorldPrior(views=replace(VIEWS, vividness=0.5))
    negative, (x, context) = words_of(prior, "bandit"), case(prior)
    got = negative.gains(torch.tensor([0, 2]), x, context, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    t = torch.randint(round(0.3 * 999), round(0.95 * 999) + 1, (4,), generator=generator)
    x_t = SCHEDULE.add_noise(x, torch.randn(x.shape, generator=generator), t)

    def reward_of(x0_hat):
        images = ((x0_hat + 1) / 2).clamp(0, 1)
        return context.reward(images, context.prompts).mean().item()

    plain = prior.denoise(x_t, t, text.embed(["a red mushroom"]), context.cameras)[0]
    for word, gain in zip(("gray", "blue"), got, strict=True):
        away = prior.denoise(x_t, t, text.embed([word]), context.cameras)[0]
        expected = reward_of(2 * plain - away) - reward_of(plain)
        assert gain == pytest.approx(expected, abs=1e-4)
    assert context.cost.prior_evaluations == 3 * 4


def test_the_bandit_moves_values_at_the_stated_rate():
    """value <- value + max(0.2, 1 / visits) (gain - value), no word while none gains; resumes."""
    prior = ToyWorldPrior(views=VIEWS)
    negative, (x, context) = words_of(prior, "bandit"), case(prior)
    gains = {0: [-1.0, 3.0, 5.0, 1.0, 1.0, 2.0, 8.0], 1: [-2.0], 2: [-3.0]}
    values, visits = {0: 0.0, 1: 0.0, 2: 0.0}, {0: 0, 1: 0, 2: 0}

    def told(tried, *_):
        return [gains[word][min(visits[word], len(gains[word]) - 1)] for word in tried.tolist()]

    negative.gains = told
    generator = torch.Generator().manual_seed(0)
    for _ in range(9):
        before = visits.copy()
        peek = torch.Generator()
        peek.set_state(generator.get_state())
        tried = torch.randperm(3, generator=peek)[:2].tolist()
        expected = {word: gains[word][min(before[word], len(gains[word]) - 1)] for word in tried}
        negative.step(0.1, x, context, generator)
        for word, gain in expected.items():
            visits[word] += 1
            values[word] += max(0.2, 1 / visits[word]) * (gain - values[word])
        for word, value in values.items():
            assert negative.value[word].item() == pytest.approx(value, abs=1e-5)
        best = max(values, key=values.get)
        place = best if values[best] > 0 else 3
        torch.testing.assert_close(negative.embedding, negative.embeddings[place])
    again = words_of(prior, "bandit")
    again.load_state_dict(negative.state_dict())
    torch.testing.assert_close(again.value, negative.value)
    torch.testing.assert_close(again.embedding, negative.embedding)
    assert again.read(n=1)[0][0] == "gray"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"choice": "best"}, "choice: 'best' is not known; choose from random, bandit"),
        ({"words": ["gray"]}, "embeddings: expected 1 for the words and one for no word, got 3"),
    ],
)
def test_wrong_words_are_refused_in_one_line(change, message):
    settings = {"words": ["gray", "red"], "embeddings": text.embed(["gray", "red", ""])}
    with pytest.raises(ValueError) as error:
        NegativeWords(**(settings | change), guidance_scale=2.0)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_rewardsds_over_views_ranks_the_whole_object():
    """With the rewards' mean over the views, the gradient is that of one ranking for all pictures.

    Catches a mean over the noises, and a ranking of each picture by its own reward.
    """
    prior = ToyWorldPrior(views=VIEWS)
    x, context = case(prior)
    eps, t = normal(4, 4, 3, 16, 16, seed=6).float(), torch.full((4,), 850)
    method = RewardSDS(SDS(), "best", over_views=True)
    assert method.shared_timestep
    gradient, _ = method(x, t, eps, context)
    x_t = SCHEDULE.add_noise(x, eps, t)
    rewards, residuals = [], []
    for i in range(4):
        eps_hat = prior.predict_noise(x_t[i], t, context.embeddings[:1], context.cameras)[0]
        images = ((SCHEDULE.x0_from_eps(x_t[i], eps_hat, t) + 1) / 2).clamp(0, 1)
        rewards.append(context.reward(images, context.prompts).mean())
        residuals.append(eps_hat - eps[i])
    best = int(torch.stack(rewards).argmax())
    expected = SCHEDULE.weight(t, "sds", x) * residuals[best]
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)


def test_vividness_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"vividness: expected a number in \[0, 1\], got 1.5"):
        replace(VIEWS, vividness=1.5)
    assert "vividness 0.5" in repr(ToyWorldPrior(views=replace(VIEWS, vividness=0.5)))
