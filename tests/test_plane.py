"""The page of the plane computes what the package computes: its formulas run in a JavaScript
engine, the package's in torch. A wrong implementation is any with a sign, a factor, a weight or a
noise in another place."""

import html
import json
import re

import pytest
import torch

import psd_mini as pm
from psd_mini.methods.reward_gradients import RewardGradient
from psd_mini.sds import Cost
from psd_mini.viz.plane import plane

MiniRacer = pytest.importorskip("py_mini_racer").MiniRacer

SCHEDULE = pm.scaled_linear_schedule()
MEANS = torch.tensor([[-1.5, -0.5], [1.5, -0.5], [0.0, 1.2]], dtype=torch.float64)
PRIOR = pm.GaussianMixture(
    [0.5, 0.3, 0.2], MEANS, torch.tensor([[0.30, 0.02], [0.10, 0.10], [0.02, 0.30]]), SCHEDULE
)
V, BETA, TAU = torch.tensor([0.4, 1.0], dtype=torch.float64), 0.5, 0.7
PROMPT = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)


def page():
    shown = plane(PRIOR, V, BETA, PROMPT, TAU)._repr_html_()
    return html.unescape(re.search(r'srcdoc="(.*?)"></iframe>', shown, re.DOTALL).group(1))


@pytest.fixture(scope="module")
def engine():
    script = page().partition("<script>")[2].partition("</script>")[0]
    world, formulas = script.partition("/* formulas */")[::2]
    engine = MiniRacer()
    engine.eval(world + formulas.partition("/* page */")[0])
    return engine


def of_package(x, level, g, weight, kind, pair):
    """Every method's gradient, by the package's own methods, with w(t) = 1."""
    tilted, _ = PRIOR.condition(PROMPT).tilt_linear(V, BETA)
    t, x = torch.tensor([level]), x.view(1, 2, 1, 1)  # a picture of one pixel, two channels
    embeddings = torch.stack((PROMPT, torch.zeros_like(PROMPT)))
    reward = lambda images, prompts: images.flatten(1) @ V  # noqa: E731
    base = pm.SDS(g, weighting="uniform")
    found = {}
    methods = {
        "SDS": base,
        "CSD": pm.CSD(weighting="uniform"),
        "pixel gradient": RewardGradient("pixel-clean", base, 1 / BETA),
        "PSD": pm.PSD(base, weight, kind, TAU),
    }
    for name, method in methods.items():
        eps = pair[:1] if name == "PSD" else pair
        contexts = [
            pm.Context(PRIOR, embeddings, prompts=["a point"], reward=reward, cost=Cost())
            for _ in eps
        ]
        noises = [e.view(1, 1, 2, 1, 1) for e in eps]
        answers = [method(x, t, e, c)[0] for e, c in zip(noises, contexts, strict=True)]
        found[name] = torch.stack(answers).mean(0).flatten()
    x_t = SCHEDULE.add_noise(x.view(1, 2).expand(2, 2), pair, t.expand(2))
    guesses = tilted.predict_noise(x_t, t.expand(2))[0] - pair
    return found | {"exact optimum": guesses.mean(0)}


@pytest.mark.parametrize("kind", ["hard", "gap", "bt"])
@pytest.mark.parametrize(("level", "g"), [(20, 1.0), (500, 7.5), (900, 0.0)])
def test_the_arrows_are_the_package_s_gradients(engine, kind, level, g):
    noise = torch.randn(2, generator=torch.Generator().manual_seed(level), dtype=torch.float64)
    pair, x = torch.stack((noise, -noise)), torch.tensor([0.3, -1.1], dtype=torch.float64)
    arguments = json.dumps([x.tolist(), level, g, 0.8, kind, pair.tolist()])
    drawn = json.loads(engine.eval(f"JSON.stringify(brackets(...{arguments}))"))
    expected = of_package(x, level, g, 0.8, kind, pair)
    assert drawn.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(drawn[name]).double(), value, atol=1e-6, rtol=1e-6)


def test_an_average_is_over_the_pairs(engine):
    generator = torch.Generator().manual_seed(1)
    noises = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    pairs, x = torch.stack((noises, -noises), 1), torch.tensor([1.0, 0.5], dtype=torch.float64)
    arguments = json.dumps([x.tolist(), 300, 2.0, 1.0, "hard", pairs.tolist()])
    drawn = json.loads(engine.eval(f"JSON.stringify(average(...{arguments}))"))
    each = [of_package(x, 300, 2.0, 1.0, "hard", pair) for pair in pairs]
    for name, value in drawn.items():
        mean = torch.stack([answer[name] for answer in each]).mean(0)
        torch.testing.assert_close(torch.tensor(value).double(), mean, atol=1e-6, rtol=1e-6)


def test_the_page_asks_nobody_and_refuses_other_worlds():
    assert "http" not in page() and "$" not in page()
    full = pm.GaussianMixture([1.0], MEANS[:1], torch.eye(2).double()[None], SCHEDULE)
    with pytest.raises(ValueError, match="^prior: expected a mixture in the plane"):
        plane(full, V, BETA)
