"""Derivation checks against closed forms, the exact world, reports, offline diffusers."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch

from psd_mini import PSD, SDS, GaussianMixture, scaled_linear_schedule
from psd_mini.checks import (
    check_cfg,
    check_gradient,
    check_schedule,
    exact_world,
    gradient_statistics,
    kl_objective,
    numeric_gradient,
    offline_diffusers,
    reward_objective,
)
from psd_mini.checks.grading.stand_ins import Pipeline, Scheduler, UNet
from psd_mini.sds import Context

SCHEDULE = scaled_linear_schedule()
S = torch.tensor([[0.8, 0.3], [0.3, 0.6]], dtype=torch.float64)
MU = torch.tensor([0.4, -1.0], dtype=torch.float64)
GAUSS = GaussianMixture(torch.ones(1), MU[None], S[None], SCHEDULE)
X = torch.tensor([1.5, 0.5], dtype=torch.float64)


def closed_form(t):
    """grad KL = alpha^2 C^-1 (x - mu), and alpha / sigma."""
    abar = SCHEDULE.alphas_cumprod[t]
    gradient = abar * torch.linalg.solve(
        abar * S + (1 - abar) * torch.eye(2, dtype=torch.float64), X - MU
    )
    return gradient, (abar / (1 - abar)).sqrt()


@pytest.mark.parametrize("t", [100, 500, 900])
def test_numeric_gradient_of_the_kl(t):
    exact, _ = closed_form(t)
    estimate = numeric_gradient(kl_objective(GAUSS), X, t, GAUSS)
    assert estimate.agrees(exact)
    assert not estimate.agrees(-exact) and not estimate.agrees(1.05 * exact)


def test_numeric_gradient_of_a_reward_objective():
    """Linear reward: the gradient is beta grad KL - J^T v, with J = alpha d x0_hat / d x_t."""
    v, beta, t = torch.tensor([1.0, 2.0]).double(), 0.5, 400
    abar = SCHEDULE.alphas_cumprod[t]
    jacobian = abar * S @ torch.linalg.inv(abar * S + (1 - abar) * torch.eye(2).double())
    estimate = numeric_gradient(reward_objective(GAUSS, lambda x: x @ v, beta), X, t, GAUSS)
    assert estimate.agrees(beta * closed_form(t)[0] - jacobian.T @ v)


def test_statistics_of_sds():
    """E[G] = sigma / alpha grad KL, Cov = (alpha^2 S C^-1)^2. Twice the gradient is biased."""
    t = 300
    kl, ratio = closed_form(t)
    abar = SCHEDULE.alphas_cumprod[t]
    gain = abar * S @ torch.linalg.inv(abar * S + (1 - abar) * torch.eye(2).double())
    method = SDS(weighting="uniform")
    stats = gradient_statistics(method, t, prior=GAUSS, x=X, reference=kl / ratio)
    assert stats.unbiased
    assert stats.variance == pytest.approx(torch.trace(gain @ gain.T).item(), rel=0.05)
    assert stats.snr == pytest.approx((kl / ratio).square().sum().item() / stats.variance, rel=0.1)
    doubled = gradient_statistics(
        lambda *a: 2 * method(*a)[0], t, prior=GAUSS, x=X, reference=kl / ratio
    )
    assert not doubled.unbiased


def test_the_truth_for_a_preference():
    """Linear reward, one Gaussian: the optimum's mean is mu + S v / beta.

    `reward_objective` is beta times that, because x0_hat's reward is the implicit one here. In a
    mixture it is not, and the two are different objectives.
    """
    v, beta, t = torch.tensor([1.0, 2.0]).double(), 0.5, 400
    abar = SCHEDULE.alphas_cumprod[t]
    exact = abar * torch.linalg.solve(
        abar * S + (1 - abar) * torch.eye(2).double(), X - MU - S @ v / beta
    )
    assert numeric_gradient(kl_objective(GAUSS.tilt_linear(v, beta)[0]), X, t, GAUSS).agrees(exact)
    assert numeric_gradient(reward_objective(GAUSS, lambda x: x @ v, beta), X, t, GAUSS).agrees(
        beta * exact
    )
    two = GaussianMixture(
        torch.ones(2) / 2, torch.stack((MU, -MU)), 0.1 * S.expand(2, 2, 2), SCHEDULE
    )
    optimum = numeric_gradient(kl_objective(two.tilt_linear(v, beta)[0]), X, t, two)
    assert not optimum.agrees(
        numeric_gradient(reward_objective(two, lambda x: x @ v, beta), X, t, two).value / beta
    )


def test_statistics_refuse_to_rank_draws_together():
    """Each draw has a winner of its own, so draws are independent: errors fall as 1 / sqrt(n)."""
    context = Context(
        GAUSS,
        torch.zeros(2, 1, dtype=torch.float64),
        prompts=[""] * 400,
        reward=lambda x, _: x.flatten(1)[:, 0],
    )
    with pytest.raises(ValueError, match="over_views=False"):
        gradient_statistics(PSD(), 500, 400, prior=GAUSS, x=X, context=context)
    several = [
        gradient_statistics(
            PSD(over_views=False),
            500,
            400,
            prior=GAUSS,
            x=X,
            context=context,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in range(40)
    ]
    spread = torch.stack([stats.mean for stats in several]).std(0)
    errors = torch.stack([stats.standard_error for stats in several]).mean(0)
    assert (
        (spread / errors - 1).abs() < 4 / 80**0.5
    ).all()  # a standard deviation of 40 is known to 1 / sqrt(80)


@pytest.mark.slow
def test_check_gradient_tells_direction_from_size():
    reference = lambda x: 2 * x  # noqa: E731
    check_gradient(lambda x: (x**2).sum(), reference).require()
    check_gradient(lambda x: 2 * x, reference, torch.randn(3, 4)).require()
    for wrong, words in (
        (lambda x: (x**2).mean(), "1/16384"),
        (lambda x: -(x**2).sum(), "ascent"),
        (lambda x: 1.176 * 2 * x, "1.176 times the reference: a factor"),
        (lambda x: (x**3).sum(), "another direction"),
        (lambda x: 0 * x, "exactly zero"),
        (lambda x: (x.detach() ** 2).sum(), "no gradient path"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ):
        report = check_gradient(wrong, reference)
        assert not report.ok and words in "; ".join(report.causes), report


def test_the_exact_world_is_a_mixture():
    """exact_world.exact_eps against GaussianMixture with the prompt's own means and variances."""
    e = torch.randn(1, 3, exact_world.WIDTH, generator=torch.Generator().manual_seed(1)).double()
    law = exact_world.law(10)
    means, variances = (
        law.means + e.mean(1) @ law.shift,
        law.variances * torch.exp(e.mean(1) @ law.spread)[0],
    )
    prior = GaussianMixture(exact_world.LOG_WEIGHTS.exp(), means, variances.expand(2, -1), SCHEDULE)
    x_t, t = exact_world.normal(1, 10, seed=3), torch.tensor([420])
    torch.testing.assert_close(
        exact_world.exact_eps(x_t, t, e), prior.predict_noise(x_t, t)[0], rtol=1e-9, atol=1e-9
    )


def test_predictions_are_independent_of_the_batch_and_differentiable():
    x = exact_world.picture(3, 0).requires_grad_()
    e = exact_world.embedding("cond", 3).double().requires_grad_()
    t = torch.tensor([50, 500, 900])
    together = exact_world.exact_eps(x, t, e)
    alone = torch.cat(
        [exact_world.exact_eps(x[i : i + 1], t[i : i + 1], e[i : i + 1]) for i in range(3)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    for gradient in torch.autograd.grad(together.square().sum(), (x, e)):
        assert gradient.abs().max() > 1e-3


def test_report_in_all_forms():
    report = check_cfg(lambda c, u, g: c + g * (c - u))
    assert str(report).count("acts as g + 1") == 1 and repr(report) == str(report)
    assert "<table" in report._repr_html_()
    assert report.to_dict()["ok"] is False and report.to_dict()["causes"] == report.causes
    with pytest.raises(AssertionError, match="s\\+1"):
        report.require()
    assert check_schedule(lambda betas: torch.cumprod(1 - betas, 0)).require().ok


def test_stand_ins_answer_like_diffusers():
    before = {name for name in sys.modules if name.split(".")[0] in ("diffusers", "transformers")}
    with offline_diffusers():
        from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
        from diffusers.utils.import_utils import is_xformers_available

        assert not is_xformers_available()
        pipe = StableDiffusionPipeline.from_pretrained(
            "nobody/nothing", torch_dtype=torch.float16
        ).to("cpu")
        pipe.enable_attention_slicing()
        assert isinstance(pipe.unet, UNet2DConditionModel) and pipe.unet.dtype is torch.float16
        scheduler = DDIMScheduler.from_pretrained("nobody/nothing", subfolder="scheduler")
        x, e = torch.randn(2, 4, 64, 64), torch.randn(2, 77, exact_world.WIDTH)
        for t in (500, torch.tensor(500), torch.tensor([500]), torch.tensor([500, 500])):
            a = pipe.unet(x, t, encoder_hidden_states=e).sample
            torch.testing.assert_close(a, pipe.unet(x, t, e, return_dict=False)[0])
        latents = (
            pipe.vae.encode(torch.rand(1, 3, 512, 512)).latent_dist.sample()
            * pipe.vae.config.scaling_factor
        )
        assert pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.shape == (
            1,
            3,
            512,
            512,
        )
        scheduler.set_timesteps(10)
        assert scheduler.step(a, scheduler.timesteps[0], x).prev_sample.shape == x.shape
        assert pipe.unet.requires_grad_(False).half().to(torch.float32) is pipe.unet
    assert before == {
        name for name in sys.modules if name.split(".")[0] in ("diffusers", "transformers")
    }


def test_importing_the_package_does_not_import_the_checkers():
    code = "import sys, psd_mini; assert 'psd_mini.checks' not in sys.modules"
    code += "; psd_mini.check_sds; assert 'psd_mini.checks' in sys.modules"
    code += "; assert not {'diffusers', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_offline_reaches_classes_that_are_loaded_already(monkeypatch):
    """Classes and libraries that were imported before give stand-ins, within the context only."""
    lazy = type(
        "Lazy", (ModuleType,), {"__dir__": lambda _: ["UNet2DConditionModel", *vars(library)]}
    )
    library, part = lazy("diffusers"), ModuleType("diffusers.schedulers")

    class ConfigMixin:
        @classmethod
        def from_config(cls, config):
            return "real"

        @classmethod
        def from_pretrained(cls, name):
            raise OSError(f"{name}: no network")

    class DDIMScheduler(ConfigMixin):
        pass

    class StableDiffusionPipeline(ConfigMixin):
        pass

    library.StableDiffusionPipeline, part.DDIMScheduler = StableDiffusionPipeline, DDIMScheduler
    monkeypatch.setitem(sys.modules, "diffusers", library)
    monkeypatch.setitem(sys.modules, "diffusers.schedulers", part)
    with offline_diffusers(), offline_diffusers():  # a class is made within a check: nested
        pipe = StableDiffusionPipeline.from_pretrained("id")
        assert isinstance(pipe, Pipeline) and isinstance(
            library.StableDiffusionPipeline.from_pretrained("id"), Pipeline
        )
        assert isinstance(DDIMScheduler.from_config(pipe.scheduler.config), Scheduler)
        assert library.UNet2DConditionModel is UNet
    assert sys.modules["diffusers"] is library and sys.modules["diffusers.schedulers"] is part
    assert DDIMScheduler.from_config({}) == "real" and not {"from_config", "from_pretrained"} & set(
        vars(DDIMScheduler)
    )
    assert library.StableDiffusionPipeline is StableDiffusionPipeline and not hasattr(
        library, "UNet2DConditionModel"
    )
    with pytest.raises(OSError, match="no network"):
        StableDiffusionPipeline.from_pretrained("id")
