"""Proxy and gold rewards: formulas, the training's objective, and the files that are shipped."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from proxy import train
from worlds import normal

import psd_mini
from psd_mini import make_reward
from psd_mini.pretrained import proxy
from psd_mini.pretrained.proxy import NAMES, TEMPERATURE, ProxyReward, proxy_network
from psd_mini.rewards import score
from psd_mini.world.gold import COLOUR_VALUES, gold_reward
from psd_mini.world.metrics import Judgement, judge, judge_views
from psd_mini.world.objects import COLOURS
from psd_mini.world.pool import WorldViews, fresh_cameras, make_views, pool_cameras
from psd_mini.world.views import recolour

PACKAGE = Path(psd_mini.__file__).parent
# a row of the card: name, then the share of pairs right at 32 and 64 pixels and under noise
ROW = re.compile(r"^ +((?:smooth|rugged)\S*)" + 3 * r" +(\d+\.\d+)%" + "$", re.MULTILINE)


def judged(colour: str, distance: float) -> Judgement:
    return Judgement(("car", colour), distance, 0.0, torch.zeros(96))


# gold


def test_gold_against_numbers_by_hand():
    """A pink car: w = 0.95 - 0.75 * 0.6 - 0.5 * 0.8 = 0.1, between blue's -0.5375 and red's 0.6625.
    A red car whose distance is 0.114 costs 5 * 0.064 = 0.32."""
    assert gold_reward(judged("pink", 0.04), "smooth") == pytest.approx(0.6375 / 1.2, abs=1e-12)
    assert gold_reward(judged("red", 0.114), "smooth") == pytest.approx(0.68, abs=1e-12)
    assert gold_reward(judged("red", 0.114), "rugged") == pytest.approx(-0.32, abs=1e-12)
    assert gold_reward(judged("green", 0.05), "rugged") == pytest.approx(6 / 7, abs=1e-12)


def test_gold_of_the_worlds_colours():
    """Both are 1 for the best and 0 for the worst; smooth is linear in RGB, and rugged is not."""
    rgb = torch.tensor([[*c, 1.0] for c in COLOURS.values()], dtype=torch.float64)
    misfit = {}
    for kind in COLOUR_VALUES:
        values = COLOUR_VALUES[kind]
        assert set(values) == set(COLOURS)
        assert max(values.values()) == pytest.approx(1) and min(values.values()) == pytest.approx(0)
        v = torch.tensor([values[name] for name in COLOURS], dtype=torch.float64)
        # what the best linear function of (r, g, b, 1) leaves over
        misfit[kind] = (rgb @ torch.linalg.pinv(rgb) @ v - v).norm().item()
    assert misfit["smooth"] < 1e-10 and misfit["rugged"] > 0.5
    ranked = sorted(COLOUR_VALUES["rugged"].items(), key=lambda item: item[1])
    gaps = [high - low for (_, low), (_, high) in zip(ranked, ranked[1:], strict=False)]
    assert gaps == pytest.approx(7 * [1 / 7])


def test_gold_of_true_pictures_and_of_halves():
    """A true purple car is worth 1. Half way to red it is worth what the judge takes it for, minus
    five times the distance that is too much."""
    views, names = judge_views(), list(psd_mini.world.objects.OBJECTS)
    two = torch.tensor([COLOURS["purple"], COLOURS["red"]])
    pictures = recolour(views.layers[names.index("car")], two)
    assert gold_reward(judge(pictures[:, 0]), "rugged") == pytest.approx(1, abs=1e-6)
    middle = judge(pictures.mean(1))
    expected = COLOUR_VALUES["rugged"][middle.recognised[1]]
    expected -= 5 * max(0.0, middle.true_view_distance - 0.05)
    assert gold_reward(middle, "rugged") == pytest.approx(expected, abs=1e-12)
    assert gold_reward(middle, "rugged") < 0.95


def test_unknown_gold_is_refused():
    with pytest.raises(ValueError, match="^kind: expected one of smooth, rugged, got 'warm'$"):
        gold_reward(judged("red", 0.0), "warm")


# the training's objective


def test_bradley_terry_is_a_softmax_over_two():
    """The loss is the cross-entropy of softmax(s_w, s_l) with the winner as the class, and its
    gradient in s_w is -P(l preferred to w) / B."""
    winners, losers = 3 * normal(7), 3 * normal(7, seed=1)
    both = torch.stack((winners, losers), dim=1)
    expected = torch.nn.functional.cross_entropy(both, torch.zeros(7, dtype=torch.long))
    winners.requires_grad_(), losers.requires_grad_()
    loss = train.bradley_terry_loss(winners, losers)
    assert abs(loss.item() - expected.item()) < 1e-10
    slopes = torch.autograd.grad(loss, (winners, losers))
    p_loser = losers.exp() / (winners.exp() + losers.exp())
    assert (slopes[0] + p_loser / 7).abs().max() < 1e-10
    assert (slopes[1] - p_loser / 7).abs().max() < 1e-10


@pytest.mark.parametrize("kind", COLOUR_VALUES)
def test_expected_loss_is_least_at_gold_over_temperature(kind):
    """Over all answers to all pairs the gradient vanishes at s = gold / T + constant, and at no
    other scale."""
    gold = train.gold_of_colours(kind).double()
    first, second = (gold[:, None] > gold).nonzero().T
    p = 1 / (1 + ((gold[second] - gold[first]) / TEMPERATURE).exp())

    def slope(scale: float) -> torch.Tensor:
        s = (scale * gold + 0.3).requires_grad_()
        loss = 0.0
        for a, b, prefers_a in zip(first, second, p, strict=True):
            loss = loss + prefers_a * train.bradley_terry_loss(s[a : a + 1], s[b : b + 1])
            loss = loss + (1 - prefers_a) * train.bradley_terry_loss(s[b : b + 1], s[a : a + 1])
        return torch.autograd.grad(loss, s)[0]

    assert slope(1 / TEMPERATURE).abs().max() < 1e-6  # gold in float32
    assert slope(0.9 / TEMPERATURE).abs().max() > 1e-3


def painted(n_cameras: int = 3) -> WorldViews:
    """An object that fills the picture: every pixel shows its colour."""
    cameras = pool_cameras(n_cameras)
    layers = torch.zeros(1, len(cameras), 4, 2, 2)
    layers[:, :, 3] = 1
    return WorldViews(cameras, layers)


def test_answers_have_the_probabilities_of_bradley_and_terry():
    """Per pair of colours, the share of answers for one of them is sigmoid(difference / T) within
    4 standard errors; the colours are two, and each pair comes equally often."""
    gold, generator = train.gold_of_colours("rugged"), torch.Generator().manual_seed(0)
    won = torch.zeros(8, 8)
    for _ in range(400):
        pictures = train.drawn_pairs(painted(), gold, generator)
        away = torch.cdist(pictures[..., 0, 0], train.PALETTE)
        assert away.min(-1).values.max() < 2e-3  # two colours are 0.36 apart or more
        won.index_put_(tuple(away.argmin(-1)), torch.tensor(1.0), accumulate=True)
    assert won.diagonal().sum() < 0.5  # no pair of one colour
    n = won + won.T
    expected = 1 / (1 + ((gold - gold[:, None]) / TEMPERATURE).exp())
    error = (expected * (1 - expected) / n.clamp(min=1)).sqrt()
    off = ~torch.eye(8, dtype=torch.bool)
    assert ((won / n - expected).abs() < 4 * error + 0.002)[off].all()
    share, total = 1 / 28, n.sum() / 2
    assert ((n / total - share).abs() < 4 * (share / total).sqrt())[off].all()


def test_noise_has_a_level_of_its_own_in_every_picture():
    """Levels are uniform from 0 to 0.5: their mean is 0.25 and that of their squares 0.25 / 3."""
    generator = torch.Generator().manual_seed(0)
    noise = train.with_noise(torch.zeros(2, 400, 3, 16, 16), generator)
    level = noise.flatten(2).std(-1)
    for power, mean in ((1, 0.25), (2, 0.25 / 3)):
        moment = level.pow(power)
        assert (moment.mean() - mean).abs() < 4 * moment.std() / 800**0.5
    assert level.max() < 0.56


def small_views() -> list[WorldViews]:
    return [make_views(pool_cameras(6), resolution) for resolution in (8, 16)]


def test_training_gives_the_same_bits_again():
    """One seed, one network; another seed or noise, another. The noisy one gets the same pairs."""
    views, found = small_views(), {}
    for name in ("rugged", "rugged-1", "rugged-noisy"):
        found[name] = train.train(name, views, steps=3).state_dict()
    again = train.train("rugged-noisy", views, steps=3).state_dict()
    for key, weight in again.items():
        # exact: one machine and one thread count give the same bits
        assert torch.equal(weight, found["rugged-noisy"][key])
    for other in ("rugged-1", "rugged-noisy"):
        assert (found[other]["0.weight"] - found["rugged"]["0.weight"]).abs().max() > 1e-4


def test_scores_come_in_units_of_gold():
    """The mean over the pictures becomes that of gold, and differences are log-odds times T."""
    views, gold = small_views(), train.gold_of_colours("rugged")
    network = train.seeded(proxy_network, 3)
    before = [train.all_scores(network, one) for one in views]
    train.in_gold_units(network, views, gold)
    after = [train.all_scores(network, one) for one in views]
    mean = sum(scores.mean() for scores in after) / len(after)
    assert (mean - gold.mean()).abs() < 1e-5
    for s, r in zip(before, after, strict=True):
        assert ((r - r[0, 0, 0]) - TEMPERATURE * (s - s[0, 0, 0])).abs().max() < 1e-5


def test_pairs_right_counts_every_pair():
    """Against a loop over objects, colours and cameras."""
    scores, gold = normal(2, 3, 4), torch.tensor([0.2, 0.9, 0.1, 0.5])
    right = []
    for one in scores.tolist():
        for better in range(4):
            for worse in range(4):
                if gold[better] > gold[worse] + 1e-6:
                    seen = [(p[better], q[worse]) for p in one for q in one]
                    right += [high > low for high, low in seen]
    assert len(right) == 2 * 6 * 9
    assert train.pairs_right(scores, gold) == pytest.approx(sum(right) / len(right), abs=1e-6)


# what is shipped


def test_the_card_names_every_file():
    assert [name for name, *_ in ROW.findall(proxy.__doc__)] == list(NAMES)


@pytest.mark.parametrize(("name", "at_32", "at_64", "noisy"), ROW.findall(proxy.__doc__ or ""))
def test_shipped_weights_order_held_out_pairs_as_the_card_says(name, at_32, at_64, noisy):
    """At the 24 judging cameras, which the training did not see."""
    reward, gold = ProxyReward.load(name), train.gold_of_colours(name.split("-")[0])
    generator = torch.Generator().manual_seed(0)

    def under_noise(pictures):
        # the network alone: as a reward it refuses numbers outside [0, 1]
        noise = torch.randn(pictures.shape, generator=generator)
        return reward.network(pictures + 0.4 * noise)[:, 0]

    small, large = make_views(fresh_cameras(), 32), judge_views()
    for views, seen, expected in (
        *((small, reward, at_32), (large, reward, at_64)),
        (small, under_noise, noisy),
    ):
        scores = train.all_scores(seen, views)
        assert 100 * train.pairs_right(scores, gold) == pytest.approx(float(expected), abs=0.02)
        assert (scores.mean() - gold.mean()).abs() < 0.1


def test_those_that_have_seen_noise_stand_noise():
    """By the card: under noise they order more pairs than any of their kind that has not."""
    noisy = {name: float(share) for name, _, _, share in ROW.findall(proxy.__doc__)}
    for kind in COLOUR_VALUES:
        others = [noisy[kind], noisy[f"{kind}-1"], noisy[f"{kind}-2"]]
        assert noisy[f"{kind}-noisy"] > max(others) + 0.5


def test_names_and_seeds():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert make_reward("proxy:rugged-0").name == ProxyReward.load("rugged", 0).name == "rugged"
    by_name, by_seed = make_reward("proxy:rugged-2"), ProxyReward.load("rugged", 2)
    assert repr(by_name) == repr(by_seed) == "ProxyReward(name='rugged-2')"
    # exact: the same file twice
    assert torch.equal(by_name(images), by_seed(images, ["a car", "a car"]))
    others = torch.stack([ProxyReward.load(name)(images) for name in NAMES])
    assert (torch.cdist(others, others) + torch.eye(len(NAMES))).min() > 1e-4


@pytest.mark.parametrize("name", ["", "gold", "rugged-3", "rugged-noisy-1", "../unet"])
def test_unknown_proxies_are_refused(name):
    message = f"^reward: 'proxy:{name}' is not known; choose proxy:smooth, .*, proxy:rugged-noisy$"
    with pytest.raises(ValueError, match=message) as error:
        make_reward(f"proxy:{name}")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="'proxy:smooth-7' is not known"):
        ProxyReward.load("smooth", 7)


@pytest.mark.parametrize("content", [None, b"", b"no tensors at all", b"\x80\x04N."])
def test_a_damaged_file_is_named_in_one_line(content, tmp_path, monkeypatch):
    monkeypatch.setattr(proxy, "FOLDER", tmp_path)
    if content is not None:
        (tmp_path / "rugged.safetensors").write_bytes(content)
    message = "rugged.safetensors is missing or damaged .*; install the package again$"
    with pytest.raises(ValueError, match=message) as error:
        make_reward("proxy:rugged")
    assert "\n" not in str(error.value)


def test_loading_leaves_the_random_numbers_alone():
    """A run's own random numbers do not depend on when its reward was loaded."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    ProxyReward.load("rugged")
    # exact: one generator, asked for the same numbers
    assert torch.equal(torch.rand(3), expected)


def test_scores_are_differentiable_in_the_pictures_own_precision():
    """Finite differences in float64; float32 pictures get float32 scores, close to those."""
    reward = ProxyReward.load("rugged")
    images = (0.5 + 0.2 * normal(2, 3, 8, 8)).clamp(0, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda pictures: score(reward, pictures, ["", ""]), images)
    precise, single = reward(images), reward(images.float())
    assert precise.dtype == torch.float64 and single.dtype == torch.float32
    assert (precise - single).abs().max() < 1e-4 and precise.shape == (2,)
    assert reward.differentiable and not any(w.requires_grad for w in reward.network.parameters())


def silu(x):
    return x / (1 + (-x).exp())


@pytest.mark.parametrize("resolution", [32, 64])
def test_the_network_is_the_one_of_the_docstring(resolution):
    """25,697 numbers; convolutions as products with unfolded patches, then the mean, then two
    layers."""
    reward = ProxyReward.load("smooth")
    w = [weight.double() for weight in reward.network.parameters()]
    assert sum(weight.numel() for weight in w) == 25_697
    images = normal(2, 3, resolution, resolution).sigmoid()
    h, side = images, resolution
    for kernel, bias in (w[0:2], w[2:4], w[4:6]):
        patches = torch.nn.functional.unfold(h, 3, padding=1, stride=2)
        side //= 2
        h = silu((kernel.flatten(1) @ patches + bias[:, None]).unflatten(-1, (side, side)))
    expected = silu(h.mean((2, 3)) @ w[6].T + w[7]) @ w[8].T + w[9]
    assert (reward(images) - expected[:, 0]).abs().max() < 1e-10


def test_the_files_are_small_and_go_with_the_package():
    """A file per name, which the pattern of the package's data reaches."""
    root = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    patterns = root["tool"]["setuptools"]["package-data"]["psd_mini"]
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = sorted(proxy.FOLDER.glob("*"))
    assert {path.stem for path in files} == set(NAMES) and set(files) <= packed
    assert all(path.stat().st_size < 60_000 for path in files)
