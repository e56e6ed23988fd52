"""DDIM from priors whose answer is known."""

from types import SimpleNamespace

import pytest
import torch

from psd_mini.cameras import orbit
from psd_mini.pretrained.sampling import ddim_sample
from psd_mini.schedule import scaled_linear_schedule

pytestmark = pytest.mark.algebra


class Gaussian:
    """N(mean, s^2 I) for "a", N(0, I) for "": eps_hat = sigma_t (x_t - alpha_t mean) /
    (alpha_t^2 s^2 + sigma_t^2)."""

    schedule = scaled_linear_schedule()

    def __init__(self, mean, s):
        self.mean, self.s, self.asked = mean, s, 0

    def embed(self, prompts):
        return torch.tensor([[1.0 if prompt else 0.0] for prompt in prompts], dtype=torch.float64)

    def predict_noise(self, x_t, t, embeddings, cameras=None):
        self.asked += len(embeddings)
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        rows = []
        for e in embeddings:
            s = self.s if e else 1.0
            rows.append(sigma * (x_t - alpha * self.mean * e) / (alpha**2 * s**2 + sigma**2))
        return torch.stack(rows)


NOISE = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_point_is_reached_exactly_in_any_number_of_steps(steps):
    """s = 0: x0_hat is the point whatever x_t is. Catches a wrong last step, and conversions of
    another time."""
    assert (ddim_sample(Gaussian(3.0, 0.0), "a", NOISE, steps=steps) - 3.0).abs().max() < 1e-10


def test_many_steps_are_the_probability_flow():
    """The flow keeps quantiles: x_0 = mean + s (x_T - alpha_T mean) / sqrt(alpha_T^2 s^2 +
    sigma_T^2), up to O(1/n)."""
    mean, s = 2.0, 0.3
    alpha, sigma = (
        v.flatten()[0] for v in Gaussian.schedule.alpha_sigma(torch.tensor([999]), NOISE)
    )
    expected = mean + s * (NOISE - alpha * mean) / (alpha**2 * s**2 + sigma**2).sqrt()
    errors = [
        (ddim_sample(Gaussian(mean, s), "a", NOISE, steps=n) - expected).abs().max().item()
        for n in (50, 200, 1000)
    ]
    assert errors[2] < 0.02 and errors[0] > 2 * errors[1] > 4 * errors[2]


def test_guidance_asks_twice_and_steps_away_from_the_negative_prompt():
    """One step from t = 999 with null N(0, 1): x0_hat = (x_T - sigma eps_cfg) / alpha in plain
    numbers."""
    prior = Gaussian(2.0, 0.5)
    alpha, sigma = (v.flatten()[0] for v in prior.schedule.alpha_sigma(torch.tensor([999]), NOISE))
    cond = sigma * (NOISE - 2 * alpha) / (0.25 * alpha**2 + sigma**2)
    null = sigma * NOISE / (alpha**2 + sigma**2)
    expected = (NOISE - sigma * (null + 3 * (cond - null))) / alpha
    assert (
        ddim_sample(prior, "a", NOISE, guidance_scale=3, steps=1) - expected
    ).abs().max() < 1e-10
    assert prior.asked == 2


def test_what_the_prior_is_asked():
    """Both prompts at g = 2 (a prior of its own views words the prompt itself), at t = round(999 k
    / n), with the cameras; 25 steps unless told otherwise."""
    asked, cameras = [], orbit([0.0, 90.0], 0.0)

    class Watched(Gaussian):
        def embed(self, prompts):
            asked.append(prompts)
            return super().embed(prompts)

        def embed_views(self, prompts):
            asked.append(["views of", *prompts])
            return super().embed(prompts)

        def predict_noise(self, x_t, t, embeddings, cameras):
            asked.append((t.tolist(), len(embeddings), cameras))
            return super().predict_noise(x_t, t, embeddings)

    ddim_sample(
        Watched(1.0, 0.5),
        "a",
        NOISE[:2],
        cameras=cameras,
        guidance_scale=2.0,
        negative_prompt="b",
        steps=4,
    )
    assert asked[:2] == [["views of", "a"], ["b"]]
    assert asked[2:] == [([t, t], 2, cameras) for t in (999, 749, 500, 250)]
    # exact: the same code on the same numbers
    assert torch.equal(
        ddim_sample(Gaussian(1.0, 0.5), "a", NOISE),
        ddim_sample(Gaussian(1.0, 0.5), "a", NOISE, steps=25),
    )


@pytest.mark.parametrize("missing", ["schedule", "embed", "predict_noise"])
def test_what_is_no_prior_is_named(missing):
    parts = {
        name: getattr(Gaussian(1.0, 0.5), name)
        for name in ("schedule", "embed", "predict_noise")
        if name != missing
    }
    with pytest.raises(
        ValueError,
        match=(
            f"^prior: expected an object with schedule, embed, predict_noise; .* has no {missing}"
        ),
    ):
        ddim_sample(SimpleNamespace(**parts), "a", NOISE)


def test_steps_out_of_range_are_named():
    with pytest.raises(ValueError, match="steps: expected 1 to 1000, got 0"):
        ddim_sample(Gaussian(0.0, 1.0), "a", NOISE, steps=0)
