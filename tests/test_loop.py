"""The loop against its equations, and what it hands on, in the tiny world of loop_world.py."""

import math

import pytest
import torch
from loop_world import (
    BACKGROUND,
    ENCODER,
    LIKED,
    SAMPLES,
    SCHEDULE,
    B,
    Fog,
    N,
    Recorder,
    ViewWorld,
    World,
    embedding,
    liked,
    picture,
    run,
    same,
    sds,
    slope,
)
from torch import nn

from psd_mini import SDS
from psd_mini._internal.runs import NonFiniteError
from psd_mini.negative import NegativeEmbedding

GUIDANCE = 2.5


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("optimised", "entropy_weight", "opacity_weight", "lr_scale"),
    [(False, 0.7, 0.0, (0.5, 0.1)), (True, 0.7, 0.3, (0.5, 0.1)), (False, 0.0, 0.4, 2.0)],
)
def test_a_step_goes_down_the_documented_loss(optimised, entropy_weight, opacity_weight, lr_scale):
    """dL/dfield of the documented loss, and Adam's first two steps.

    L = (1/B) 0.5 ||x - (x - G)||^2
        + C h w { entropy_weight H(opacity) + opacity_weight mean(opacity) }
    """
    negative = NegativeEmbedding(embedding("")[0], GUIDANCE) if optimised else None
    options = {
        "negative": negative,
        "reward": liked,
        "background": BACKGROUND,
        "negative_prompt": "no",
        "entropy_weight": entropy_weight,
        "opacity_weight": opacity_weight,
    }
    method = Recorder(SDS(GUIDANCE, n_noises=N))
    _, _, seen = run(method, **options, lr_scale=lr_scale)
    for info, given in zip(seen, method.given, strict=True):
        x, opacity, places = picture(info["before"], info["cameras"], info["rendering"].z)
        assert x.shape == (B, 2, 2, 2) and opacity.min() > 0.1 and opacity.max() < 0.95
        # one place in each of the bins, at random
        offsets = SAMPLES * places - torch.arange(SAMPLES)
        assert -1e-9 < offsets.min() < 0.2 and 0.8 < offsets.max() < 1 + 1e-9
        prompt, pushed = given["embeddings"]
        # eps_neg + g (eps_cond - eps_neg), and eps_hat is affine in the mean
        gradient = sds(x, info, pushed + GUIDANCE * (prompt - pushed)).detach()
        target = (x - gradient).detach()

        def loss(field, info=info, target=target):
            x, o, _ = picture(field, info["cameras"], info["rendering"].z)
            entropy = -(o * o.log() + (1 - o) * (1 - o).log()).mean()
            extra = entropy_weight * entropy + opacity_weight * o.mean()
            return 0.5 * (x - target).square().sum() / 3 + 8 * extra

        for name, expected in {"x": x, "gradient": gradient, "loss": loss(info["before"])}.items():
            torch.testing.assert_close(info[name], expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(info["rendering"].opacity[:, 0], opacity, rtol=1e-7, atol=1e-9)
        for computed, expected in zip(info["gradients"], slope(loss, info["before"]), strict=True):
            torch.testing.assert_close(computed, expected, rtol=1e-6, atol=1e-8)
    scales = lr_scale if isinstance(lr_scale, tuple) else (lr_scale, lr_scale)
    fields = seen[0]["before"], seen[0]["after"], seen[1]["after"]
    rows = zip(
        *(field.parameters() for field in fields),
        *(info["gradients"] for info in seen),
        strict=True,
    )
    for (start, first, second, g_1, g_2), lr in zip(
        rows, (0.03 * scales[0], 0.02 * scales[1]), strict=True
    ):
        torch.testing.assert_close(first, start - lr * g_1.sign(), rtol=1e-7, atol=1e-9)
        # m / sqrt(v), both without their bias
        move = (0.9 * g_1 + g_2) / 1.9 / ((0.99 * g_1**2 + g_2**2) / 1.99).sqrt()
        torch.testing.assert_close(second, first - lr * move, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("world", [World, ViewWorld])
@pytest.mark.parametrize("negative_prompt", ["", "no"])
def test_the_method_is_given_the_prompt_and_the_negative_prompt(world, negative_prompt):
    """embeddings = [prompt, negative prompt]; only the prompt is worded for views.

    The rest of the context is what the step is about.
    """
    method = Recorder()
    _, run_, seen = run(method, world(), negative_prompt=negative_prompt, reward=liked)
    expected = embedding("yes", negative_prompt) + torch.tensor(
        [[float(world is ViewWorld)], [0.0]]
    )
    for info, given in zip(seen, method.given, strict=True):
        torch.testing.assert_close(given["embeddings"], expected)
        # exact: handed on as they are
        assert all(torch.equal(given[name], info[name]) for name in ("x", "t", "eps"))
        assert not given["x"].requires_grad
        context = given["context"]
        assert (
            context is info["context"]
            and context.cameras is info["cameras"]
            and len(context.cameras) == B
        )
        assert (
            context.prompts == ["yes"] * B and context.reward is liked and context.cost is run_.cost
        )
        assert isinstance(context.prior, world)


@pytest.mark.parametrize(
    ("window", "moves"), [((0.0, 1.0), (1, 1)), ((0.5, 1.0), (0, 1)), ((0.0, 0.5), (1, 0))]
)
def test_a_negative_embedding_moves_before_the_method_is_asked(window, moves):
    """embeddings = [prompt, n]; n goes down where that raises the reward, at first by lr.

    r = sum <LIKED, decode(x0_hat)> falls with n where ENCODER LIKED > 0 and g > 1.
    `negative_prompt` is replaced.
    """
    start = torch.tensor([0.3, 0.2], dtype=torch.float64)
    negative, method = NegativeEmbedding(start, GUIDANCE, lr=0.125, steps=window), Recorder()
    _, run_, seen = run(method, negative=negative, reward=liked, negative_prompt="no")
    down = -(ENCODER @ LIKED).sign()
    previous = start
    for given, record, moved in zip(method.given, run_.history, moves, strict=True):
        torch.testing.assert_close(given["embeddings"][0], embedding("yes")[0])
        n = given["embeddings"][1]
        assert torch.equal(n != previous, torch.full((2,), bool(moved))) and (
            "negative_norm" in record
        ) == bool(moved)
        if moved and torch.equal(previous, start):
            torch.testing.assert_close(n, start + 0.125 * down, rtol=1e-6, atol=1e-6)
        previous = n
    # exact: a copy of the same bits
    assert torch.equal(previous, negative.embedding.detach()) and seen[0]["negative"] is negative


def test_noises_are_independent_and_standard_normal():
    """Noises: mean 0, variance 1, fourth moment 3, no correlation; to 5 standard errors."""
    method = Recorder()
    method.n_noises = 2000
    run(method)
    eps = torch.stack([given["eps"] for given in method.given])
    assert eps.shape == (2, 2000, B, 2, 2, 2) and eps.dtype == torch.float64
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs((eps**power).mean() - moment) < 5 * (variance / eps.numel()) ** 0.5
    for dim in range(eps.ndim):
        product = eps * eps.roll(1, dim)
        assert abs(product.mean()) < 5 * (2 / eps.numel()) ** 0.5, (
            dim
        )  # with two entries each product is there twice
    plain = run(lambda x, t, eps, context: torch.zeros_like(x))[2]
    assert all(info["eps"].shape == (1, B, 2, 2, 2) for info in plain)


def test_timesteps_are_uniform_between_moving_bounds():
    """t in {t_min(step), ..., t_max(step)}: whole timesteps, both ends included, linear."""
    t_min, t_max = (100 / 399, 200 / 399), (102 / 399, 202 / 399)
    seen = run(cameras_per_step=64, steps=3, t_min=t_min, t_max=t_max)[2]
    assert [sorted(set(info["t"].tolist())) for info in seen] == [
        [n, n + 1, n + 2] for n in (100, 150, 200)
    ]
    bounds = 0.0999, 0.6  # of 399: 39.86 and 239.4
    seen = run(t_min=bounds, t_max=bounds)[2]
    assert [info["t"].tolist() for info in seen] == [[40] * B, [239] * B]
    assert run(steps=1, t_min=bounds, t_max=bounds)[2][0]["t"].tolist() == [40] * B


def test_a_method_can_have_one_timestep_for_all_pictures():
    method = Recorder()
    method.shared_timestep = True
    shared, own = (
        torch.stack([info["t"] for info in run(m, steps=4)[2]]) for m in (method, Recorder())
    )
    assert shared.shape == own.shape == (4, B)
    # exact: timesteps are whole numbers
    assert (shared == shared[:, :1]).all() and len(set(shared[:, 0].tolist())) > 1
    # exact: timesteps are whole numbers
    assert not (own == own[:, :1]).all()


def test_the_seed_makes_every_choice():
    """Cameras, places along rays, t, noises, n's own draws: torch's global generator has no say."""

    def drawn(seed, elsewhere):
        torch.manual_seed(elsewhere)
        negative = NegativeEmbedding(embedding("")[0], GUIDANCE)
        seen = run(seed=seed, negative=negative, reward=liked)[2]
        drawn = [[i["cameras"].azimuth, i["rendering"].z, i["t"], i["eps"]] for i in seen]
        return [*drawn[0], *drawn[1], negative.embedding.detach()], drawn

    with torch.random.fork_rng():
        (first, by_step), (again, _), (other, _) = drawn(3, 1), drawn(3, 2), drawn(4, 1)
    # exact: the same code with the same seed
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # exact: noises of other seeds differ by far more than rounding
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    # exact: noises of other steps differ by far more than rounding
    assert not any(torch.equal(a, b) for a, b in zip(*by_step, strict=True))


def test_steps_are_recorded_and_paid_for():
    """At the callback the step is in the history; costs are what the prior itself counts."""
    world, checks = World(), []
    negative = NegativeEmbedding(embedding("")[0], GUIDANCE)

    def check(info):
        run_ = info["run"]
        checks.append(
            (
                info["step"],
                run_.steps,
                len(run_.history),
                run_.cost.renders,
                run_.cost.prior_evaluations,
            )
        )
        assert run_.cost.prior_evaluations == world.asked

    _, run_, seen = run(
        SDS(GUIDANCE, n_noises=N), world, check, steps=3, negative=negative, reward=liked
    )
    a_step = 2 * N * B + 2 * B  # prompt and negative prompt for each noise, and both once for n
    assert checks == [(i, i + 1, i + 1, (i + 1) * B, (i + 1) * a_step) for i in range(3)]
    assert set(run_.cost.seconds) == {"total", "render", "prior", "backward"}
    for step, (record, info) in enumerate(zip(run_.history, seen, strict=True)):
        assert record["step"] == step and record["opacity"] == pytest.approx(
            info["rendering"].opacity.mean().item()
        )
        assert record["gradient_rms"] == pytest.approx(
            info["gradient"].square().mean().sqrt().item()
        )
        # exact: n moved by whole steps of Adam
        assert record["negative_norm"] > 0 and record.items() >= info["metrics"].items()
        names = {
            "cameras",
            "rendering",
            "x",
            "t",
            "eps",
            "gradient",
            "loss",
            "field",
            "optimizer",
            "context",
            "negative",
        }
        assert names <= info.keys()
        x_t = SCHEDULE.add_noise(info["x"].detach(), info["eps"], info["t"])
        torch.testing.assert_close(info["context"].predictions.x_t, x_t)


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_step_that_fails_leaves_the_field_as_the_step_before_made_it(failing):
    """A method's NaN: nothing that was computed before is lost."""
    method = Recorder()
    method.base = lambda x, t, eps, context: x / 0 if len(method.given) > failing else x
    with pytest.raises(
        NonFiniteError,
        match=f"^step {failing}: the method's gradient is not finite.*last good state",
    ) as error:
        run(method, steps=5)
    assert len(error.value.seen) == failing
    assert same(error.value.field, error.value.seen[-1]["after"] if failing else Fog())


def test_a_gradient_whose_square_overflows_is_named_by_the_loss():
    """1e200 is a float64 and its square is not: Adam would divide by infinity and stand still."""
    message = "^step 0: the loss .half the squared gradient. is not finite"
    with pytest.raises(NonFiniteError, match=message) as error:
        run(lambda x, t, eps, context: torch.full_like(x, 1e200))
    assert same(error.value.field, Fog())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"field": nn.Linear(1, 1)}, "radiance_field: expected an object with parameter_groups; "),
        ({"world": nn.Identity()}, "prior: expected an object with schedule, embed, encode, "),
        ({"negative": nn.Identity()}, "negative: expected an object with step, embedding, state_d"),
    ],
)
def test_what_lacks_something_is_named(given, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        run(**given)


def test_a_step_that_makes_the_field_infinite_is_taken_back():
    """An infinite learning rate in step 1, noticed in step 2: the field is as step 1 found it."""

    def explode(info):
        for group in info["optimizer"].param_groups:
            group["lr"] = math.inf

    with pytest.raises(
        NonFiniteError, match="^step 2: field.density is not finite.*last good state"
    ) as error:
        run(steps=5, callback=lambda info: explode(info) if info["step"] == 0 else None)
    assert not error.value.seen[1]["after"].density.isfinite().any()
    assert same(error.value.field, error.value.seen[0]["after"]) and not same(
        error.value.field, Fog()
    )


def test_what_no_ray_meets_is_put_back_too():
    """NaN that no picture shows: the next step names it, and no copy of it is handed back."""
    field = Fog()
    field.corner = nn.Parameter(torch.ones(1))

    def spoil(info):
        field.corner.data.fill_(math.nan if info["step"] == 1 else 1.0)

    message = "^step 2: field.corner is not finite.*last good state"
    with pytest.raises(NonFiniteError, match=message):
        run(field=field, steps=5, callback=spoil)
    # exact: no gradient reaches it, so its bits are those of the start
    assert field.corner.item() == 1.0


class Counting(Recorder):
    """Its answer depends on how often it was asked, which is its state."""

    calls = 0

    def __call__(self, x, t, eps, context):
        self.calls += 1
        return x - 0.1 * self.calls, {"calls": self.calls}

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


@pytest.mark.parametrize(("error", "every", "done"), [(Stop, 2, 2), (KeyboardInterrupt, 50, 4)])
def test_a_checkpoint_is_the_state_between_two_steps(tmp_path, error, every, done):
    """Stopped in step 3 and resumed: field, n, method, history, costs are the unbroken run's."""

    def parts(**options):
        negative = NegativeEmbedding(embedding("")[0], GUIDANCE)
        field, run_, seen = run(Counting(), steps=5, negative=negative, reward=liked, **options)
        cost = run_.cost.renders, run_.cost.prior_evaluations
        return (
            [*field.state_dict().values(), negative.embedding],
            (run_.history, run_.steps, cost),
            seen,
        )

    def stop(info):
        if info["step"] == 3:
            raise error

    whole, numbers, _ = parts()
    options = {"checkpoint": tmp_path / "c.pt", "checkpoint_every": every}
    with pytest.raises(error):
        parts(**options, callback=stop)
    for steps_left in (range(done, 5), range(0)):  # the last step writes one too
        resumed, again, seen = parts(**options, resume=True)
        assert [info["step"] for info in seen] == list(steps_left)
        assert again == numbers
        # exact: resumed on one machine with one thread count
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
