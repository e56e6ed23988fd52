"""psd_mini: score distillation with human preference, in modules that read like textbook pages.

The book, ten chapters: schedule, cameras, fields, rendering, mixture, sds, rewards, psd, negative,
distill. The rooms beside it: world (the toy world and its judge), methods (the relatives),
pretrained (learned priors and rewards), viz (pictures, meshes), pipelines (generate, compare, the
command line), checks (other people's formulas). A module imports only from those above it.

The names below are what a notebook needs.
"""

from importlib import import_module
from typing import Any

from psd_mini.cameras import Cameras as Cameras
from psd_mini.cameras import camera_rays as camera_rays
from psd_mini.cameras import orbit as orbit
from psd_mini.distill import distill as distill
from psd_mini.fields import TriplaneField as TriplaneField
from psd_mini.fields import VoxelField as VoxelField
from psd_mini.fields import load_field as load_field
from psd_mini.fields import make_field as make_field
from psd_mini.fields import save_field as save_field
from psd_mini.methods import METHODS as METHODS
from psd_mini.methods import Regression as Regression
from psd_mini.mixture import GaussianMixture as GaussianMixture
from psd_mini.pipelines.generate import Generation as Generation
from psd_mini.pipelines.generate import generate as generate
from psd_mini.pretrained import make_prior as make_prior
from psd_mini.pretrained.sampling import ddim_sample as ddim_sample
from psd_mini.psd import PSD as PSD
from psd_mini.psd import omega as omega
from psd_mini.psd import psd_gradient as psd_gradient
from psd_mini.rendering import render as render
from psd_mini.rewards import make_reward as make_reward
from psd_mini.schedule import NoiseSchedule as NoiseSchedule
from psd_mini.schedule import scaled_linear_schedule as scaled_linear_schedule
from psd_mini.sds import CSD as CSD
from psd_mini.sds import SDS as SDS
from psd_mini.sds import Context as Context
from psd_mini.sds import cfg as cfg
from psd_mini.sds import csd_gradient as csd_gradient
from psd_mini.sds import guidance_from_dreamfusion as guidance_from_dreamfusion
from psd_mini.sds import sds_gradient as sds_gradient
from psd_mini.sds import surrogate_loss as surrogate_loss
from psd_mini.viz.curves import curves as curves
from psd_mini.viz.pictures import contact_sheet as contact_sheet
from psd_mini.viz.pictures import render_views as render_views
from psd_mini.world.metrics import judge as judge
from psd_mini.world.prior import ToyWorldPrior as ToyWorldPrior


def __getattr__(name: str) -> Any:
    """Checkers (check_sds, check_psd, ...) load when first used: `psd_mini.checks` lists them."""
    found = None if name.startswith("_") else getattr(import_module("psd_mini.checks"), name, None)
    if not callable(found):
        raise AttributeError(f"module 'psd_mini' has no attribute {name!r}")
    return found
