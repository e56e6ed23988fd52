"""The noise schedule: its algebra in float64, against plain formulas and against diffusers."""

import math
from types import SimpleNamespace

import pytest
import torch

from psd_mini import SDS, ToyWorldPrior, VoxelField, distill
from psd_mini.schedule import NoiseSchedule, annealed, sample_timesteps, scaled_linear_schedule
from psd_mini.world.pool import make_views, pool_cameras

pytestmark = pytest.mark.algebra

T = 1000
SCHEDULE = scaled_linear_schedule(T)
ALL = torch.arange(T)


def batch(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_abar_is_the_running_product_of_one_minus_beta():
    """abar_t = prod_{s<=t} (1 - beta_s), by a loop of floats.

    beta_t = (sqrt(b0) + t/(T-1) (sqrt(b1) - sqrt(b0)))^2
    """
    product = 1.0
    for t in range(T):
        product *= (
            1 - (math.sqrt(0.00085) + t / (T - 1) * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2
        )
        assert SCHEDULE.alphas_cumprod[t].item() == pytest.approx(product, rel=1e-12)
    assert SCHEDULE.num_timesteps == T and SCHEDULE.alphas_cumprod.dtype == torch.float64
    assert scaled_linear_schedule(1, 0.1, 0.2).alphas_cumprod.tolist() == pytest.approx(
        [0.9], rel=1e-14
    )
    # exact: the same code on the same numbers, the defaults are Stable Diffusion's
    assert torch.equal(scaled_linear_schedule().alphas_cumprod, SCHEDULE.alphas_cumprod)
    betas = 1 - SCHEDULE.alphas_cumprod[1:] / SCHEDULE.alphas_cumprod[:-1]
    torch.testing.assert_close(betas[-1].item(), 0.012, rtol=1e-12, atol=0)


def test_a_scheduler_is_read_by_its_alphas_cumprod():
    """from_diffusers needs this one attribute, and keeps it in float64; one level is a schedule."""
    single = SCHEDULE.alphas_cumprod.float()
    read = NoiseSchedule.from_diffusers(SimpleNamespace(alphas_cumprod=single))
    # exact: float64 holds every float32
    assert read.alphas_cumprod.dtype == torch.float64 and torch.equal(
        read.alphas_cumprod, single.double()
    )
    alpha, sigma = NoiseSchedule(torch.tensor([0.5])).alpha_sigma(torch.tensor([0]), batch(0, 1))
    assert alpha.item() == sigma.item()  # exact: both are the root of 1/2
    betas = torch.tensor([0.1, 0.2, 0.3])  # products of float32 numbers, but in float64
    product = math.prod(1 - beta for beta in betas.tolist())
    assert NoiseSchedule.from_betas(betas).alphas_cumprod[-1].item() == pytest.approx(
        product, rel=1e-14
    )


def test_timesteps_of_any_integer_type():
    """t in int8, int16 and int32 means what it means in int64 (torch has no int16 index)."""
    t, like = torch.tensor([3, 120]), batch(0, 2)
    for kind in (torch.int8, torch.int16, torch.int32):
        for got, expected in zip(
            SCHEDULE.alpha_sigma(t.to(kind), like), SCHEDULE.alpha_sigma(t, like), strict=True
        ):
            assert torch.equal(got, expected)  # exact: the same code on the same numbers


def test_alpha_and_sigma_are_the_roots_of_abar_and_its_complement():
    """alpha_t^2 + sigma_t^2 = 1 and alpha_t^2 = abar_t at every t."""
    alpha_t, sigma_t = SCHEDULE.alpha_sigma(ALL, like=batch(0, T, 2, 3))
    assert alpha_t.shape == sigma_t.shape == (T, 1, 1) and SCHEDULE.alpha_sigma(
        ALL, like=batch(0, T)
    )[0].shape == (T,)
    torch.testing.assert_close(
        alpha_t**2 + sigma_t**2, torch.ones(T, 1, 1).double(), rtol=0, atol=1e-15
    )
    torch.testing.assert_close((alpha_t**2).flatten(), SCHEDULE.alphas_cumprod, rtol=1e-15, atol=0)
    assert bool((alpha_t > 0.06).all()) and bool(
        (sigma_t > 0.02).all()
    )  # sqrt(0.0047), sqrt(0.00085)


def test_log_snr_falls():
    """log SNR = log(alpha_t^2 / sigma_t^2) = log(abar / (1 - abar)), strictly decreasing in t."""
    alpha_t, sigma_t = SCHEDULE.alpha_sigma(ALL, like=batch(0, T))
    log_snr = (alpha_t**2 / sigma_t**2).log()
    expected = [math.log(a / (1 - a)) for a in SCHEDULE.alphas_cumprod.tolist()]
    torch.testing.assert_close(
        log_snr, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    assert bool((log_snr.diff() < -1e-3).all())


def test_every_prediction_gives_every_other_at_every_timestep():
    """eps, x0, v and score determine each other, by the plain definitions.

    x_t = a x + s eps,    v = a eps - s x,    score = -eps / s
    """
    x, eps = batch(1, T, 4), batch(2, T, 4)
    a, s = SCHEDULE.alphas_cumprod.sqrt()[:, None], (1 - SCHEDULE.alphas_cumprod).sqrt()[:, None]
    x_t, v = a * x + s * eps, a * eps - s * x
    for got, expected in (
        (SCHEDULE.add_noise(x, eps, ALL), x_t),
        (SCHEDULE.x0_from_eps(x_t, eps, ALL), x),
        (SCHEDULE.eps_from_x0(x_t, x, ALL), eps),
        (SCHEDULE.eps_from_v(x_t, v, ALL), eps),
        (SCHEDULE.eps_from_score(-eps / s, ALL), eps),
    ):
        # 1e-13: rounding of 1e-16 divided by the smallest alpha_t (0.07) or sigma_t (0.03)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def test_predictions_may_carry_dimensions_in_front_of_the_batch():
    """A stack eps_hat (E, B, ...) beside x_t (B, ...) is converted row by row, also when E = B."""
    x_t, eps_hat, t = batch(3, 2, 3, 4), batch(4, 2, 2, 3, 4), torch.tensor([10, 900])
    for convert in (SCHEDULE.x0_from_eps, SCHEDULE.eps_from_x0, SCHEDULE.eps_from_v):
        rows = torch.stack([convert(x_t, row, t) for row in eps_hat])
        torch.testing.assert_close(convert(x_t, eps_hat, t), rows, rtol=1e-13, atol=1e-13)
    one, two = (SCHEDULE.add_noise(x_t, eps_hat[0], times) for times in (t[:1], t[[0, 0]]))
    torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)


def test_weights():
    """w = sigma^2 = 1 - abar ("sds"), 1 ("uniform"), alpha sigma^2 ("fantasia3d"), at every t."""
    abar, like = SCHEDULE.alphas_cumprod[:, None], batch(5, T, 3)
    for kind, expected in (
        ("sds", 1 - abar),
        ("uniform", abar**0),
        ("fantasia3d", abar.sqrt() * (1 - abar)),
    ):
        torch.testing.assert_close(SCHEDULE.weight(ALL, kind, like), expected, rtol=1e-12, atol=0)


def test_agrees_with_diffusers():
    """add_noise, velocity and denoised sample are those of diffusers' DDPM scheduler."""
    diffusers = pytest.importorskip("diffusers")
    config = dict(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    theirs = diffusers.DDPMScheduler(T, **config)
    ours = NoiseSchedule.from_diffusers(theirs)
    x, eps, t = batch(6, 5, 3, 4, 4), batch(7, 5, 3, 4, 4), torch.tensor([0, 20, 500, 980, 999])
    torch.testing.assert_close(
        ours.add_noise(x, eps, t), theirs.add_noise(x, eps, t), rtol=1e-14, atol=1e-14
    )
    v = theirs.get_velocity(x, eps, t)
    x_t = ours.add_noise(x, eps, t)
    torch.testing.assert_close(ours.eps_from_v(x_t, v, t), eps, rtol=1e-13, atol=1e-13)
    v_scheduler = diffusers.DDPMScheduler(T, prediction_type="v_prediction", **config)
    for i in range(len(t)):
        x0 = theirs.step(eps[i : i + 1], int(t[i]), x_t[i : i + 1]).pred_original_sample
        # diffusers computes this one with float32 roots
        torch.testing.assert_close(
            ours.x0_from_eps(x_t, eps, t)[i : i + 1], x0, rtol=1e-5, atol=1e-5
        )
        x0 = v_scheduler.step(v[i : i + 1], int(t[i]), x_t[i : i + 1]).pred_original_sample
        x0_from_v = ours.x0_from_eps(x_t, ours.eps_from_v(x_t, v, t), t)
        torch.testing.assert_close(x0_from_v[i : i + 1], x0, rtol=1e-5, atol=1e-5)
    # diffusers accumulates the product in float32
    torch.testing.assert_close(ours.alphas_cumprod, SCHEDULE.alphas_cumprod, rtol=1e-4, atol=0)


def test_dtype_follows_the_tensors():
    """float32 in, float32 out; the same numbers to single precision."""
    x, eps, t = batch(8, 3, 4), batch(9, 3, 4), torch.tensor([0, 500, 999], dtype=torch.int32)
    single = SCHEDULE.add_noise(x.float(), eps.float(), t)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), SCHEDULE.add_noise(x, eps, t), rtol=1e-6, atol=1e-6)


def test_timesteps_are_uniform_and_both_ends_are_included():
    """t is uniform on {3, ..., 7}: frequencies are 1/5 within 4 standard errors, seeds repeat."""
    n = 100_000
    t = sample_timesteps(n, 3, 7, torch.Generator().manual_seed(0))
    counts = torch.bincount(t, minlength=9)
    assert t.dtype == torch.int64 and counts[:3].sum() == 0 and counts[8:].sum() == 0
    standard_error = math.sqrt(0.2 * 0.8 / n)
    assert bool(((counts[3:8] / n - 0.2).abs() < 4 * standard_error).all())
    # exact: one seed, one machine, whole numbers
    assert torch.equal(t, sample_timesteps(n, 3, 7, torch.Generator().manual_seed(0)))
    assert sample_timesteps(3, 5, 5, torch.Generator()).tolist() == [5, 5, 5]
    assert sample_timesteps(1, 0, 0, torch.Generator()).tolist() == [0]


def test_annealing_is_linear():
    """t_max(p) = start + p (end - start)."""
    assert [annealed(p, 980, 200) for p in (0, 0.25, 1)] == [980, 785, 200]
    assert annealed(0.5, 0.98, 0.5) == pytest.approx(0.74)


# identity 49
def threestudio(value, step):
    """C([start, v0, v1, end]) of threestudio's configurations: linear inside, constant outside."""
    start, v0, v1, end = value
    return v0 + (v1 - v0) * max(0.0, min(1.0, (step - start) / (end - start)))


def test_annealing_is_the_scheduler_of_threestudio():
    """annealed(progress, v0, v1) is the inside of threestudio's C([s, v0, v1, e]).

        C(step) = v0 + (v1 - v0) clip((step - s) / (e - s), 0, 1)

    Outside, where C is constant, `annealed` refuses and does not extrapolate.

    Source: threestudio (2023), whose configurations anneal t_max from 0.98 to 0.5; MVDream (arXiv
    2308.16512).
    """
    value = [2000, 0.98, 0.5, 8000]
    for step in range(0, 10_001, 250):
        progress = min(max(step - 2000, 0), 6000) / 6000
        assert annealed(progress, 0.98, 0.5) == pytest.approx(threestudio(value, step), abs=1e-14)
    assert {threestudio(value, step) for step in (0, 2000)} == {0.98}
    assert {round(threestudio(value, step), 14) for step in (8000, 10_000)} == {0.5}
    for progress in (-1e-9, 1 + 1e-9, math.nan):
        with pytest.raises(ValueError, match="progress must lie in"):
            annealed(progress, 0.98, 0.5)


def test_loop_anneals_timesteps_as_the_configuration_says():
    """With t_min = t_max, t is round((T - 1) C([0, 0.98, 0.5, steps - 1])(step)) at every step.

    Source: as above; the loop's first and last steps are the ends of the range.
    """
    seen, steps = [], 8
    prior = ToyWorldPrior(views=make_views(pool_cameras(2), 8))
    options = {
        "steps": steps,
        "resolution": 8,
        "n_samples": 4,
        "cameras_per_step": 2,
        "progress": False,
    }
    ends = {"t_min": (0.98, 0.5), "t_max": (0.98, 0.5)}
    distill(
        VoxelField(8),
        prior,
        SDS(),
        "a ball",
        callback=lambda i: seen.append(i["t"].tolist()),
        **options,
        **ends,
    )
    expected = [
        round((T - 1) * threestudio([0, 0.98, 0.5, steps - 1], step)) for step in range(steps)
    ]
    assert (
        seen == [[t, t] for t in expected] and expected[0] == 979 and expected[-1] == round(499.5)
    )
    # a run of steps + 1 would stop short of the end: off by one is seen
    assert expected != [
        round((T - 1) * threestudio([0, 0.98, 0.5, steps], step)) for step in range(steps)
    ]


def test_square_root_schedule_is_annealing_at_the_root_of_progress():
    """HiFA's t(i) = t_max - (t_max - t_min) sqrt(i / N) is annealed(sqrt(i / N), t_max, t_min).

    It falls from t_max to t_min, is convex (it leaves high noise early) and lies below the linear
    schedule. With the square of progress it would be neither convex nor below.

    Source: HiFA (Zhu et al. 2023, arXiv 2305.18766).
    """
    N, t_max, t_min = 50, 0.98, 0.3
    hifa = [t_max - (t_max - t_min) * math.sqrt(i / N) for i in range(N + 1)]
    ours = torch.tensor(
        [annealed(math.sqrt(i / N), t_max, t_min) for i in range(N + 1)], dtype=torch.float64
    )
    torch.testing.assert_close(
        ours, torch.tensor(hifa, dtype=torch.float64), rtol=1e-14, atol=1e-14
    )
    linear = torch.tensor(
        [annealed(i / N, t_max, t_min) for i in range(N + 1)], dtype=torch.float64
    )
    assert ours[0] == pytest.approx(t_max, abs=1e-14) and ours[-1] == pytest.approx(
        t_min, abs=1e-14
    )

    def right(t):
        falls, bends = bool((t.diff() < -1e-9).all()), bool((t.diff().diff() > 1e-9).all())
        return falls and bends and bool((t < linear - 1e-9)[1:-1].all())

    squared = torch.tensor(
        [annealed((i / N) ** 2, t_max, t_min) for i in range(N + 1)], dtype=torch.float64
    )
    assert right(ours) and not right(squared) and not right(linear) and not right(ours.flip(0))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: NoiseSchedule(torch.full((2, 2), 0.5)),
            ValueError,
            r"alphas_cumprod: expected .*, got \(2, 2\)",
        ),
        (
            lambda: NoiseSchedule(torch.tensor([0.9, 0.0])),
            ValueError,
            r"alphas_cumprod must lie in \(0, 1\)",
        ),
        (
            lambda: NoiseSchedule(torch.tensor([1.0, 0.5])),
            ValueError,
            r"alphas_cumprod must lie in \(0, 1\)",
        ),
        (
            lambda: NoiseSchedule(torch.tensor([0.9, math.nan])),
            ValueError,
            "alphas_cumprod: expected finite numbers",
        ),
        (
            lambda: NoiseSchedule(torch.tensor([0.5, 0.9])),
            ValueError,
            "alphas_cumprod must be strictly decreasing",
        ),
        (
            lambda: NoiseSchedule(torch.tensor([0.9, 0.3, 0.5])),
            ValueError,
            "^alphas_cumprod must be strictly decreasing",
        ),
        (
            lambda: NoiseSchedule(torch.tensor([0.5, 0.5])),
            ValueError,
            "alphas_cumprod must be strictly decreasing",
        ),
        (
            lambda: NoiseSchedule.from_betas(torch.tensor([0.1, -0.1])),
            ValueError,
            "betas must lie strictly",
        ),
        (
            lambda: NoiseSchedule.from_betas(torch.tensor([0.1, 0.0])),
            ValueError,
            "betas must lie strictly",
        ),
        (
            lambda: NoiseSchedule.from_betas(torch.tensor([0.1, 1.0])),
            ValueError,
            r"betas must lie .* got 0.1\.\.1",
        ),
        (
            lambda: NoiseSchedule.from_betas(torch.tensor([0.1, 1.5])),
            ValueError,
            "betas must lie strictly",
        ),
        (
            lambda: NoiseSchedule.from_diffusers(object()),
            TypeError,
            "scheduler must have alphas_cumprod, object has none",
        ),
        (
            lambda: SCHEDULE.alpha_sigma(torch.tensor([1000]), batch(0, 2)),
            ValueError,
            r"t must lie in 0..999, got values from 1000",
        ),
        (
            lambda: SCHEDULE.alpha_sigma(torch.tensor([-1, 5]), batch(0, 2)),
            ValueError,
            r"t must lie in 0..999, got values from -1",
        ),
        (
            lambda: SCHEDULE.alpha_sigma(torch.tensor([0.5]), batch(0, 2)),
            TypeError,
            "t: expected an integer tensor",
        ),
        (
            lambda: SCHEDULE.alpha_sigma(5, batch(0, 2)),
            TypeError,
            r"t: expected an integer tensor .* use torch.tensor\(",
        ),  # type: ignore[arg-type]
        (
            lambda: SCHEDULE.alpha_sigma(torch.tensor(5), batch(0, 2)),
            ValueError,
            r"t: expected an integer tensor .*, got \(\) int64",
        ),
        (lambda: SCHEDULE.alpha_sigma(ALL[:3], torch.zeros(2, 4)), ValueError, "t has 3 entries"),
        (
            lambda: SCHEDULE.alpha_sigma(ALL[:2], torch.zeros(2, 4).long()),
            TypeError,
            "like: expected a floating-point tensor",
        ),
        (
            lambda: SCHEDULE.weight(ALL[:2], "dreamfusion", torch.zeros(2, 4)),
            ValueError,
            "kind must be one of sds, uniform, fantasia3d, got",
        ),
        (
            lambda: scaled_linear_schedule(0),
            ValueError,
            "^T: expected a whole number of at least 1, got 0",
        ),
        *[
            (
                lambda b=b: scaled_linear_schedule(9, *b),
                ValueError,
                f"^beta_start, beta_end: .* got {b[0]} and {b[1]}",
            )
            for b in ((0.0, 0.5), (1.0, 0.5), (1.5, 0.5), (0.5, 0.0), (0.5, 1.0), (0.5, 1.5))
        ],
        (lambda: annealed(1.5, 980, 200), ValueError, "progress must lie in"),
        (lambda: sample_timesteps(2, 7, 3, torch.Generator()), ValueError, "0 <= t_min <= t_max"),
        (lambda: sample_timesteps(2, -1, 3, torch.Generator()), ValueError, "0 <= t_min <= t_max"),
        (lambda: sample_timesteps(0, 1, 3, torch.Generator()), ValueError, "batch >= 1"),
        (
            lambda: sample_timesteps(2, 0, 0.98, torch.Generator()),
            TypeError,
            "t_max: expected a whole number, got 0.98",
        ),  # type: ignore[arg-type]
        (
            lambda: sample_timesteps(2, 0.02, 0.98, torch.Generator()),
            TypeError,
            "t_min: expected a whole number, got 0.02",
        ),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named_in_one_line(call, error, message):
    """The error names the argument, says what came, and fits on one line."""
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
