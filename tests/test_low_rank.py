"""q as the prior's own network with low-rank additions. float64, but for diffusers' networks."""

import copy

import pytest
import torch
from plain_mixture import SCHEDULE, close
from tiny_pipeline import tiny_pipeline
from torch import nn
from worlds import normal

from psd_mini import SDS, Context, GaussianMixture, distill, make_field
from psd_mini.methods import VSD, LowRank
from psd_mini.pretrained.stable_diffusion import StableDiffusionPrior
from psd_mini.sds import Prior


class Attention(nn.Module):
    """Linear maps with diffusers' names, a bend, and one that is not to be adapted."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_out = nn.Linear(4, 5), nn.ModuleList([nn.Linear(5, 6)])
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.to_out[0](torch.tanh(self.to_q(x)))))


class SmallPrior(Prior):
    """eps_hat = U(x_t) + 0.1 e, in float64."""

    schedule = SCHEDULE

    def __init__(self):
        torch.manual_seed(0)
        self.unet = Attention().double().requires_grad_(False)

    def predict_noise(self, x_t, t, embeddings, cameras=None):
        answer = self.unet(x_t.flatten(1)).view_as(x_t)
        return answer + 0.1 * embeddings.view(-1, 1, 1, 1, 1)


def case(n=2):
    x, eps = normal(3, 4, 1, 1, seed=1), normal(n, 3, 4, 1, 1, seed=2)
    return x, torch.tensor([100, 500, 800]), eps, Context(SmallPrior(), torch.zeros(2, 1).double())


def with_numbers(own, prior, seed=5):
    """The model with A and B that are not zero, in float64."""
    own.start(prior)
    for place, (name, value) in enumerate(sorted(own.parameters.items())):
        own.parameters[name] = 0.3 * normal(*value.shape, seed=seed + place)
    return own


def changed_weights(unet, parameters):
    """A copy of the network with W + B A written into its weights."""
    other = copy.deepcopy(unet)
    for name in {key.rpartition(".")[0] for key in parameters}:
        a, b = parameters[f"{name}.A"], parameters[f"{name}.B"]
        weight = other.get_submodule(name).weight
        weight.data = weight.data + (b @ a).to(weight)
    return other


@pytest.mark.algebra
def test_the_additions_are_a_change_of_the_weights():
    """eps_psi of the hooks is the answer of a network whose weights are W + B A."""
    x, t, eps, context = case()
    own = with_numbers(LowRank(rank=2), context.prior)
    assert {name.rpartition(".")[0] for name in own.parameters} == {"to_q", "to_out.0"}
    other = SmallPrior()
    other.unet = changed_weights(context.prior.unet, own.parameters)
    x_t = SCHEDULE.add_noise(x, eps, t).flatten(0, 1)
    expected = other.predict_noise(x_t, t.repeat(2), context.embeddings[:1]).view_as(eps)
    close(own.noise(x, t, eps, context), expected)
    plain = context.prior.predict_noise(x_t, t.repeat(2), context.embeddings[:1]).view_as(eps)
    assert (expected - plain).abs().max() > 0.01


@pytest.mark.algebra
def test_a_step_is_the_gradient_of_the_loss():
    """d_psi = -eta grad mean (eps_psi - eps)^2, by central differences in every coordinate."""
    x, t, eps, context = case()
    own = with_numbers(LowRank(rank=2, rate=0.7), context.prior)
    step = own.step(x, t, eps, context)

    def loss(name, index, h):
        moved = torch.zeros_like(own.parameters[name])
        moved.view(-1)[index] = h
        eps_psi = own.noise(x, t, eps, context, {name: moved})
        return (eps_psi - eps).square().mean().item()

    h = 1e-5
    for name, value in own.parameters.items():
        slopes = [(loss(name, i, h) - loss(name, i, -h)) / (2 * h) for i in range(value.numel())]
        expected = -0.7 * torch.tensor(slopes, dtype=torch.float64).view_as(value)
        torch.testing.assert_close(step[name], expected, rtol=1e-7, atol=1e-9)
    before = dict(own.parameters)
    own.update(step)
    close(own.parameters["to_q.B"], before["to_q.B"] + step["to_q.B"])


@pytest.mark.algebra
def test_vsd_begins_as_guidance_alone():
    """At B = 0 eps_q is eps_cond, so G = w (g - 1)(eps_cond - eps_neg), and 0 without guidance."""
    x, t, eps, context = case(1)
    context.embeddings = torch.tensor([[0.5], [0.2]], dtype=torch.float64)
    none = VSD(1.0, weighting="uniform", own=LowRank())(x, t, eps, context)[0]
    close(none, torch.zeros_like(x))
    guided = VSD(3.0, weighting="uniform", own=LowRank())(x, t, eps, context)[0]
    close(guided, torch.full_like(x, (3.0 - 1.0) * 0.1 * (0.5 - 0.2)))


@pytest.mark.algebra
def test_lookahead_with_the_network():
    """L-VSD is the answer after the step; a small h is the derivative along it, and the two differ
    by O(eta^2): a tenth of eta, a hundredth of the difference."""
    x, t, eps, context = case(1)
    gaps = []
    for rate in (0.1, 0.01):
        own = with_numbers(LowRank(rank=2, rate=rate), context.prior)
        after = copy.deepcopy(own)
        after.update(own.step(x, t, eps, context))
        method = VSD(weighting="uniform", own=copy.deepcopy(own), lookahead=1.0)
        eps_cond = SDS(weighting="uniform").predict(x, t, eps, context).eps_cond
        ahead = eps_cond[0] - after.noise(x, t, eps, context)[0]
        close(method(x, t, eps, context)[0], ahead)
        # what a callback sees
        close(context.predictions.eps_hat[-1], after.noise(x, t, eps, context))
        linear = VSD(weighting="uniform", own=copy.deepcopy(own), lookahead=1e-4)
        gaps.append((linear(x, t, eps, context)[0] - ahead).abs().max().item())
    assert 50 < gaps[0] / gaps[1] < 200


@pytest.mark.algebra
def test_it_learns_the_renders():
    """Two hundred steps on one x_t take off more than half of the loss."""
    x, t, eps, context = case()
    own, losses = LowRank(rate=1.0), []
    own.start(context.prior)
    for _ in range(201):
        losses.append((own.noise(x, t, eps, context) - eps).square().mean())
        own.update(own.step(x, t, eps, context))
    assert losses[-1] < 0.5 * losses[0]


def test_what_it_needs_is_named():
    x, t, eps, _ = case(1)
    mixture = GaussianMixture([1.0], torch.zeros(1, 4).double(), 1.0, SCHEDULE)
    context = Context(mixture, torch.zeros(2, 1).double())
    with pytest.raises(ValueError, match=r"prior: expected an object with unet"):
        VSD(own=LowRank())(x, t, eps, context)
    with pytest.raises(ValueError, match="rank"):
        LowRank(rank=0)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline(folder)
    return StableDiffusionPrior.from_pretrained(folder, device="cpu")


def latents(prior, n=1):
    """Latents, timesteps, noises and a context of a real UNet, in float32."""
    x, eps = normal(2, 4, 8, 8, seed=3).float(), normal(n, 2, 4, 8, 8, seed=4).float()
    cameras = prior.draw_cameras(2, torch.Generator().manual_seed(0))
    embeddings = torch.cat((prior.embed_views(["ball"]), prior.embed([""])))
    return x, torch.tensor([300, 700]), eps, Context(prior, embeddings, cameras)


def test_a_unet_of_diffusers(prior):
    """The hooks reach all 4 maps of its 8 attention layers; W + B A there gives the same."""
    x, t, eps, context = latents(prior, n=2)
    own = with_numbers(LowRank(rank=2), prior)
    layers = {name.rpartition(".to_")[0] for name in own.parameters}
    assert len(layers) == 8 and len(own.parameters) == 2 * 4 * len(layers)
    found = own.noise(x, t, eps, context)
    other = copy.copy(prior)
    other.unet = changed_weights(prior.unet, own.parameters)
    context.prior = other
    at = SDS().predict(x, t, eps, context).eps_cond
    torch.testing.assert_close(found, at, rtol=1e-4, atol=1e-4)
    plain = Context(prior, context.embeddings, context.cameras)
    assert (found - SDS().predict(x, t, eps, plain).eps_cond).abs().max() > 0.01


def test_the_prior_stays_as_it_is(prior):
    """Its predictions and its weights before, between and after are the same bits; no gradient."""
    x, t, eps, context = latents(prior)
    weights = copy.deepcopy(prior.unet.state_dict())
    asked = prior.predict_noise(x, t, context.embeddings, context.cameras)
    method = VSD(7.5, own=LowRank(rate=1.0), lookahead=0.1)
    for _ in range(2):
        method(x, t, eps, context)
        again = prior.predict_noise(x, t, context.embeddings, context.cameras)
        assert torch.equal(again, asked)  # exact: the same code on the same numbers
    assert not any(module._forward_hooks for module in prior.unet.modules())
    for name, value in prior.unet.state_dict().items():
        assert torch.equal(value, weights[name])  # exact: never written to
    assert all(p.grad is None and not p.requires_grad for p in prior.unet.parameters())
    assert any(value.any() for name, value in method.own.parameters.items() if name[-1] == "B")


def test_a_run_goes_on_bit_for_bit(prior, tmp_path):
    """A run that is stopped half way and goes on ends with the field of an unbroken one."""
    numbers = {"steps": 4, "cameras_per_step": 2, "resolution": 16, "n_samples": 8}

    def run(field, **more):
        method = VSD(own=LowRank(rate=1.0))
        distill(field, prior, method, "ball", **numbers, progress=False, **more)

    def stop(found):
        if found["step"] == 1:
            raise KeyboardInterrupt

    whole, broken = make_field("voxel", resolution=8), make_field("voxel", resolution=8)
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(broken, checkpoint=tmp_path / "half.pt", callback=stop)
    run(broken, checkpoint=tmp_path / "half.pt", resume=True)
    for a, b in zip(whole.parameters(), broken.parameters(), strict=True):
        assert torch.equal(a, b)  # exact: the same steps, half of them after a resume
