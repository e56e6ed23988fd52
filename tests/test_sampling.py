"""DDIM from priors whose answer is known."""

import pytest
import torch

from psd_mini.priors.sampling import ddim_sample
from psd_mini.schedule import scaled_linear_schedule


class Gaussian:
    """N(mean, s^2 I) for "a", N(0, I) for "": eps_hat = sigma_t (x_t - alpha_t mean) / (alpha_t^2 s^2 + sigma_t^2)."""

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
    """s = 0: x0_hat is the point whatever x_t is. Catches a wrong last step, and conversions of another time."""
    assert (ddim_sample(Gaussian(3.0, 0.0), "a", NOISE, steps=steps) - 3.0).abs().max() < 1e-10


def test_many_steps_are_the_probability_flow():
    """The flow keeps quantiles: x_0 = mean + s (x_T - alpha_T mean) / sqrt(alpha_T^2 s^2 + sigma_T^2), up to O(1/n)."""
    mean, s = 2.0, 0.3
    alpha, sigma = (v.flatten()[0] for v in Gaussian.schedule.alpha_sigma(torch.tensor([999]), NOISE))
    expected = mean + s * (NOISE - alpha * mean) / (alpha**2 * s**2 + sigma**2).sqrt()
    errors = [(ddim_sample(Gaussian(mean, s), "a", NOISE, steps=n) - expected).abs().max().item() for n in (50, 200, 1000)]
    assert errors[2] < 0.02 and errors[0] > errors[1] > errors[2]


def test_guidance_asks_twice_and_steps_away_from_the_negative_prompt():
    """One step from t = 999 with null N(0, 1): x0_hat = (x_T - sigma eps_cfg) / alpha in plain numbers."""
    prior = Gaussian(2.0, 0.5)
    alpha, sigma = (v.flatten()[0] for v in prior.schedule.alpha_sigma(torch.tensor([999]), NOISE))
    cond = sigma * (NOISE - 2 * alpha) / (0.25 * alpha**2 + sigma**2)
    null = sigma * NOISE / (alpha**2 + sigma**2)
    expected = (NOISE - sigma * (null + 3 * (cond - null))) / alpha
    assert (ddim_sample(prior, "a", NOISE, guidance_scale=3, steps=1) - expected).abs().max() < 1e-10
    assert prior.asked == 2


def test_steps_out_of_range_are_named():
    with pytest.raises(ValueError, match="steps: expected 1 to 1000, got 0"):
        ddim_sample(Gaussian(0.0, 1.0), "a", NOISE, steps=0)
