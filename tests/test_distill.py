"""The loop goes downhill, one seed gives one result, and a killed run resumes bit for bit."""

import copy
import os
import pickle
import random
import re

import pytest
import torch
from worlds import same, small_world

from psd_mini import PSD, SDS, Regression, ToyWorldPrior, TriplaneField, VoxelField, distill
from psd_mini._internal.files import write_atomically
from psd_mini._internal.identity import identity, spelled
from psd_mini._internal.runs import (
    NonFiniteError,
    open_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from psd_mini.distill import Options
from psd_mini.negative import NegativeEmbedding
from psd_mini.rendering import opacity_entropy
from psd_mini.rewards import make_reward

STEPS = 8


@pytest.fixture(scope="module")
def prior():
    return small_world()


def run(prior, field=None, method=None, steps=STEPS, **options):
    field = field or VoxelField(8)
    options = {"cameras_per_step": 2, "resolution": 8, "n_samples": 8, "progress": False, **options}
    return field, distill(field, prior, method or SDS(), "a red mushroom", steps=steps, **options)


class Stop(Exception):
    pass


def stop_after(step):
    def callback(info):
        if info["step"] == step:
            raise Stop

    return callback


def test_regression_and_sds_reach_the_target(prior):
    """A prompt that leaves nothing open: the distance to the true pictures is at least halved."""

    def distance(field):
        from psd_mini.rendering import render

        target = prior.views.pictures(torch.arange(6))[:, 24]
        with torch.no_grad():
            return (
                (render(field, prior.views.cameras, 8, n_samples=8).rgb - target)
                .square()
                .mean()
                .sqrt()
                .item()
            )

    from psd_mini.world.text import components

    assert components()[24] == ("mushroom", "red")
    start = distance(VoxelField(8))
    for method in (Regression(("mushroom", "red")), SDS(weighting="uniform")):
        field, _ = run(prior, method=method, steps=80)
        assert distance(field) < 0.5 * start, method


def test_same_seed_same_bits_other_seed_other_bits(prior):
    a, b, c = (run(prior, seed=seed)[0] for seed in (3, 3, 4))
    assert same(a, b) and not same(a, c)


@pytest.mark.parametrize("killed_at", [2, 3, 6])
def test_resume_continues_bit_for_bit(prior, tmp_path, killed_at):
    """Unbroken run = run stopped after a step and resumed from its checkpoint; the history too."""
    whole, whole_run = run(prior)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        run(prior, checkpoint=path, checkpoint_every=3, callback=stop_after(killed_at))
    resumable = path.exists()
    assert resumable == (killed_at >= 3)
    resumed, resumed_run = run(prior, checkpoint=path, checkpoint_every=3, resume=resumable)
    assert same(whole, resumed)
    # exact: a run and its resumption, one machine and thread count
    assert whole_run.history == resumed_run.history
    assert whole_run.cost.prior_evaluations == resumed_run.cost.prior_evaluations == 2 * STEPS


def test_method_state_is_in_the_checkpoint(prior, tmp_path):
    """A method that counts its own calls goes on counting after a resume."""

    class Counting(SDS):
        calls = 0

        def __call__(self, *arguments):
            self.calls += 1
            gradient, metrics = super().__call__(*arguments)
            return gradient * (1 + 0.01 * self.calls), metrics

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    whole, _ = run(prior, method=Counting())
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        run(prior, method=Counting(), checkpoint=path, checkpoint_every=3, callback=stop_after(5))
    resumed, _ = run(prior, method=Counting(), checkpoint=path, resume=True)
    assert same(whole, resumed)


def test_nan_is_named_and_costs_nothing(prior, tmp_path):
    """A callback's NaN in the field: the error names step and tensor; the checkpoint is good."""
    path = tmp_path / "checkpoint.pt"
    field = VoxelField(8)

    def poison(info):
        if info["step"] == 4:
            info["field"].colour.data[0, 0, 4, 4, 4] = torch.nan

    with pytest.raises(
        NonFiniteError,
        match="step 5: field.colour is not finite.*last good state.*checkpoint.pt is untouched",
    ):
        run(prior, field, checkpoint=path, checkpoint_every=3, callback=poison)
    assert all(torch.isfinite(value).all() for value in field.state_dict().values())
    before, _ = run(prior)
    resumed, _ = run(prior, checkpoint=path, resume=True)
    assert same(before, resumed)


def test_nan_at_a_checkpoint_step_is_not_written(prior, tmp_path):
    """Poisoned in the very step whose end is a checkpoint: refused before the write."""
    path = tmp_path / "checkpoint.pt"

    def poison(info):
        info["field"].density.data.fill_(torch.inf)

    with pytest.raises(NonFiniteError, match="step 0: field.density is not finite"):
        run(prior, checkpoint=path, checkpoint_every=1, callback=poison)
    assert not path.exists()


def test_nan_from_a_method_is_named(prior):
    class Broken(SDS):
        def __call__(self, x, t, eps, context):
            return torch.full_like(x, torch.nan), {}

    with pytest.raises(NonFiniteError, match="step 0: the method's gradient is not finite"):
        run(prior, method=Broken())


class BrokenPrior(ToyWorldPrior):
    def predict_noise(self, x_t, t, embeddings, cameras):
        return super().predict_noise(x_t, t, embeddings, cameras) * torch.nan


class BrokenSlope(torch.autograd.Function):
    """Brightness, with a NaN for a gradient."""

    @staticmethod
    def forward(context, images):
        context.save_for_backward(images)
        return images.mean((1, 2, 3))

    @staticmethod
    def backward(context, slope):
        return context.saved_tensors[0] * torch.nan


def test_the_first_tensor_with_a_nan_is_named(prior):
    """The error names the source: a prior's NaN is not called the method's or the reward's.

    A reward's is not called the embedding's.
    """
    broken, reward = BrokenPrior(views=prior.views), make_reward("colorfulness")
    for method in (SDS(), PSD()):
        with pytest.raises(
            NonFiniteError, match="step 0: the prior's noise prediction is not finite"
        ):
            run(broken, method=method, reward=reward)
    negative = NegativeEmbedding(prior.embed([""])[0], 2.0)
    with pytest.raises(
        NonFiniteError, match="step 0: the gradient of the negative embedding is not finite"
    ):
        run(
            prior,
            method=SDS(2.0),
            negative=negative,
            reward=lambda images, prompts: BrokenSlope.apply(images),
        )
    assert bool(negative.embedding.isfinite().all())
    field = VoxelField(8)
    field.density.data[0, 0, 0, 0, 0] = torch.nan  # a corner, which no ray meets
    with pytest.raises(NonFiniteError, match="field.density is not finite"):
        run(prior, field)


def test_a_function_as_method_is_known_again_in_another_process(prior, tmp_path):
    """A function is known by its name and code, not by its address in memory.

    Another function of the same name is another method.
    """

    def made(factor):
        source = f"def mine(x, t, eps, context):\n    return {factor} * x, {{}}"
        space = {}
        exec(source, space)
        return space["mine"]

    class Plain:
        def __call__(self, x, t, eps, context):
            return x, {}

    assert identity(made(1.0)) == identity(made(1.0)) != identity(made(2.0))
    assert identity(Plain()) == identity(Plain()) and "0x" not in identity(Plain())
    path = tmp_path / "checkpoint.pt"
    run(prior, method=made(1.0), checkpoint=path)
    run(prior, method=made(1.0), checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="method = 'mine .*this run has 'mine "):
        run(prior, method=made(2.0), checkpoint=path, resume=True)


@pytest.mark.parametrize("lr_scale", [-1.0, (1.0, -0.1)])
def test_a_negative_learning_rate_is_refused(prior, lr_scale):
    with pytest.raises(ValueError, match="lr_scale: expected"):
        run(prior, lr_scale=lr_scale)


def test_checkpoint_of_another_run_is_refused_with_the_difference(prior, tmp_path):
    path = tmp_path / "checkpoint.pt"
    run(prior, checkpoint=path)
    for change, message in (
        ({"seed": 7}, "made with seed = 0, this run has 7"),
        ({"resolution": 16}, "made with resolution = 8, this run has 16"),
        (
            {"method": SDS(3.0)},
            r"method = .SDS\(guidance_scale=1.0.*this run has .SDS\(guidance_scale=3.0",
        ),
        ({"background": 0.0}, "background = '1.0', this run has '0.0'"),
        (
            {"reward": lambda images, prompts: 0 * images.sum((1, 2, 3))},
            "reward = 'None', this run has '<lambda> ",
        ),
        (
            {"field": VoxelField(16)},
            "field = \"VoxelField {'resolution': 8.*this run has \"VoxelField {'resolution': 16",
        ),
        ({"field": TriplaneField(8)}, "field = .VoxelField .*this run has .TriplaneField "),
        ({"config": {"kind": "triplane"}}, "kind = None, this run has 'triplane'"),
        (
            {"prior": ToyWorldPrior(views=prior.views, conditioning="none")},
            r"prior = .*'camera'.*this run has .*'none'",
        ),
        (
            {"prior": prior.tilted(make_reward("colorfulness"), 0.1)},
            "prior = .*this run has 'ToyWorldPrior ",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(**{"prior": prior, **change}, checkpoint=path, resume=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(
            UserWarning, match=f"threads = {threads}, this run has {threads + 1}"
        ) as told:
            run(prior, checkpoint=path, resume=True)
        assert told[0].filename == __file__  # it points at the call, not into the package
    finally:
        torch.set_num_threads(threads)
    state = torch.load(path, weights_only=True)
    torch.save({**state, "config": {**state["config"], "torch": "1.0"}}, path)
    with pytest.warns(UserWarning, match=r"torch = '1.0', this run has '\d.*its bits may differ"):
        run(prior, checkpoint=path, resume=True)
    torch.save({**state, "format": "psd-mini checkpoint 0"}, path)
    with pytest.raises(ValueError, match="is not a 'psd-mini checkpoint 2'"):
        run(prior, checkpoint=path, resume=True)


def test_damaged_and_foreign_checkpoints_are_refused(prior, tmp_path):
    """Truncated, another program's, missing: one line each; a pickle is not executed."""
    path = tmp_path / "checkpoint.pt"
    run(prior, checkpoint=path)
    whole = path.read_bytes()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    cases = {
        "truncated": (whole[: len(whole) // 2], "damaged or not a checkpoint"),
        "empty": (b"", "damaged or not a checkpoint"),
        "text": (b"hello", "damaged or not a checkpoint"),
        "pickle": (pickle.dumps(Evil()), "damaged or not a checkpoint"),
    }
    for content, message in cases.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            run(prior, checkpoint=path, resume=True)
        assert "\n" not in str(error.value)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is not a 'psd-mini checkpoint"):
        run(prior, checkpoint=path, resume=True)
    path.unlink()
    with pytest.raises(ValueError, match="there is no checkpoint"):
        run(prior, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="resume: there is nothing to resume from"):
        run(prior, resume=True)
    assert not (tmp_path / "executed").exists()


def test_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    """The disk is full while a checkpoint is written: the old one is whole, nothing is left."""
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"config": {}, "step": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device; choose a path"):
        write_checkpoint(path, {"config": {}, "step": 2})
    assert read_checkpoint(path, {})["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    with pytest.raises(OSError, match="choose a path in a folder that exists"):
        write_atomically(tmp_path / "nowhere" / "file", b"")


def test_callback_sees_the_intermediates(prior):
    """Each step hands over consistent x, t, eps, gradient and the rest.

    G = w(t) (eps_hat - eps)
    """
    seen = []
    run(prior, steps=2, callback=seen.append)
    info = seen[1]
    assert (
        info["step"] == 1
        and info["eps"].shape == (1, 2, 3, 8, 8)
        and info["rendering"].rgb.shape == (2, 3, 8, 8)
    )
    schedule = prior.schedule
    x, t, eps = info["x"].detach(), info["t"], info["eps"][0]
    x_t = schedule.add_noise(x, eps, t)
    eps_hat = prior.predict_noise(x_t, t, prior.embed(["a red mushroom"]), info["cameras"])[0]
    torch.testing.assert_close(info["context"].predictions.x_t[0], x_t, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        info["context"].predictions.eps_cond[0], eps_hat, rtol=1e-5, atol=1e-5
    )
    weight = (1 - schedule.alphas_cumprod[t]).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(info["gradient"], weight * (eps_hat - eps), rtol=1e-5, atol=1e-5)


def test_timesteps_anneal(prior):
    """t stays in [t_min(step), t_max(step)]; both move linearly from first to last value."""
    seen = []
    run(
        prior,
        steps=6,
        cameras_per_step=6,
        t_min=(0.5, 0.1),
        t_max=(0.9, 0.2),
        callback=lambda info: seen.append(info["t"]),
    )
    for step, t in enumerate(seen):
        assert t.min() >= round((0.5 - 0.4 * step / 5) * 999) and t.max() <= round(
            (0.9 - 0.7 * step / 5) * 999
        )
    assert max(int(t.max()) for t in seen) > 500 > int(seen[-1].max())


def test_costs_are_counted(prior):
    """SDS at g = 1: one evaluation per picture; at g != 1 two; the parts of the time add up."""
    _, plain = run(prior)
    _, guided = run(prior, method=SDS(2.0))
    assert plain.cost.prior_evaluations == plain.cost.renders == 2 * STEPS
    assert guided.cost.prior_evaluations == 4 * STEPS
    assert all(
        seconds >= 0 for seconds in plain.cost.seconds.values()
    )  # exact: a clock that does not run backwards


def test_opacity_entropy():
    """H(o) = -o log o - (1 - o) log(1 - o): log 2 at o = 1/2, symmetric, smallest at 0 and 1."""
    half = opacity_entropy(torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(half, torch.tensor(2.0, dtype=torch.float64).log())
    a, b = (opacity_entropy(torch.tensor([o], dtype=torch.float64)) for o in (0.2, 0.8))
    torch.testing.assert_close(a, b)
    expected = -(0.2 * torch.tensor(0.2).double().log() + 0.8 * torch.tensor(0.8).double().log())
    torch.testing.assert_close(a, expected, rtol=1e-7, atol=1e-9)
    assert opacity_entropy(torch.tensor([0.0, 1.0])) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a whole number of at least 1, got 0"),
        ({"steps": -3}, "steps: expected a whole number of at least 1, got -3"),
        ({"cameras_per_step": 1.5}, "cameras_per_step: expected a whole number"),
        (
            {"t_min": (0.5, 0.5), "t_max": (0.9, 0.2)},
            "t_min, t_max: expected 0 <= t_min <= t_max <= 1 at both ends",
        ),
        ({"t_min": 0.5}, r"t_min: expected \(a finite number, a finite number\), got 0.5"),
        ({"n_samples": 0}, "n_samples: expected a whole number of at least 1"),
    ],
)
def test_bad_values_are_named(prior, options, message):
    with pytest.raises(ValueError, match=message):
        run(prior, **options)


ONE_OR_MORE = ("steps", "cameras_per_step", "resolution", "n_samples")
BOUNDS = "t_min, t_max: expected 0 <= t_min <= t_max <= 1 at both ends, got "
WRONG = [
    *[({name: 0}, f"{name}: expected a whole number of at least 1, got 0") for name in ONE_OR_MORE],
    ({"t_min": (-0.1, 0.1)}, BOUNDS),
    ({"t_max": (0.5, 1.1)}, BOUNDS),
    ({"t_min": (0.1, 0.4), "t_max": (0.9, 0.3)}, f"{BOUNDS}(0.1, 0.4) and (0.9, 0.3)"),
    ({"annealing": "cubic"}, "annealing: 'cubic' is not known; choose from "),
    (
        {"variance_weight": -0.1},
        "variance_weight: expected a finite number of at least 0, got -0.1",
    ),
    ({"opacity_weight": -0.1}, "opacity_weight: expected a finite number of at least 0, got -0.1"),
    ({"lr_scale": -0.1}, "lr_scale: expected a finite number of at least 0, got -0.1"),
    ({"lr_scale": (1.0, -0.1)}, "lr_scale: expected a finite number of at least 0, got -0.1"),
]


@pytest.mark.parametrize(("numbers", "message"), WRONG)
def test_bad_values_of_options(numbers, message):
    with pytest.raises(ValueError) as error:
        Options(**numbers)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_options_at_their_limits_are_no_bad_values():
    """And what identifies a run: every number, the background in full, threads and torch."""
    Options(**dict.fromkeys(ONE_OR_MORE, 1), t_min=(0, 0.3), t_max=(1, 0.3), lr_scale=0.0)
    options = Options(variance_weight=0.5, opacity_weight=0.5, background=torch.tensor([0.1, 0.2]))
    config = options.as_config()
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    assert config == {**vars(options), "background": identity(options.background), **machine}
    assert type(config["torch"]) is str  # a checkpoint is read with weights_only


def test_deterministic_algorithms_are_switched_back(prior):
    before = torch.are_deterministic_algorithms_enabled()
    run(prior, steps=1, callback=lambda info: _assert_deterministic())
    assert torch.are_deterministic_algorithms_enabled() == before


def _assert_deterministic():
    assert torch.are_deterministic_algorithms_enabled()


def test_rewards_of_one_name_are_told_apart():
    """Lambdas with another constant, name or operation have other identities."""
    a, b, c = (
        lambda i, p: i.mean((1, 2, 3)),
        lambda i, p: i.mean((2, 3)),
        lambda i, p: -i.mean((1, 2, 3)),
    )
    d, same_as_a = lambda i, p: i.amax((1, 2, 3)), lambda i, p: i.mean((1, 2, 3))
    assert len({identity(f) for f in (a, b, c, d)}) == 4 and identity(a) == identity(same_as_a)
    assert identity(None) == "None" and identity(make_reward("colorfulness")) == "Colorfulness()"


def test_a_plain_function_is_a_method_and_what_is_no_gradient_is_refused(prior):
    def zero(x, t, eps, context):
        assert eps.shape == (1, *x.shape)
        return torch.zeros_like(x)

    assert same(run(prior, method=zero, entropy_weight=0.0)[0], VoxelField(8))
    for wrong, came in (
        (lambda x, t, eps, context: x.sum(), r"\(\) float32"),
        (lambda x, t, eps, context: (eps, {}), r"\(1, 2, 3, 8, 8\) float32"),
        (lambda x, t, eps, context: x[:1], r"\(1, 3, 8, 8\) float32"),
        (lambda x, t, eps, context: None, "None"),
        (lambda x, t, eps, context: 0.5, "0.5"),
    ):
        with pytest.raises(
            ValueError, match=rf"^method: expected a gradient of shape \(2, 3, 8, 8\), .*got {came}"
        ):
            run(prior, method=wrong)


def test_a_setting_that_only_the_checkpoint_has_is_compared(prior, tmp_path):
    """A run that was made with something that this one does not know is another run."""
    path = tmp_path / "checkpoint.pt"
    run(prior, checkpoint=path, config={"kind": "triplane"})
    with pytest.raises(ValueError, match="made with kind = 'triplane', this run has None"):
        run(prior, checkpoint=path, resume=True)


def changed(state, *names, to=None):
    """A checkpoint with one entry, at the end of a path of names, replaced or taken away."""
    state = copy.deepcopy(state)
    inner = state
    for name in names[:-1]:
        inner = inner[name]
    if to is None:
        del inner[names[-1]]
    else:
        inner[names[-1]] = to
    return state


def test_a_checkpoint_with_wrong_contents_is_refused_in_one_line(prior, tmp_path):
    """Keys missing or too many, other shapes, a step beyond the end: the field stays as it was."""
    path, wide = tmp_path / "checkpoint.pt", torch.zeros(1, 1, 9, 9, 9)
    run(prior, checkpoint=path)
    state = torch.load(path, weights_only=True)
    for bad in (
        *(changed(state, name) for name in ("field", "optimizer", "generator", "progress")),
        changed(state, "field", "density"),
        changed(state, "field", "density", to=wide),
        changed(state, "field", "more", to=wide),
        changed(state, "optimizer", "state", 0, "exp_avg"),
        changed(state, "optimizer", "state", 1, "exp_avg_sq", to=wide),
        changed(state, "progress", "steps", to="three"),
        changed(state, "progress", "history", to="none"),
        changed(state, "progress", "cost", to={"renders": 1, "more": 2}),
        changed(state, "progress", "steps", to=STEPS + 1),
        changed(state, "generator", to=torch.zeros(3)),
    ):
        torch.save(bad, path)
        field = VoxelField(8)
        with pytest.raises(ValueError, match="^resume: .*checkpoint.pt") as error:
            run(prior, field=field, checkpoint=path, resume=True)
        assert "\n" not in str(error.value) and same(field, VoxelField(8))


def test_a_flipped_bit_is_noticed(prior, tmp_path):
    """Anywhere in the file: it is refused in one line, or nothing of the state has changed."""
    path, rng = tmp_path / "checkpoint.pt", random.Random(0)
    run(prior, checkpoint=path)
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    noticed = 0
    for _ in range(50):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            read = open_checkpoint(path)
        except ValueError as error:
            assert re.match("resume: .*checkpoint.pt is", str(error)) and "\n" not in str(error)
            noticed += 1
        else:
            # exact: read from one file
            assert spelled(read) == spelled(state)
    assert noticed > 25
