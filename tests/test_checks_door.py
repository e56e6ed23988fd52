"""What comes before a gradient is judged: imports, constructors, options, methods, names.

Each submission is a small file in a style of code in the wild; most of them are right, so that a
door that stays shut, and one that lets a mistake through, both show.
"""

import re
from dataclasses import dataclass, field

import pytest
import torch

from psd_mini.checks import check_csd, check_renderer
from psd_mini.checks.grading.grader import grade
from psd_mini.checks.grading.missing import named
from psd_mini.checks.grading.names import HELD, option

BODY = """
    t = torch.randint(20, 980, (len({x}),))
    eps = torch.randn_like({x})
    with torch.no_grad():
        x_t = {scheduler}.add_noise({x}, eps, t)
        c, u = {unet}(x_t, t, {c}).sample, {unet}(x_t, t, {u}).sample
        return u + {s} * (c - u) - eps
"""
PIPE = dict(scheduler="self.pipe.scheduler", unet="self.pipe.unet")
PARTS = dict(scheduler="scheduler", unet="unet")
FUNCTION = "def sds(x, cond, uncond, unet, scheduler, guidance_scale):"
MADE = "from diffusers import StableDiffusionPipeline\n"
LOAD = "self.pipe = StableDiffusionPipeline.from_pretrained('sd')\n"


def body(indent=0, x="x", c="cond", u="uncond", s="guidance_scale", **parts):
    text = BODY.format(x=x, c=c, u=u, s=s, **parts)
    return text.replace("\n", "\n" + " " * indent) + "\n"


def function(first, before=""):
    """A right function that imports something first."""
    return f"import torch\n{first}\n{FUNCTION}{before}{body(**PARTS)}"


def kept(init, c="cond", u="uncond", s="guidance_scale", method="sds_loss", x="x", before=""):
    """A class with this constructor; what its method uses is kept there, or passed."""
    passed = ", ".join(name for name in (c, u, s) if "." not in name and name.isidentifier())
    method = f"    def {method}(self, {', '.join(filter(None, (x, passed)))}):"
    return f"import torch\n{MADE}{before}class Guide:\n{init}{method}{body(4, x, c, u, s, **PIPE)}"


OPT = "    def __init__(self, opt):\n        self.opt = opt\n        " + LOAD
DEVICE = f"    def __init__(self, device, fp16, vram_O=False):\n        {LOAD}"
ENCODE = """    def encode(self, text):
        ids = self.pipe.tokenizer(text, return_tensors="pt").input_ids
        return self.pipe.text_encoder(ids)[0]
"""
REGISTERED = """import torch
from dataclasses import dataclass
import threestudio
from threestudio.utils.base import BaseObject
from threestudio.utils.typing import *
from diffusers import StableDiffusionPipeline

@threestudio.register("mine")
class Guide(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        guidance_scale: float = 50.0
        clip: Optional[float] = None
    cfg: Config
    def configure(self):
        self.pipe = StableDiffusionPipeline.from_pretrained("sd")
    def compute_loss(self, latents: Float[Tensor, "B 4 64 64"], cond, uncond):
"""
TREE = """import torch
from dataclasses import dataclass, field
from diffusers import StableDiffusionPipeline
@dataclass
class Inner:
    scale: float = 30.0
    low: int = 20
@dataclass
class Outer:
    inner: Inner
    other: Inner = field(default_factory=Inner)
class Guide:
    def __init__(self, cfg: Outer):
        self.cfg = cfg.inner
        self.pipe = StableDiffusionPipeline.from_pretrained("sd")
    def get_loss(self, latents, cond, uncond):
"""
AUTOGRAD = """import torch
class Push(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, g):
        ctx.g = g
        return x.sum() * 0
    @staticmethod
    def backward(ctx, up):
        return ctx.g * up, None
def _helper(x):
    return x
def guidance_step(latents, pipe, cond, uncond, guidance_scale):
    def direction(x):
"""
LIGHTNING = """import pytorch_lightning as pl
import torch
from diffusers import StableDiffusionPipeline
class Module(pl.LightningModule):
    def __init__(self, hparams):
        super().__init__()
        self.save_hyperparameters()
        self.opt = hparams
        self.pipe = StableDiffusionPipeline.from_pretrained("sd")
        self.to(self.device)
    def training_step(self, batch, batch_idx):
        self.log("loss", 1.0)
        return self.sds_loss(batch, batch, batch)
    def sds_loss(self, latents, cond, uncond):
"""
OMEGA = """    def __init__(self, cfg=None):
        defaults = OmegaConf.create({"model": "sd", "weights": {"scale": 20.0, "other": 1}})
        self.cfg = OmegaConf.merge(defaults, cfg or {})
        self.pipe = StableDiffusionPipeline.from_pretrained(self.cfg.model)
"""
EINOPS = """
    x = rearrange(rearrange(x, "b c h w -> b (h w) c"), "b (h w) c -> b c h w", h=64)
    x = repeat(x, "b c h w -> b r c h w", r=2)[:, 0]"""
NEEDED = "from utils import guided\n" + FUNCTION + "\n    return guided(unet, x) * x\n"
RIGHT = {
    "a library": function("import kornia.geometry as K\nfrom loguru import logger"),
    "names that are used": function(
        "import wandb\nfrom utils import Meter, seed\nmeter = Meter()\nseed(1)",
        "\n    wandb.log({'x': x.norm()})",
    ),
    "neighbours": function("from .utils import seed_all\nfrom ..config import SCALE, Types"),
    "a decorator": function("from jaxtyping_of_mine import checked\n@checked"),
    "a decorator with arguments": function("import registry\n@registry.register('sds', level=1)"),
    "a fallback": function(
        "try:\n    import fast_of_mine\n    HERE = True\nexcept ImportError:\n    HERE = False\n"
        "assert not HERE"
    ),
    "a star": function("from utils import *\nsetup_logging(level)\nassert max(1, 2) == 2"),
    "imported late": function("", "\n    from torchvision import transforms\n    import wandb"),
    "einops": function("from einops import rearrange, repeat", EINOPS),
    "resized": function(
        "import torchvision.transforms.functional as TF\nfrom torchvision.transforms import Resize",
        "\n    x = Resize((64, 64))(TF.resize(x, 64))",
    ),
    "registered": REGISTERED + body(8, "latents", s="self.cfg.guidance_scale", **PIPE),
    "lightning": LIGHTNING + body(8, "latents", s="self.opt.scale", **PIPE),
    "omegaconf": kept(
        OMEGA, s="self.cfg.weights.scale", before="from omegaconf import OmegaConf\n"
    ),
    "device and half": kept(DEVICE),
    "options": kept(
        OPT + "        assert not opt.lambda_clip > 0 and not opt.debug and opt['other'] is not 1\n"
        "        self.low, self.high = int(1000 * opt.t_min), int(opt.max_step)\n"
        "        assert (self.low, self.high) == (20, 980)\n",
        s="self.opt.guidance",
    ),
    "dataclasses": TREE + body(8, "latents", s="self.cfg.scale", **PIPE),
    "versions": kept(
        "    def __init__(self, device, sd_version, hf_key=None, t_range=[0.02, 0.98]):\n"
        "        key = hf_key or {'1.5': 'a', '2.1': 'b'}[sd_version]\n        " + LOAD
    ),
    "guidance in the constructor": kept(
        f"    def __init__(self, device='cuda', scale=9):\n        self.s = scale\n        {LOAD}",
        s="self.s",
    ),
    "embeddings in the constructor": kept(
        "    def __init__(self, pipe, text_embeddings):\n        self.pipe = pipe\n"
        "        self.u, self.c = text_embeddings.chunk(2)\n",
        "self.c.expand(len(x), -1, -1)",
        "self.u.expand(len(x), -1, -1)",
    ),
    "prompts first": kept(
        DEVICE + ENCODE + "    def prepare_text(self, prompt, negative=''):\n"
        "        self.c, self.u = self.encode(prompt), self.encode(negative)\n",
        "self.c.expand(len(x), -1, -1)",
        "self.u.expand(len(x), -1, -1)",
    ),
    "embeddings first": kept(
        OPT + "    def set_text(self, text_z, null_z):\n        self.c, self.u = text_z, null_z\n",
        "self.c.expand(len(x), -1, -1)",
        "self.u.expand(len(x), -1, -1)",
        method="calc_grad",
        x="original_samples",
    ).replace("len(x)", "len(original_samples)"),
    "prompt utilities": function("")
    .replace("cond, uncond, unet", "prompt_utils, azimuth, unet")
    .replace(
        "guidance_scale):",
        "guidance_scale):\n    cond, uncond = prompt_utils.get_text_embeddings(azimuth).chunk(2)",
    ),
    "autograd's function beside": AUTOGRAD
    + body(4, **dict(scheduler="pipe.scheduler", unet="pipe.unet"))
    + "    return Push.apply(latents, direction(latents))\n",
    "another method": kept(
        OPT + "    def noised(self, t):\n        return t\n", method="calculate_sds", x="x_start"
    ),
    "tried out": function(
        "def weight(t):\n    return t\n\ndef distance(x, y):\n    return x - y\n"
    ).replace("def sds", "def guide"),
    "a call": kept(OPT + "    def info(self):\n        return 1\n", method="__call__"),
}
SLIPS = {  # source, words of the cause
    "options, guidance": (kept(OPT, s="(1 + self.opt.guidance)"), "off by one|g \\+ 1"),
    "dataclasses, guidance": (
        TREE + body(8, "latents", s="(1 + self.cfg.scale)", **PIPE),
        "off by one|g \\+ 1",
    ),
    "embeddings swapped": (
        kept(
            OPT + "    def set_text(self, cond, uncond):\n        self.c, self.u = uncond, cond\n",
            "self.c.expand(len(x), -1, -1)",
            "self.u.expand(len(x), -1, -1)",
        ),
        "swapped|away from",
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the grader says of all, by name."""
    folder = tmp_path_factory.mktemp("door")
    sources = RIGHT | {name: source for name, (source, _) in SLIPS.items()}
    sources |= {"needed": NEEDED, "einops too": RIGHT["einops"].replace(" - eps", " + eps")}
    for i, source in enumerate(sources.values()):
        (folder / f"{i}.py").write_text(source)
    paths = [str(folder / f"{i}.py") for i in range(len(sources))]
    return dict(zip(sources, grade(paths, timeout=120), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_right_code_is_called_right(results, name):
    assert results[name]["status"] == "right", (results[name]["causes"], results[name]["output"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLIPS)
def test_a_door_lets_no_mistake_through(results, name):
    assert results[name]["status"] == "wrong"
    assert re.search(SLIPS[name][1], "; ".join(results[name]["causes"])), results[name]["causes"]


def test_what_the_gradient_needs_has_no_stand_in(results):
    assert results["needed"]["status"] == "could not run"
    assert "depends on utils.guided" in results["needed"]["causes"][0]
    assert results["einops too"]["status"] == "wrong"


def test_the_report_says_what_was_stood_in_for(results):
    notes = [f for f in results["a library"]["findings"] if f["name"] == "not installed"]
    assert [note["came"] for note in notes] == ["stood in for: kornia, loguru"]
    assert "its neighbours" in str(results["neighbours"]["findings"])
    assert "not installed" not in str(results["device and half"]["findings"])


def test_options_are_guessed_by_whole_names():
    for name in ("guidance", "guidance_scale", "cfg_scale", "scale"):
        assert option(name) is HELD["guidance_scale"][1]
    for name in ("rescale_factor", "max_grad_norm", "lambda_clip", "loss_fn", "weights"):
        assert option(name) is None
    assert option("min_step_percent") * 1000 == pytest.approx(20)
    assert range(1000)[option("t_max")] == 980


def renderer(white_bkgd, inclusive=False):
    """In NeRF's code: a ReLU, depths, and a switch for a white background."""

    def raw2outputs(sigma, rgb, depth_values, white_bkgd=white_bkgd):
        last = torch.full_like(depth_values[:, :1], 1e10)
        widths = torch.cat((depth_values[:, 1:] - depth_values[:, :-1], last), -1)
        passed = torch.exp(-torch.relu(sigma) * widths)
        one = torch.ones_like(passed[:, :1])
        before = passed if inclusive else torch.cat((one, passed[:, :-1]), -1)
        weights = torch.cumprod(before, -1) * (1 - passed)
        picture = (weights[..., None] * rgb).sum(1)
        return picture + 1 - weights.sum(1, keepdim=True) if white_bkgd else picture

    return raw2outputs


@pytest.mark.parametrize("white", [False, True])
def test_a_switch_for_the_background_keeps_its_default(white):
    assert check_renderer(renderer(white)).ok, check_renderer(renderer(white))
    wrong = check_renderer(renderer(white, inclusive=True))
    assert wrong.status == "wrong" and "transmittance is inclusive" in wrong.causes[0]


def csd_of(sign):
    """CSD whose only embeddings are stacked, [uncond; cond], and that takes no guidance scale."""

    def csd(latents, text_embeddings, unet, scheduler):
        t = torch.randint(20, 980, (len(latents),))
        x_t = scheduler.add_noise(latents, torch.randn_like(latents), t)
        with torch.no_grad():
            both = unet(torch.cat([x_t] * 2), torch.cat([t] * 2), text_embeddings).sample
        uncond, cond = both.chunk(2)
        return sign * (cond - uncond)

    return csd


def test_csd_gets_both_prompts_where_it_takes_one_argument():
    assert check_csd(csd_of(1)).ok, check_csd(csd_of(1))
    assert "sign is flipped" in check_csd(csd_of(-1)).causes[0]


@dataclass
class Inner:
    rank: int = 4


@dataclass
class Outer:
    scale: float = 100.0
    lora: Inner = field(default_factory=Inner)


def test_settings_are_made_of_a_dataclass():
    structured = named("omegaconf", "OmegaConf").structured
    for given in (Outer, Outer()):
        settings = structured(given)
        # exact: it is handed on as it was given
        assert (settings.scale, settings.lora.rank) == (100.0, 4)
    with pytest.raises(AttributeError, match="have no guidance"):
        assert settings.guidance
