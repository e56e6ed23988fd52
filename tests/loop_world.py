"""A world for tests of the loop, so small that finite differences are exact, in float64.

The field is eight numbers, a picture x has C h w = 2 * 2 * 2 of them, and the prior is the Gaussian

    p(x | e, camera) = N(e + azimuth / 10, S I)         e (2,): one number per channel

`run` tells what the loop drew; from that `picture`, `sds` and `slope` compute render, gradient and
slopes by other code.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn
from worlds import same as same

from psd_mini import distill, scaled_linear_schedule
from psd_mini.cameras import Cameras, camera_rays

S = 0.3
SCHEDULE = scaled_linear_schedule(400)
WORDS = {"": [0.0, 0.0], "yes": [0.5, -0.5], "no": [-0.25, 1.0]}
ENCODER = torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.5, 1.0]], dtype=torch.float64)
BACKGROUND = torch.tensor([0.2, 0.5, 0.9])
LIKED = torch.tensor([0.9, -0.4, -0.6], dtype=torch.float64)
B, N, RESOLUTION, SAMPLES = 3, 3, 4, 5


def embedding(*words):
    return torch.tensor([WORDS[word] for word in words], dtype=torch.float64)


class Fog(nn.Module):
    """density(p) = softplus(a_0 + a_1 x), colour(p) = sigmoid(c_0 + c_1 z); no pixel is opaque."""

    bound = 1.0

    def __init__(self):
        super().__init__()
        self.density = nn.Parameter(torch.tensor([-0.5, 0.3], dtype=torch.float64))
        self.colour = nn.Parameter(
            torch.tensor([[0.1, -0.2, 0.3], [0.5, 0.4, -0.6]], dtype=torch.float64)
        )

    def forward(self, points):
        colour = torch.sigmoid(self.colour[0] + self.colour[1] * points[:, 2:])
        return F.softplus(self.density[0] + self.density[1] * points[:, 0]), colour

    def parameter_groups(self):
        return [{"params": [self.density], "lr": 0.03}, {"params": [self.colour], "lr": 0.02}]


class World:
    """The prior: x = ENCODER times colours, 2 x 2 pixels pooled. It counts what it is asked."""

    schedule = SCHEDULE

    def __init__(self):
        self.asked = 0

    def embed(self, prompts):
        return embedding(*prompts)

    def encode(self, images):
        return F.avg_pool2d(torch.einsum("ij,bjhw->bihw", ENCODER, images), 2)

    def decode(self, x):
        return torch.einsum("ij,bihw->bjhw", ENCODER, x)

    def draw_cameras(self, n, generator):
        azimuth, elevation = 2 * torch.rand(2, n, generator=generator, dtype=torch.float64) - 1
        # every ray meets the ball
        return Cameras(azimuth, 0.5 * elevation, torch.full_like(azimuth, 3.0), math.radians(20))

    def predict_noise(self, x_t, t, embeddings, cameras):
        self.asked += len(embeddings) * len(x_t)
        alpha_t, sigma_t = SCHEDULE.alpha_sigma(t, x_t)
        mean = embeddings[:, None, :, None, None] + 0.1 * cameras.azimuth.view(-1, 1, 1, 1)
        return sigma_t * (x_t - alpha_t * mean) / (alpha_t**2 * S + sigma_t**2)


class ViewWorld(World):
    """One that words the prompt for each view."""

    def embed_views(self, prompts):
        return self.embed(prompts) + 1.0


class Recorder:
    """A method of three noises that remembers what it was given; it answers zero or as `base`."""

    n_noises = N

    def __init__(self, base=None):
        self.base, self.given = base, []

    def __call__(self, x, t, eps, context):
        given = {"x": x, "t": t, "eps": eps, "context": context}
        self.given.append({**given, "embeddings": context.embeddings.clone()})
        return self.base(x, t, eps, context) if self.base else torch.zeros_like(x)


def liked(images, prompts):
    assert prompts == ["yes"] * len(images)
    return torch.einsum("j,bjhw->b", LIKED, images)


def run(method=None, world=None, callback=None, field=None, **options):
    """The field, the run, and the callback's dictionaries with field and gradient of each step."""
    field = field or Fog()
    seen, before = [], [copy.deepcopy(field)]

    def keep(info):
        gradients = [p.grad.clone() for p in field.parameters() if p.grad is not None]
        after = copy.deepcopy(field)
        seen.append({**info, "before": before[-1], "after": after, "gradients": gradients})
        before.append(seen[-1]["after"])
        if callback:
            callback(info)

    small = {"steps": 2, "cameras_per_step": B, "resolution": RESOLUTION, "n_samples": SAMPLES}
    options = {**small, "progress": False, "callback": keep, **options}
    world, method = world or World(), method or Recorder()
    try:
        return field, distill(field, world, method, "yes", **options), seen
    except Exception as error:
        error.field, error.seen = field, seen
        raise


def drawn(field, cameras, z):
    """rgb (B, 3, 4, 4), opacity (B, 4, 4) and the places in their bins, at the loop's places z.

    w_i = (1 - a_i) prod_{j<i} a_j
    """
    origins, directions = camera_rays(cameras, RESOLUTION, RESOLUTION)
    along = (origins[:, None, None] * directions).sum(-1)
    chord = 2 * (along**2 - (origins**2).sum(-1)[:, None, None] + 1).sqrt()
    points = origins[:, None, None, None] + z[..., None] * directions[..., None, :]
    density, colour = field(points.reshape(-1, 3))
    through = torch.exp(-density.view(z.shape) * chord[..., None] / SAMPLES)
    left = through.cumprod(-1)
    light = ((left / through * (1 - through))[..., None] * colour.view(*z.shape, 3)).sum(-2)
    rgb = (light + left[..., -1:] * BACKGROUND).permute(0, 3, 1, 2)
    places = (z + along[..., None] + chord[..., None] / 2) / chord[..., None]
    return rgb, 1 - left[..., -1], places


def picture(field, cameras, z):
    """x (B, 2, 2, 2) of what is drawn, its opacity and places."""
    rgb, *others = drawn(field, cameras, z)
    return World().encode(rgb), *others


def sds(x, info, mean):
    """G = sigma_t^2 mean_i (eps_cfg_i - eps_i), solved: eps_hat is linear in x and eps here."""
    a = SCHEDULE.alphas_cumprod[info["t"]].view(-1, 1, 1, 1)
    mean = mean[:, None, None] + 0.1 * info["cameras"].azimuth.view(-1, 1, 1, 1)
    residual = (a * (1 - a)).sqrt() * (x - mean) - a * S * info["eps"].mean(0)
    return (1 - a) * residual / (a * S + 1 - a)


def slope(function, field):
    """Central differences of function(field) in every parameter: exact to 1e-9 here."""
    slopes = []
    for p in field.parameters():
        slopes.append(torch.empty_like(p))
        for i in range(p.numel()):
            ends = []
            for step in (1e-5, -1e-5):
                moved = copy.deepcopy(field)
                mine = dict(zip(field.parameters(), moved.parameters(), strict=True))[p]
                mine.data.view(-1)[i] += step
                with torch.no_grad():
                    ends.append(function(moved))
            slopes[-1].data.view(-1)[i] = (ends[0] - ends[1]) / 2e-5
    return slopes
