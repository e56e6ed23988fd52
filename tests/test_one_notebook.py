"""The self-contained notebook and the package write one method twice: same inputs, same numbers."""

import ast
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from count_lines import code_lines

import psd_mini as pm
from psd_mini.distill import opacity_entropy
from psd_mini.negative import negative_loss
from psd_mini.rewards import Colorfulness
from psd_mini.sds import Context
from psd_mini.world.isotropic import isotropic_denoise

PATH = Path(__file__).parents[1] / "notebooks" / "psd_in_one_notebook.ipynb"
NOTEBOOK_04 = PATH.with_name("04_preference_score_distillation.ipynb")
ANGLES = torch.tensor([10.0, 130.0, 255.0]), torch.tensor([5.0, 20.0, 35.0])
T = torch.tensor([970, 950, 930])
CLOSE = {"atol": 1e-6, "rtol": 1e-6}
CONSTANTS = {"BETAS", "ALPHAS_CUMPROD", "TAU", "WORDS", "PAIRS", "KEYS", "COLOURS", "FREE"}
CONSTANTS |= {"BLACK", "OBJECTS", "LIGHT", "LINE", "LOG_P", "LOG_TILTED", "ALPHA", "EPS", "MASS"}


def prose(path):
    """The words of a notebook."""
    return "\n".join(
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
    )


@pytest.fixture(scope="module")
def cells():
    return [
        cell.source for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"
    ]


@pytest.fixture(scope="module")
def one(cells):
    """Imports, functions, classes and constants that need no pictures; nothing else is run."""
    space: dict = {}
    for source in cells:
        for node in ast.parse(source).body:
            targets = [name for target in getattr(node, "targets", []) for name in ast.walk(target)]
            assigned = {name.id for name in targets if isinstance(name, ast.Name)}
            definition = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
            if isinstance(node, definition) or assigned & CONSTANTS:
                exec(compile(ast.Module([node], []), str(PATH), "exec"), space)
    return SimpleNamespace(**space)


class World:
    """The notebook's world as a prior of the package; `means` (B, M, 3, h, w): all pictures."""

    def __init__(self, one, means):
        self.one, self.means, self.schedule = one, means, pm.scaled_linear_schedule()

    def predict_noise(self, x_t, t, embeddings, cameras=None):
        means = self.means.repeat(len(x_t) // len(self.means), 1, 1, 1, 1).flatten(2)
        log_weights = (embeddings @ self.one.KEYS.T.to(embeddings))[:, None].expand(
            -1, len(x_t), -1
        )
        alpha_t, sigma_t = self.schedule.alpha_sigma(t, x_t.flatten(1))
        x0_hat = isotropic_denoise(
            x_t.flatten(1), means, log_weights, self.one.TAU**2, alpha_t, sigma_t
        )
        return self.schedule.eps_from_x0(x_t, x0_hat.view(-1, *x_t.shape), t)

    def decode(self, x):
        return ((x + 1) / 2).clamp(0, 1)


@pytest.fixture(scope="module")
def scene(one):
    """Three views: the world's pictures, a render of a fresh field, and the package's context."""
    means = one.draw_world(*ANGLES).double()
    x = 2 * one.render(one.VoxelField(), *ANGLES)[0].detach().double() - 1
    embeddings = torch.stack(
        (one.embed("mushroom"), torch.randn(len(one.WORDS), generator=seed(3)))
    ).double()
    context = Context(World(one, means), embeddings, None, [""] * 3, Colorfulness())
    return SimpleNamespace(means=means, x=x, e=embeddings[0], n=embeddings[1], context=context)


def noise(number, *shape):
    """What a loop in float32 draws, in float64."""
    return torch.randn(shape, generator=seed(number)).double()


def seed(number):
    return torch.Generator().manual_seed(number)


def test_as_many_lines_of_code_as_it_says(cells):
    """Counted as in the package: no blank, comment or docstring lines; notebook 04 has a limit."""
    count = sum(len(code_lines(source + "\n")) for source in cells)
    assert f"in {count} lines of code" in prose(PATH)
    (limit,) = re.findall(r"in less than (\d+) lines: \[`psd_in_one_notebook`", prose(NOTEBOOK_04))
    assert count < int(limit) == 400


def test_torch_and_matplotlib_only(cells):
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for source in cells
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"torch", "matplotlib"}


def test_schedule(one):
    schedule = pm.scaled_linear_schedule()
    torch.testing.assert_close(one.ALPHAS_CUMPROD, schedule.alphas_cumprod, atol=1e-14, rtol=1e-12)
    for ours, theirs in zip(
        one.alpha_sigma(T, torch.zeros(3)),
        schedule.alpha_sigma(T, torch.zeros(3, 3, 1, 1)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_field_and_renderer(one):
    exact, angles = {"atol": 1e-8, "rtol": 1e-8}, [a.double() for a in ANGLES]
    cameras = pm.Cameras(
        *(a.deg2rad() for a in angles), torch.full((3,), 3.0).double(), math.radians(40.0)
    )
    origin, direction = pm.camera_rays(cameras, 8, 8)
    ours = one.camera_rays(*angles, 8)
    torch.testing.assert_close(ours[0][:, 0, 0], origin, **exact)
    torch.testing.assert_close(ours[1], direction, **exact)
    mine, theirs = one.VoxelField(8).double(), pm.VoxelField(8).double()
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(dict(mine.named_parameters())[name], value, **CLOSE)
    theirs.load_state_dict(mine.state_dict())
    picture, opacity = one.render(mine, *angles, resolution=16, samples=12, generator=seed(0))
    expected = pm.render(theirs, cameras, 16, n_samples=12, generator=seed(0))
    torch.testing.assert_close(picture, expected.rgb, **exact)
    torch.testing.assert_close(opacity, expected.opacity, **exact)


def test_denoiser(one, scene):
    x_t = scene.x + noise(1, *scene.x.shape)
    for t in (T, torch.tensor([5, 300, 999])):
        eps_hat = torch.stack(
            [one.predict_noise(x_t, t, e, scene.means) for e in (scene.e, scene.n)]
        )
        expected = scene.context.prior.predict_noise(x_t, t, torch.stack((scene.e, scene.n)))
        torch.testing.assert_close(eps_hat, expected, **CLOSE)


def test_the_algebra(one):
    a, b = torch.randn(2, 2, 3, 4, 4, generator=seed(0), dtype=torch.float64)
    exact = {"atol": 0.0, "rtol": 0.0}
    torch.testing.assert_close(one.cfg(a, b, 7.5), pm.cfg(a, b, 7.5), **exact)
    torch.testing.assert_close(one.surrogate_loss(a, b), pm.surrogate_loss(a, b), **exact)
    pictures = torch.rand(4, 3, 8, 8, generator=seed(1))
    torch.testing.assert_close(one.reward(pictures), Colorfulness()(pictures), **CLOSE)


@pytest.mark.parametrize("g", [1.0, 2.0])
def test_sds_and_psd_give_the_same_gradient_from_the_same_seed(one, scene, g):
    inputs = scene.x, T, scene.e, scene.n, scene.means
    eps = noise(7, 2, *scene.x.shape)
    expected, _ = pm.SDS(g, n_noises=2)(scene.x, T, eps, scene.context)
    torch.testing.assert_close(one.sds(*inputs, seed(7), g), expected, **CLOSE)

    t = torch.full((3,), 960)
    eps = noise(8, 1, *scene.x.shape)
    expected, _ = pm.PSD(pm.SDS(g))(scene.x, t, eps, scene.context)
    gradient = one.psd(scene.x, t, *inputs[2:], seed(8), g)
    torch.testing.assert_close(gradient, expected, **CLOSE)
    assert (gradient - one.psd(scene.x, t, *inputs[2:], seed(8), g, lam=0.0)).abs().max() > 1e-3


def test_the_field_gets_the_same_gradient(one, scene):
    """Through renderer, surrogate and entropy: the derivative with respect to every voxel."""
    gradient = 0.1 * torch.randn(scene.x.shape, generator=seed(2))
    mine, theirs = one.VoxelField(8), pm.VoxelField(8)
    scenery = {
        "AZIMUTH": ANGLES[0],
        "ELEVATION": ANGLES[1],
        "WORLD": scene.means.float(),
        "POOL": 3,
        "STEPS": 4,
    }
    one.one_loss.__globals__.update(scenery)
    one.one_loss(mine, lambda *_: gradient, 0, scene.e, None, seed(5)).backward()

    generator = seed(5)
    order = torch.randperm(3, generator=generator)
    rendering = pm.render(theirs, pm.orbit(*ANGLES)[order], 32, n_samples=24, generator=generator)
    x = 2 * rendering.rgb - 1
    (
        pm.surrogate_loss(x, gradient) + 0.01 * x[0].numel() * opacity_entropy(rendering.opacity)
    ).backward()
    for ours, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-6, rtol=1e-4)


def test_the_negative_embedding_gets_the_same_gradient(one, scene):
    n = scene.n.clone().requires_grad_()
    eps = noise(4, *scene.x.shape)
    loss = negative_loss(n, scene.x, T, eps[None], scene.context, 2.0)
    (expected,) = torch.autograd.grad(loss, n)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(
        one.negative_gradient(n, scene.x, T, eps, scene.e, scene.means, 2.0), expected, **CLOSE
    )


def line(one):
    """The notebook's two kinds of picture on a line, as a mixture of the package."""
    schedule = pm.NoiseSchedule(torch.tensor([one.ALPHA**2]).double())
    means = torch.tensor([[-1.0], [1.2]]).double()
    return pm.GaussianMixture([0.5, 0.5], means, [0.1, 0.1], schedule)


def test_on_the_line_sums_are_the_closed_forms(one):
    """eps_hat of the prior and of the tilted prior, at the notebook's one noise level."""
    assert abs(one.ALPHA**2 + one.SIGMA**2 - 1) < 1e-12
    x_t, t = torch.linspace(-2.5, 2.5, 11).double(), torch.zeros(11, dtype=torch.long)
    tilted, _ = line(one).tilt_linear(torch.ones(1).double(), one.BETA)
    for prior, log_prior in ((line(one), one.LOG_P), (tilted, one.LOG_TILTED)):
        expected = prior.predict_noise(x_t[:, None], t)[0, :, 0]
        torch.testing.assert_close(one.noise_1d(x_t, log_prior), expected, atol=1e-6, rtol=1e-6)


def test_on_the_line_pairs_are_covariances(one):
    """2 Cov(R, h) = -2 (alpha / sigma) Var(x0_hat) over the noises; random pairs agree."""
    x = torch.tensor([-1.0, 0.3, 1.5]).double()
    x0_hat = (
        line(one)
        .denoise(
            (one.ALPHA * x[:, None] + one.SIGMA * one.EPS).view(-1, 1),
            torch.zeros(3 * len(one.EPS), dtype=torch.long),
        )[0]
        .view(3, -1)
    )
    variance = x0_hat.square() @ one.MASS - (x0_hat @ one.MASS).square()
    cov_eps = (x0_hat * one.EPS) @ one.MASS
    _, with_h, with_raw = one.averages(x)
    expected = -2 * one.ALPHA / one.SIGMA * variance
    torch.testing.assert_close(with_h, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(with_raw, expected + 2 * cov_eps, atol=1e-6, rtol=1e-6)
    for k, value in enumerate(x):
        pairs = one.by_pairs(value, 20_000, 7)
        error = pairs.std(1) / 20_000**0.5
        away = (pairs.mean(1) - torch.stack((with_h[k], with_raw[k]))).abs()
        # exact: within four standard errors
        assert (away < 4 * error).all()


def test_ten_lines_are_psd(cells):
    """Between the two marks: ten statements' lines, comments not counted."""
    (source,) = (cell for cell in cells if "the ten lines that are PSD" in cell)
    _, inside, _ = re.split(r"^ *# -{20,}.*$", source, flags=re.MULTILINE)
    assert len([row for row in inside.splitlines() if row.strip()]) == 10
