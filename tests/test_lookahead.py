"""The order in which VSD's model is asked and trained: VSD, L-VSD, L2-VSD. float64."""

import pytest
import torch
from plain_mixture import SCHEDULE, close
from torch.func import functional_call, jvp
from worlds import normal

from psd_mini import SDS, Context, GaussianMixture
from psd_mini.methods import VSD, RunningGaussian, ScoreModel

pytestmark = pytest.mark.algebra
S, MU = 0.6, 0.8
PRIOR = GaussianMixture([1.0], torch.full((1, 3), MU, dtype=torch.float64), S, SCHEDULE)


def context():
    return Context(PRIOR, torch.zeros(2, 1).double())


def case(n=2):
    x, eps = normal(n, 3, 1, 1, seed=1), normal(1, n, 3, 1, 1, seed=2)
    return x, torch.full((n,), 600), eps


class Network(ScoreModel):
    """A network eps_psi(x_t) with one step of gradient descent on ||eps_psi(x_t) - eps||^2."""

    def __init__(self, network, eta):
        self.network, self.eta = network.double(), eta
        self.psi = {name: p.detach() for name, p in network.named_parameters()}

    def answer(self, psi, x_t):
        return functional_call(self.network, psi, x_t.flatten(2)).view_as(x_t)

    def x_t(self, x, t, eps):
        return SCHEDULE.add_noise(x, eps, t)

    def step(self, x, t, eps, context):
        x_t = self.x_t(x, t, eps)
        loss = lambda psi: (self.answer(psi, x_t) - eps).square().sum()  # noqa: E731
        slopes = torch.func.grad(loss)(self.psi)
        return {name: -self.eta * slope for name, slope in slopes.items()}

    def noise(self, x, t, eps, context, moved=None):
        psi = {name: p + (moved or {}).get(name, 0) for name, p in self.psi.items()}
        return self.answer(psi, self.x_t(x, t, eps))

    def update(self, step):
        self.psi = {name: p + step[name] for name, p in self.psi.items()}


def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 3)


def bent():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def predicted(network, eta, h):
    """eps_q as VSD subtracts it."""
    x, t, eps = case()
    vsd = VSD(own=Network(network, eta), lookahead=h)
    return vsd.predict(x, t, eps, context()).eps_hat[-1]


def by_forward_mode(network, eta):
    """eps_psi + J d_psi, one pass of forward-mode differentiation."""
    x, t, eps = case()
    model = Network(network, eta)
    step = model.step(x, t, eps, context())
    answer = lambda psi: model.answer(psi, model.x_t(x, t, eps))  # noqa: E731
    value, slope = jvp(answer, (model.psi,), (step,))
    return value + slope


def test_a_small_h_is_the_forward_mode_derivative():
    """Error O(h): a tenth of h gives a tenth of it; h = 1 is what the trained model says."""
    exact = by_forward_mode(bent(), 0.05)
    errors = [(predicted(bent(), 0.05, h) - exact).abs().max().item() for h in (0.1, 0.01, 0.001)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)
    x, t, eps = case()
    model = Network(bent(), 0.05)
    model.update(model.step(x, t, eps, context()))
    close(predicted(bent(), 0.05, 1.0), model.noise(x, t, eps, context()), 1e-10)
    assert (predicted(bent(), 0.05, 0.0) - exact).abs().max() > 0.01


def test_for_a_model_linear_in_its_parameters_all_h_are_one():
    close(predicted(linear(), 0.05, 1.0), by_forward_mode(linear(), 0.05), 1e-10)
    close(predicted(linear(), 0.05, 0.3), predicted(linear(), 0.05, 1.0), 1e-10)


def test_for_another_model_they_differ_by_the_square_of_the_rate():
    gaps = [
        (predicted(bent(), eta, 1.0) - by_forward_mode(bent(), eta)).abs().max().item()
        for eta in (1e-2, 1e-3)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)
    close(predicted(bent(), 0.0, 1.0), predicted(bent(), 0.0, 0.0), 1e-10)  # eta = 0 is VSD


def test_looking_ahead_moves_back_to_sds_by_the_kernel():
    """At the same x_t: eps_q = eps_psi - 2 eta K (eps_psi - eps), K = J J^T; 2 eta K = I is SDS."""
    x, t, eps = case(1)
    model = Network(linear(), 0.05)
    before = model.noise(x, t, eps, context()).flatten()
    answer = lambda psi: model.answer(psi, model.x_t(x, t, eps)).flatten()  # noqa: E731
    jacobian = torch.func.jacrev(answer)(model.psi)
    flat = torch.cat([part.flatten(1) for part in jacobian.values()], 1)
    kernel = flat @ flat.T
    expected = before - 2 * 0.05 * kernel @ (before - eps.flatten())
    vsd = VSD(own=Network(linear(), 0.05), lookahead=0.5)
    close(vsd.predict(x, t, eps, context()).eps_hat[-1].flatten(), expected, 1e-10)
    # K = k I for a linear model at one point
    close(kernel, kernel[0, 0] * torch.eye(3).double(), 1e-10)
    eta = 0.5 / kernel[0, 0].item()
    for weighting in ("uniform", "sds"):
        whole = VSD(1.0, weighting, own=Network(linear(), eta), lookahead=0.5)
        close(whole(x, t, eps, context())[0], SDS(1.0, weighting)(x, t, eps, context())[0], 1e-10)


# one render with a running mean


def numbers(t):
    a = SCHEDULE.alphas_cumprod[t].sqrt()
    s = (1 - a**2).sqrt()
    return (s * a / (a**2 * S + s**2)).item(), (a / s).item()


def recursion(b, c, rate, rho, ahead):
    """(x - mu, m - mu) one step on, by the docstring's two lines, as a matrix."""
    push = c * (1 - rho) if ahead else c
    rows = [[1 - rate * (b - push), -rate * push], [rho, 1 - rho]]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("lookahead", [0.0, 1.0, 0.01])
@pytest.mark.parametrize("t", [150, 400, 800])
def test_vsd_on_one_render_is_the_recursion(lookahead, t):
    """With eps = 0, the mean over eps of what is linear in eps: ten steps are ten products."""
    rho, rate = 0.15, 0.05
    b, c = numbers(t)
    matrix = recursion(b, c, rate, rho, bool(lookahead))
    vsd = VSD(1.0, "uniform", own=RunningGaussian(rho, 0.0), lookahead=lookahead)
    x = torch.full((1, 3, 1, 1), MU + 1.0, dtype=torch.float64)
    vsd.own.parameters[0] = x[0] - 0.2
    state = torch.tensor([1.0, 0.8], dtype=torch.float64)
    for _ in range(10):
        gradient, _ = vsd(x, torch.tensor([t]), 0 * x[None], context())
        x = x - rate * gradient
        state = matrix @ state
    close(x - MU, state[0] + 0 * x, 1e-9)
    close(vsd.own.parameters[0] - MU, state[1] + 0 * x[0], 1e-9)


def test_the_stability_regions_are_the_spectral_radii():
    """VSD: rho (1 - r b) > r (c - b). Looking ahead: rho (1 + r (c - b)) > r (c - b), a larger set.

    20,000 random cases with r b < 1 and c > b; those within 1e-6 of the border are left out.
    """
    generator = torch.Generator().manual_seed(0)
    rho, rate_b, extra = torch.rand(3, 20_000, generator=generator, dtype=torch.float64)
    gap = 2 * extra * torch.rand(20_000, generator=generator, dtype=torch.float64)  # r (c - b)
    stable = {}
    for ahead in (False, True):
        push = (rate_b + gap) * (1 - rho * ahead)
        rows = [1 - rate_b + push, -push, rho, 1 - rho]
        matrices = torch.stack(rows, -1).view(-1, 2, 2)
        radius = torch.linalg.eigvals(matrices).abs().amax(-1)
        margin = rho * (1 + gap if ahead else 1 - rate_b) - gap
        clear = (margin.abs() > 1e-6) & ((radius - 1).abs() > 1e-6)
        assert clear.sum() > 19_000
        assert ((radius < 1) == (margin > 0))[clear].all()
        stable[ahead] = margin > 0
    assert not (stable[False] & ~stable[True]).any() and (stable[True] & ~stable[False]).any()


def test_lookahead_halves_the_push_by_the_rate():
    """G_L - G_SDS = (1 - rho)(G_VSD - G_SDS) for the running mean."""
    x, t, eps = case(1)
    rho, pulls = 0.3, {}
    for h in (0.0, 1.0, 0.01):
        vsd = VSD(2.0, own=RunningGaussian(rho, 0.0), lookahead=h)
        vsd.own.parameters[0] = x[0] + 0.5
        pulls[h] = vsd(x, t, eps, context())[0] - SDS(2.0)(x, t, eps, context())[0]
    close(pulls[1.0], (1 - rho) * pulls[0.0], 1e-10)
    close(pulls[0.01], (1 - rho) * pulls[0.0], 1e-9)
