# %% [markdown]
# # Preference score distillation in one notebook
#
# A diffusion model can tell you what a picture should look like. Score distillation
# turns that into a 3D object: render, ask the
# model, move the object. *Preference* score distillation (PSD) also asks what people
# would rather see. Here is all of it, nothing
# imported but `torch` and `matplotlib`: a renderer, a diffusion prior that is exactly
# right by construction, SDS, PSD and a
# learnable negative embedding, in 365 lines of code (comments and docstrings not
# counted).
#
# **What you will be able to do**
# - write down the SDS gradient and say what each symbol does
# - explain why adding a reward's pixel gradient goes wrong, and see it
# - build the PSD gradient from two noises and one comparison
# - find out what a learned negative embedding has learned
#
# **Minutes and hardware:** 30 minutes to read, about two minutes to run on a laptop's
# CPU. No GPU, no downloads, no weights.
#
# Everything on this page is ours to check: the world is small enough that every
# expectation has a known value. The idea of PSD is
# published (arXiv 2603.01594), its exact formulas and constants are not. Section 6 is a
# **reconstruction**, and says where.

# %%
import functools
import math
import os

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

FAST = bool(os.environ.get("PSD_MINI_FAST"))  # for automatic tests: a few steps only
STEPS = 4 if FAST else 80
plt.rcParams.update({"figure.dpi": 90, "figure.facecolor": "white", "font.size": 9})

# %% [markdown]
# ## 1. A field, and what a camera sees of it
#
# A *field* says for every point of space how much light it stops (density $\rho$) and
# what colour it has. A ray collects
#
# $$\text{rgb} = \sum_i w_i c_i + \Big(1 - \sum_i w_i\Big)\, b, \qquad w_i = T_i -
# T_{i+1}, \qquad
# T_i = \exp\Big(-\sum_{j<i} \rho_j \delta_j\Big)$$
#
# $T_i$ is the light that is left when it reaches sample $i$, so $w_i$ is the share that
# stops there; what passes everything shows the
# background $b$, which is white here. First the rays, one through each pixel of a
# camera that circles the origin:


# %%
def camera_rays(azimuth, elevation, resolution, distance=3.0, fov=40.0):
    """Rays of B cameras (angles in degrees): origins, unit directions (B, R, R, 3)."""
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    origin = distance * torch.stack(
        (e.cos() * a.cos(), e.cos() * a.sin(), e.sin()), dim=-1
    )
    forward = F.normalize(-origin, dim=-1)
    up_z = torch.tensor([0.0, 0.0, 1.0]).to(forward).expand_as(forward)
    right = F.normalize(torch.linalg.cross(forward, up_z), dim=-1)
    up = torch.linalg.cross(right, forward)
    s = (2 * torch.arange(resolution) + 1) / resolution - 1  # -1 .. 1 across
    across, down = s[None, None, :, None], s[None, :, None, None]
    tangent = math.tan(math.radians(fov) / 2)
    direction = forward[:, None, None] + tangent * (
        across * right[:, None, None] - down * up[:, None, None]
    )
    return origin[:, None, None].expand_as(direction), F.normalize(direction, dim=-1)


# %% [markdown]
# Then the samples along each ray. They are placed inside the unit ball, because that is
# where objects live; rays that miss the ball
# are not evaluated.


# %%
def samples_in_ball(origin, direction, samples, generator):
    """Rays that hit the ball (H,), their depths (H, samples), bin widths (H, 1)."""
    middle = -(origin * direction).sum(-1)
    nearest = origin + middle[:, None] * direction
    half = (1 - (nearest**2).sum(-1)).clamp(min=0).sqrt()
    hit = (half > 0).nonzero()[:, 0]
    jitter = torch.full((len(hit), samples), 0.5)
    if generator is not None:
        jitter = torch.rand(len(hit), samples, generator=generator)
    width = (2 * half[hit] / samples)[:, None]
    z = (middle - half)[hit, None] + width * (torch.arange(samples) + jitter)
    return hit, z, width


# %% [markdown]
# The field is asked at all samples at once, and the weights $w_i$ add up its colours:


# %%
def render(field, azimuth, elevation, resolution=32, samples=24, generator=None):
    """Pictures (B, C, R, R) and opacity (B, 1, R, R) of a field, R the resolution.

    A field takes points (N, 3) and returns density (N,) and colour (N, C).
    """
    rays = camera_rays(azimuth, elevation, resolution)
    origin, direction = (v.reshape(-1, 3) for v in rays)
    hit, z, width = samples_in_ball(origin, direction, samples, generator)
    points = origin[hit, None] + z[..., None] * direction[hit, None]
    density, colour = field(points.reshape(-1, 3))
    optical_depth = torch.cumsum(density.view(z.shape) * width, dim=-1)
    stopped = -torch.expm1(-optical_depth)  # 1 - T_{i+1}
    none_yet = torch.zeros_like(stopped[:, :1])
    weights = torch.diff(stopped, dim=-1, prepend=none_yet)  # w_i
    rgb = torch.einsum("ns,nsc->nc", weights, colour.view(*z.shape, -1))
    both = torch.cat((rgb, stopped[:, -1:]), dim=1)
    flat = rgb.new_zeros(len(origin), both.shape[1]).index_copy(0, hit, both)
    flat = flat.view(len(azimuth), resolution, resolution, -1).permute(0, 3, 1, 2)
    return flat[:, :-1] + (1 - flat[:, -1:]), flat[:, -1:]  # in front of white


# %% [markdown]
# The field that we will train is the simplest there is: a grid of numbers,
# interpolated. It starts as a soft grey ball.


# %%
class VoxelField(nn.Module):
    """n^3 nodes: density 10 softplus(interpolated), colour sigmoid(interpolated)."""

    def __init__(self, n=32):
        super().__init__()
        axis = torch.linspace(-1, 1, n)
        nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
        radius = nodes.norm(dim=0)
        self.density = nn.Parameter((4 * (0.8 - radius) - 1)[None, None])
        self.colour = nn.Parameter(torch.zeros(1, 3, n, n, n))

    def forward(self, points):
        grid = torch.cat((self.density, self.colour), dim=1)
        points = points.view(1, 1, 1, -1, 3)
        options = {"align_corners": True, "padding_mode": "border"}
        raw = F.grid_sample(grid, points, **options).view(4, -1)
        return 10 * F.softplus(raw[0]), torch.sigmoid(raw[1:].T)


# %%
def show(rows, labels, titles=None, width=1.0):
    """A grid of pictures: rows of (n, 3, H, W) in [0, 1]."""
    height, length = len(rows), len(rows[0])
    figsize = (width * length, width * height)
    figure, axes = plt.subplots(height, length, figsize=figsize, squeeze=False)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            axes[i, j].imshow(picture.detach().clamp(0, 1).permute(1, 2, 0))
            title = titles[j] if titles and i == 0 else ""
            axes[i, j].set(xticks=[], yticks=[], title=title)
        axes[i, 0].set_ylabel(labels[i], rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    plt.show()


AROUND = torch.arange(0.0, 360.0, 60.0)
DEGREES = [f"{a:.0f}°" for a in AROUND]
show(
    [render(VoxelField(), AROUND, torch.full((6,), 20.0), 48)[0]],
    ["where every\nrun starts"],
    DEGREES,
)

# %% [markdown]
# ## 2. A world that is known exactly
#
# Three objects, each a few ellipsoids with a direction of light baked in. One colour of
# each is free, the others are fixed: a
# mushroom may be red or blue, but its stem is cream. A field may have any number of
# channels, so we draw all six colours at once.

# %%
COLOURS = {
    "red": (0.85, 0.15, 0.15),
    "yellow": (0.95, 0.85, 0.20),
    "green": (0.20, 0.65, 0.25),
    "blue": (0.15, 0.35, 0.85),
    "pink": (0.95, 0.60, 0.80),
    "gray": (0.55, 0.55, 0.55),
}
FREE, CREAM = None, (0.95, 0.90, 0.78)
BLACK, CARROT = (0.15, 0.15, 0.18), (0.95, 0.40, 0.05)
OBJECTS = {  # parts: centre, radii, colour
    "mushroom": [
        ((0, 0, 0.3), (0.75, 0.75, 0.42), FREE),
        ((0, 0, -0.35), (0.27, 0.27, 0.55), CREAM),
    ],
    "snowman": [
        ((0, 0, -0.4), (0.5, 0.5, 0.5), FREE),
        ((0, 0, 0.3), (0.36, 0.36, 0.36), FREE),
        ((0, 0, 0.7), (0.25, 0.25, 0.25), BLACK),
        ((0.4, 0, 0.3), (0.25, 0.1, 0.1), CARROT),
    ],
    "beetle": [
        ((-0.1, 0, 0), (0.75, 0.55, 0.4), FREE),
        ((0.65, 0, 0), (0.25, 0.3, 0.25), BLACK),
    ],
}

# %%
LIGHT = F.normalize(torch.tensor([0.4, 0.5, 0.8]), dim=0)


def true_field(parts):
    """An object as a field; 3 * len(COLOURS) channels show it in every colour."""

    def field(points):
        density, paint = 0.0, 0.0
        for centre, radii, colour in parts:
            q = (points - torch.tensor(centre)) / torch.tensor(radii)
            rho = 80 * torch.sigmoid(20 * (1 - q.norm(dim=-1)))
            normal = F.normalize(q / torch.tensor(radii), dim=-1)
            shade = 0.65 + 0.35 * (normal @ LIGHT).clamp(min=0)
            shades = [colour] * len(COLOURS) if colour else COLOURS.values()
            rgb = torch.tensor(list(shades)).flatten()
            density, paint = density + rho, paint + (rho * shade)[:, None] * rgb
        return density, paint / density[:, None].clamp(min=1e-9)

    return field


# %%
# cameras: azimuths by the golden angle, elevations 0 to 40 degrees
POOL = 12 if FAST else 48
AZIMUTH = (torch.arange(POOL) * 137.50776) % 360
ELEVATION = 40.0 * (torch.arange(POOL) + 0.5) / POOL


@torch.no_grad()
def draw_world(azimuth, elevation):
    """All M pictures at every camera, x = 2 image - 1: (B, M, 3, 32, 32)."""
    pictures = []
    for parts in OBJECTS.values():
        picture, _ = render(true_field(parts), azimuth, elevation, samples=32)
        pictures.append(picture.unflatten(1, (len(COLOURS), 3)))
    return 2 * torch.cat(pictures, dim=1) - 1


WORLD = draw_world(AZIMUTH, ELEVATION)
rows = [(WORLD[5, 6 * i : 6 * i + 6] + 1) / 2 for i in range(3)]
show(rows, list(OBJECTS), list(COLOURS))

# %% [markdown]
# ## 3. The exact diffusion prior
#
# A diffusion model knows its data at every noise level, $x_t = \alpha_t x + \sigma_t
# \varepsilon$. Our data at one camera are the
# pictures $\mu_k$ above, each blurred by a Gaussian of width $\tau$, with weights that
# a *prompt embedding* $e$ chooses:
#
# $$p(x \mid e) = \sum_k w_k\, \mathcal N(x;\, \mu_k, \tau^2 I), \qquad w_k \propto \exp
# \langle e, \text{key}_k \rangle$$
#
# Nothing has to be trained: what a perfect network would answer is a softmax over
# pictures, with $c = \alpha_t^2\tau^2 + \sigma_t^2$:
#
# $$\gamma_k = \operatorname{softmax}_k\Big(\log w_k - \frac{\|x_t - \alpha_t
# \mu_k\|^2}{2c}\Big), \quad
# \hat x_0 = \frac{\sigma_t^2}{c} \sum_k \gamma_k \mu_k + \frac{\alpha_t \tau^2}{c}\,
# x_t, \quad
# \hat\varepsilon = \frac{x_t - \alpha_t \hat x_0}{\sigma_t}$$

# %%
# Stable Diffusion's schedule
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS_CUMPROD = torch.cumprod(1 - BETAS, dim=0)
TAU = 0.1  # kernel width in units of x
WORDS = [*OBJECTS, *COLOURS]
PAIRS = [(name, colour) for name in OBJECTS for colour in COLOURS]
KEYS = torch.tensor([[float(word in pair) for word in WORDS] for pair in PAIRS])


def alpha_sigma(t, x):
    """Signal and noise level of timesteps t (B,), shaped to multiply pictures x."""
    abar = ALPHAS_CUMPROD[t].view(-1, 1, 1, 1)
    return abar.sqrt().to(x), (1 - abar).sqrt().to(x)


def embed(prompt):
    """A prompt's embedding: each of its words adds 10,000 to log-weights."""
    return 1e4 * torch.tensor([float(word in prompt.split()) for word in WORDS])


# %%
def posterior(x_t, t, e, means):
    """gamma_k = P(picture k | x_t, e), (B, M); the arguments are those of `denoise`."""
    alpha_t, sigma_t = alpha_sigma(t, x_t)
    away = x_t[:, None] - alpha_t[:, None] * means
    distance = away.square().flatten(2).sum(-1)  # (B, M)
    c = (alpha_t**2 * TAU**2 + sigma_t**2).view(-1, 1)
    return torch.softmax(KEYS.to(e) @ e - distance / (2 * c), dim=-1)


def denoise(x_t, t, e, means):
    """E[x | x_t, e]: x_t (B, 3, h, w), t (B,), e (V,), means (B, M, 3, h, w)."""
    alpha_t, sigma_t = alpha_sigma(t, x_t)
    c = alpha_t**2 * TAU**2 + sigma_t**2
    mean = torch.einsum("bm,bmchw->bchw", posterior(x_t, t, e, means), means)
    return sigma_t**2 / c * mean + alpha_t * TAU**2 / c * x_t


def predict_noise(x_t, t, e, means):
    """eps_hat = (x_t - alpha_t x0_hat) / sigma_t, as a perfect network answers."""
    alpha_t, sigma_t = alpha_sigma(t, x_t)
    return (x_t - alpha_t * denoise(x_t, t, e, means)) / sigma_t


# %% [markdown]
# **Predict before you run.** Below, a red mushroom is noised to six levels and denoised
# for the prompt "mushroom", which does not say
# which colour. Up to which level will the denoised picture be red? What will it be at
# the very top?

# %%
levels = torch.tensor([200, 500, 800, 900, 950, 999])
x = WORLD[5, :1].expand(6, -1, -1, -1)
alpha_t, sigma_t = alpha_sigma(levels, x)
x_t = alpha_t * x + sigma_t * torch.randn(
    x.shape, generator=torch.Generator().manual_seed(2)
)
x0_hat = denoise(x_t, levels, embed("mushroom"), WORLD[5].expand(6, -1, -1, -1, -1))
show(
    [(x_t + 1) / 2, (x0_hat + 1) / 2],
    ["noisy", "denoised"],
    [f"t = {t}" for t in levels],
)

# %% [markdown]
# The colour survives almost to the top. There chance has a say: at $t = 900$ this noise
# says yellow, another would say something else.
# What is left at the top looks like the mean of all colours. Is red forgotten there?
# The posterior $\gamma_k$, averaged over 300 noises:

# %%
x = WORLD[5, :1].expand(300, -1, -1, -1)
eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
for level in (800, 900, 950, 999):
    t = torch.full((300,), level)
    alpha_t, sigma_t = alpha_sigma(t, x)
    means = WORLD[5].expand(300, -1, -1, -1, -1)
    gamma = posterior(alpha_t * x + sigma_t * eps, t, embed("mushroom"), means)
    alpha, red = alpha_t[0].item(), gamma[:, 0].mean().item()
    print(f"t = {level}: alpha_t {alpha:.2f}, posterior weight of red {red:.2f}")

# %% [markdown]
# Not quite: at $t = 999$ red still has weight 0.34, where a guess among six colours
# would be 0.17. Stable Diffusion's schedule does not end
# in pure noise, but at $\alpha_t = 0.07$. Two pictures can be confused as long as
# $\alpha_t^2 \|\mu_1 - \mu_2\|^2 / \sigma_t^2$ is of order one, and with 3,072 numbers
# a picture that is where almost nothing is left
# of the signal. Keep this in mind for section 6: **a preference can act only where the
# choice is still open.**

# %%
t = torch.arange(0, 1000)
ratio = ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD)
plt.figure(figsize=(6, 2.6))
for colour in ("gray", "blue"):
    difference = WORLD[:, 0] - WORLD[:, list(COLOURS).index(colour)]
    apart = difference.square().flatten(1).sum(-1).mean()
    plt.semilogy(t, apart * ratio, label=f"red or {colour}?")
plt.axhspan(0.1, 10, color="gold", alpha=0.3, label="open")
plt.gca().set(xlabel="timestep t", ylabel="signal / noise")
plt.legend()
plt.show()

# %% [markdown]
# ## 4. Score distillation sampling (SDS)
#
# Render the field, whose parameters are $\theta$, to a picture $x$; add noise; ask the
# prior what noise it sees; move the picture by the difference:
#
# $$G = w(t)\,\big(\hat\varepsilon(x_t; y) - \varepsilon\big) =
# w(t)\,\frac{\alpha_t}{\sigma_t}\,\big(x - \hat x_0\big),
# \qquad \theta \leftarrow \theta - \eta\, G^{\top} \frac{\partial x}{\partial \theta}$$
#
# The second form says it all: descent moves the render towards the denoised picture.
# With classifier-free guidance the prediction is
# pushed away from a negative prompt $n$: $\hat\varepsilon_{\text{cfg}} =
# \hat\varepsilon_n + g\,(\hat\varepsilon_y -
# \hat\varepsilon_n)$, and $g = 1$ is no guidance. The derivation is in notebook 02; SDS
# is arXiv 2209.14988, guidance 2207.12598.


# %%
def cfg(eps_cond, eps_neg, guidance_scale):
    """Classifier-free guidance; 1 is the conditional prediction, 0 the negative one."""
    return eps_neg + guidance_scale * (eps_cond - eps_neg)


def sds_gradient(eps_cond, eps_neg, eps, guidance_scale, weight_t=1.0):
    """G = w(t) (eps_cfg - eps)."""
    return weight_t * (cfg(eps_cond, eps_neg, guidance_scale) - eps)


def surrogate_loss(x, gradient):
    """0.5 |x - stopgrad(x - G)|^2 / batch, whose gradient in x is G / batch."""
    return 0.5 * (x - (x - gradient).detach()).square().sum() / len(x)


# %%
def guided_noise(x, t, eps, e, n, means, guidance_scale):
    """x_t and the guided prediction in it."""
    alpha_t, sigma_t = alpha_sigma(t, x)
    x_t = alpha_t * x + sigma_t * eps
    eps_neg = predict_noise(x_t, t, n, means) if guidance_scale != 1 else 0.0
    return x_t, cfg(predict_noise(x_t, t, e, means), eps_neg, guidance_scale)


def sds(x, t, e, n, means, generator, guidance_scale=1.0):
    """SDS as a step of the loop below; it asks the prior twice, as PSD will."""
    eps = torch.randn(2, *x.shape, generator=generator)
    given = e, n, means, guidance_scale
    h = [guided_noise(x, t, eps_i, *given)[1] - eps_i for eps_i in eps]
    return alpha_sigma(t, x)[1] ** 2 * (h[0] + h[1]) / 2  # w(t) = sigma_t^2


# %% [markdown]
# And the loop. The timesteps begin in [0.9, 1] of the schedule and come down to [0.02,
# 0.2]. A small entropy term asks each pixel to be
# either object or background.


# %%
def one_loss(field, method, step, e, negative, generator):
    """One step's loss: the gradient's surrogate, and some entropy of the opacity."""
    cameras = torch.randperm(POOL, generator=generator)[:4]
    angles, means = (AZIMUTH[cameras], ELEVATION[cameras]), WORLD[cameras]
    picture, opacity = render(field, *angles, generator=generator)
    x, progress = 2 * picture - 1, step / max(STEPS - 1, 1)
    n = torch.zeros(len(WORDS))
    if negative is not None:
        n = negative.step(x.detach(), e, means, generator)
    ends = ((0.9, 0.02), (1.0, 0.2))
    low, high = (round(999 * (a + progress * (b - a))) for a, b in ends)
    t = torch.randint(low, high + 1, (1,), generator=generator).expand(len(x))
    with torch.no_grad():
        gradient = method(x, t, e, n, means, generator)
    o = opacity.clamp(1e-3, 1 - 1e-3)
    entropy = -(o * o.log() + (1 - o) * (1 - o).log()).mean()
    return surrogate_loss(x, gradient) + 0.01 * x[0].numel() * entropy


# %%
def distill(method, prompt, seed=0, negative=None):
    """A field whose renders please the prior (and the reward, if there is one)."""
    generator, field = torch.Generator().manual_seed(seed), VoxelField()
    groups = [
        {"params": [field.density], "lr": 0.3},
        {"params": [field.colour], "lr": 0.2},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)
    for step in range(STEPS):
        optimizer.zero_grad()
        one_loss(field, method, step, embed(prompt), negative, generator).backward()
        optimizer.step()
    return field


# %%
def views(field):
    return render(field, AROUND, torch.full((6,), 20.0), 48, samples=64)[0].detach()


fields = {"blue snowman": distill(sds, "blue snowman")}
show([views(field) for field in fields.values()], list(fields), DEGREES)

# %% [markdown]
# The nose is on one side only, the stem of what follows will stay cream: the prior is
# told which camera it looks through, so all views
# agree.
#
# **Predict before you run.** The prompt "mushroom" leaves the colour open, and all six
# colours are equally likely. Which will SDS choose?
# Think of what $\hat x_0$ is at high noise, and which of the six is nearest to that.

# %%
fields["SDS"] = distill(sds, "mushroom")
average = (WORLD[5, :6].mean(0) + 1) / 2
show([views(fields["SDS"])], ["SDS,\n'mushroom'"], DEGREES)
show(
    [torch.stack((average, (WORLD[5, 5] + 1) / 2))],
    [""],
    ["mean of all\ncolours", "gray"],
    width=1.4,
)

# %% [markdown]
# SDS chose gray: at high noise the denoised picture is the mean of the six, and gray is
# the nearest to it.
#
# ## 5. What people prefer, and why pixel gradients go wrong
#
# Let people like colour. Hasler and Süsstrunk (SPIE 5007, 2003) fitted how colourful
# pictures look to ratings by people, in closed form:
#
# $$r = \sqrt{\operatorname{var}(R - G) + \operatorname{var}\big(\tfrac{R+G}{2} -
# B\big)} + 0.3\,
# \sqrt{\operatorname{mean}(R - G)^2 + \operatorname{mean}\big(\tfrac{R+G}{2} -
# B\big)^2}$$
#
# The first idea is to add $-\lambda \nabla_x r(x)$ to the SDS gradient, and to let it
# pull at the pixels.
#
# **Predict before you run.** The reward knows nothing of mushrooms. With a strong
# weight, what is the most colourful thing that can be
# done to one: to the cap, to the stem, to the background?


# %%
def reward(images):
    """Colourfulness of pictures (B, 3, H, W) in [0, 1]: (B,)."""
    red, green, blue = images.flatten(2).unbind(1)
    rg, yb = red - green, (red + green) / 2 - blue
    spread = (rg.var(-1, unbiased=False) + yb.var(-1, unbiased=False) + 1e-12).sqrt()
    return spread + 0.3 * (rg.mean(-1).square() + yb.mean(-1).square() + 1e-12).sqrt()


def pixel_gradient(x, t, e, n, means, generator, strength=1000.0):
    """SDS with the reward's own gradient at the render added in the bracket."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(reward((leaf + 1) / 2).sum(), leaf)
    sigma_t = alpha_sigma(t, x)[1]
    return sds(x, t, e, n, means, generator) - sigma_t**2 * sigma_t * strength * slope


# %%
fields["pixel gradient"] = distill(pixel_gradient, "mushroom")
show(
    [views(fields["SDS"]), views(fields["pixel gradient"])],
    ["SDS", "SDS + pixel\ngradient"],
    DEGREES,
)

# %% [markdown]
# Reward hacking: the cap breaks into patches of pure colours that clash, and the stem,
# which no prompt ever called anything but cream, burns.
# More reward than any true mushroom has, and no mushroom. (This weight is strong on
# purpose. A weight that works exists, but you have to
# know it, and it is another one for another reward. Try a tenth and a hundredth.)
#
# ## 6. PSD: compare, do not differentiate
#
# What should have been done is known. *Reward minus* $\beta$ *KL* has the optimum
# $p^*(x) \propto p(x)\,e^{r(x)/\beta}$, and the noise
# prediction of $p^*$ has, beside the prior's own, a term that reads like guidance
# between winners and losers:
#
# $$\hat\varepsilon^*(x_t) = \hat\varepsilon(x_t; y) + \lambda\,\big[\,\varepsilon(x_t
# \mid \text{win}) - \varepsilon(x_t \mid
# \text{lose})\,\big]$$
#
# Nobody has a denoiser for winners. But two noises on the *same* render denoise to two
# pictures, and the reward can say which is better:
#
# $$h_i = \hat\varepsilon(\alpha_t x + \sigma_t \varepsilon_i) - \varepsilon_i, \qquad
# R_i = r(\hat x_0^{(i)}), \qquad
# G = w(t)\,\Big\{ \tfrac12 (h_1 + h_2) + \lambda(t)\, \omega(R_1 - R_2)\,(h_1 - h_2)
# \Big\}$$
#
# With $\omega = \operatorname{sign}$: since $h = \tfrac{\alpha_t}{\sigma_t}(x - \hat
# x_0)$, descent moves the render from the loser's
# picture to the winner's. Both pictures are the *prior's* ideas, so the pull stays with
# what the prior finds likely, and the reward
# is only asked for a comparison.
#
# > **The paper's:** implicit reward, CFG-like form, pairs of noises ranked by a 2D
# reward, added to score distillation.
# > **Ours:** subtracting each noise, the mean as base, $\lambda(t) = \lambda \sigma_t$,
# opposite noises $\varepsilon_2 =
# > -\varepsilon_1$, one ranking for all views of a step, the range of timesteps.


# %%
def psd_gradient(base, h_1, h_2, omega, lambda_t, weight_t=1.0):
    """G = w(t) ( base + lambda(t) omega (h_1 - h_2) ), omega (B,) odd in R_1 - R_2."""
    return weight_t * (base + lambda_t * omega.view(-1, 1, 1, 1) * (h_1 - h_2))


def psd(x, t, e, n, means, generator, guidance_scale=1.0, strength=1.0):
    """PSD as a step of the loop: opposite noises, one comparison for all views."""
    alpha_t, sigma_t = alpha_sigma(t, x)
    eps = torch.randn(x.shape, generator=generator)
    h, rewards = [], []
    for eps_i in (eps, -eps):
        x_t, eps_hat = guided_noise(x, t, eps_i, e, n, means, guidance_scale)
        h.append(eps_hat - eps_i)
        denoised = ((x_t - sigma_t * eps_hat) / alpha_t / 2 + 0.5).clamp(0, 1)
        rewards.append(reward(denoised).mean())
    omega, base = torch.sign(rewards[0] - rewards[1]).expand(len(x)), (h[0] + h[1]) / 2
    return psd_gradient(base, h[0], h[1], omega, strength * sigma_t, sigma_t**2)


# %% [markdown]
# What the reward compares: one render, two opposite noises at $t = 960$, and the two
# pictures that the prior sees in them.

# %%
camera, t = torch.tensor([5]), torch.tensor([960])
x = 2 * render(VoxelField(), AZIMUTH[camera], ELEVATION[camera])[0].detach() - 1
alpha_t, sigma_t = alpha_sigma(t, x)
eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
x_ts = [alpha_t * x + sigma_t * eps_i for eps_i in (eps, -eps)]
pair = [denoise(x_t, t, embed("mushroom"), WORLD[camera]) for x_t in x_ts]
pictures = [(p[0] + 1) / 2 for p in pair]
titles = ["render", *(f"reward {reward(p[None]).item():.2f}" for p in pictures)]
show([torch.stack([(x[0] + 1) / 2, *pictures])], [""], titles, width=1.6)

# %% [markdown]
# **Predict before you run.** The most colourful of the true mushrooms is red, the next
# yellow. Will PSD find one of them? What happens to the
# stem?

# %%
fields["PSD"] = distill(psd, "mushroom")
names = ["SDS", "pixel gradient", "PSD"]
show(
    [views(fields[name]) for name in names],
    ["SDS", "SDS + pixel\ngradient", "PSD"],
    DEGREES,
)

# %% [markdown]
# Red, the most colourful of those that exist, and the stem is still cream: both
# pictures that are compared are the prior's, and the prior
# has no mushroom with a painted stem. Numbers for the same pictures: the reward, and
# how far the object is from the nearest true one, whatever its colour, seen through
# cameras
# that no run has used. SDS obeys no reward, so its distance says how far off a grid of
# this size is anyway. What is further off is
# invented, and so is a reward above that of every true mushroom.
#
# **Predict before you run.** Where will PSD stand?

# %%
FRESH = torch.arange(0.0, 360.0, 30.0), torch.full((12,), 17.0)
TRUE = (draw_world(*FRESH) + 1) / 2


def measure(field):
    """Mean reward, RMS distance to the nearest (object, colour), and its name."""
    pictures = render(field, *FRESH, samples=64)[0].detach().clamp(0, 1)
    distances = (pictures[:, None] - TRUE).square().mean(dim=(0, 2, 3, 4)).sqrt()
    k = int(distances.argmin())
    name = f"{[*COLOURS][k % 6]} {[*OBJECTS][k // 6]}"
    return reward(pictures).mean().item(), distances[k].item(), name


# %%
plt.figure(figsize=(6, 3.2))
for k, rgb in enumerate(COLOURS.values()):
    plt.scatter(
        reward(TRUE[:, k]).mean(), 0, color=rgb, edgecolor="black", s=70, zorder=3
    )
best = reward(TRUE.flatten(0, 1)).view(12, -1)[:, :6].mean(0).max().item()
print(f"best true mushroom: reward {best:.3f}")
floor = measure(fields["SDS"])[1]
for name, marker in zip(names, "sXP", strict=True):
    score, distance, nearest = measure(fields[name])
    times = f"{distance:.3f} ({distance / floor:.1f} x SDS)"
    print(f"{name:15s} reward {score:.3f}   distance {times} from a {nearest}")
    plt.scatter(score, distance, marker=marker, s=90, label=name)
plt.gca().set(
    xlabel="reward (colourfulness)", ylabel="distance to the nearest true object"
)
plt.legend(title="circles: the true mushrooms")
plt.show()

# %% [markdown]
# PSD stands above the best true mushroom: its reward is 0.363, that of the true red one
# 0.350. It is also 1.7 times as far off as SDS is
# (0.027 against 0.016). So a little of this red is invented: PSD over-saturates, too.
# The pixel gradient is 14.5 times as far off as SDS.

# %% [markdown]
# ## 7. The negative embedding learns too
#
# Guidance pushes away from whatever the negative embedding $n$ describes. Usually a
# person writes it ("ugly, blurry"). PSD optimises it
# along with the object: take the gradient of the reward of the denoised picture with
# respect to $n$,
#
# $$\hat\varepsilon_{\text{cfg}}(n) = \hat\varepsilon(x_t; n) +
# g\,\big(\hat\varepsilon(x_t; y) - \hat\varepsilon(x_t; n)\big), \qquad
# L(n) = -\,r\big(\hat x_0(n)\big), \qquad \|n\| \le \text{radius}$$
#
# At $g = 1$ it has no effect, and without the radius it runs away. It must move early,
# at high noise: once $x_t$ says without doubt which
# colour it is, the derivative is zero. (That the embedding is optimised is the paper's;
# this loss is that of ReNeg, arXiv 2412.19637.)


# %%
class Negative:
    """A learnable negative embedding with a trust region around the null prompt."""

    def __init__(self, guidance_scale=2.0, lr=0.2, radius=6.0):
        self.n = torch.zeros(len(WORDS), requires_grad=True)
        self.guidance_scale, self.radius = guidance_scale, radius
        self.optimizer = torch.optim.Adam([self.n], lr=lr)

    def step(self, x, e, means, generator):
        t = torch.randint(500, 980, (len(x),), generator=generator)
        eps = torch.randn(x.shape, generator=generator)
        self.n.grad = negative_gradient(
            self.n, x, t, eps, e, means, self.guidance_scale
        )
        self.optimizer.step()
        with torch.no_grad():
            length = max(self.n.norm().item(), 1e-12)
            self.n.mul_(min(1.0, self.radius / length))  # trust region
        return self.n.detach()


# %%
def negative_gradient(n, x, t, eps, e, means, guidance_scale):
    """dL/dn of L(n) = - mean reward of the guided denoised pictures."""
    alpha_t, sigma_t = alpha_sigma(t, x)
    with torch.enable_grad():
        x_t, eps_hat = guided_noise(x, t, eps, e, n, means, guidance_scale)
        x0_hat = ((x_t - sigma_t * eps_hat) / alpha_t / 2 + 0.5).clamp(0, 1)
        return torch.autograd.grad(-reward(x0_hat).mean(), n)[0]


# %% [markdown]
# **Predict before you run.** The prompt is "mushroom", guidance 2, no preference pair
# at all: only $n$ sees the reward. Which word will
# $n$ learn to push away from most?

# %%
negative = Negative()
method = functools.partial(sds, guidance_scale=2.0)
fields["negative only"] = distill(method, "mushroom", negative=negative)
learned = negative.n.detach()
measured = measure(fields["negative only"])
print("reward {:.3f}, distance {:.3f} from a {}".format(*measured))
plt.figure(figsize=(6, 2.2))
shades = ["0.4"] * len(OBJECTS) + list(COLOURS.values())
plt.bar(WORDS, learned, color=shades, edgecolor="black")
plt.ylabel("weight in n\n(pushed away from)")
plt.xticks(rotation=30)
plt.show()
show([views(fields["negative only"])], ["SDS + negative\nembedding"], DEGREES)

# %% [markdown]
# Gray it is: $n$ has found the mode in which SDS was stuck, and pushes it out (negative
# bars attract). But which colour comes instead was decided
# by the first steps, and need not be the one that people like best. Both together is
# the whole method: the pair chooses among what the
# prior offers, the embedding changes what it offers.

# %%
negative = Negative()
method = functools.partial(psd, guidance_scale=2.0)
fields["both"] = distill(method, "mushroom", negative=negative)
print("reward {:.3f}, distance {:.3f} from a {}".format(*measure(fields["both"])))
rows = [views(fields[name]) for name in ("PSD", "both")]
show(rows, ["PSD", "PSD + negative\nembedding"], DEGREES)

# %% [markdown]
# ## What to try next
#
# - `distill(psd, "mushroom", seed=1)`: which colour now? And `"beetle"`? Let `STEPS =
# 120`: on our machine red and yellow, which are nearly
#   equally rewarded, then came to share one cap, each from its own side (the beetle
# does so at 80 steps already). Which of the numbers in section 6 tells you, and what
# would cure it?
# - `strength=16.0` in `psd`: compare reward and distance with the most colourful true
# mushroom. What has begun?
# - `pixel_gradient` with strengths 10 and 100. Where does it start to work, where to
# hack?
# - Let the timesteps begin at [0.02, 0.98] in `one_loss`. PSD turns grey: why? (The
# figure at the end of section 3.)
# - Replace `h` by the bare prediction `eps_hat` in the difference of `psd`: the noise
# no longer cancels, and a gray mushroom
#   comes out speckled. (The specks alone lift colourfulness to about 0.11; SDS has
# 0.03, PSD 0.36.) In a world without such a floor it walks *away* from
#   the reward: notebook 04 explains this trap.
# - Another reward: `def reward(images): return images[:, 2].mean((1, 2)) - images[:,
# :2].mean((1, 2, 3))` likes blue.
# - Then the same with a package under it: notebook 02 (where the gradient comes from),
# 04 (preference).
#
# ## References
#
# - Leng, Tu, Cao, Xie, Dong, Wu, Jiang: *Preference Score Distillation*. arXiv
# 2603.01594, 2026.
# - Poole, Jain, Barron, Mildenhall: *DreamFusion: Text-to-3D using 2D Diffusion*. arXiv
# 2209.14988, 2022.
# - Ho, Salimans: *Classifier-Free Diffusion Guidance*. arXiv 2207.12598, 2022.
# - Mildenhall et al.: *NeRF*. arXiv 2003.08934, 2020.
# - Rafailov et al.: *Direct Preference Optimization*. arXiv 2305.18290, 2023.
# - Li et al.: *ReNeg: Learning Negative Embedding with Reward Guidance*. arXiv
# 2412.19637, 2024.
# - Hasler, Süsstrunk: *Measuring Colourfulness in Natural Images*. SPIE 5007, 2003.
