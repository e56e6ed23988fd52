"""psd_mini: score distillation with human preference, in modules that read like textbook pages.

The ladder of rooms, each importing only from those above it: arguments, files, checkpoint, failures, precision, schedule,
cameras, fields, rendering, world, formulas, rewards, toy, priors, methods, negative, distill, viz, oracle, mesh, viewer,
folders, text_to_3d, compare, bench, growth, checks, cli. The names below are what a notebook needs; those of
`psd_mini.checks` load when first used.
"""

from importlib import import_module
from typing import Any

from psd_mini.cameras import Cameras, camera_rays, orbit
from psd_mini.distill import distill
from psd_mini.fields import TriplaneField, VoxelField, load_field, make_field, save_field
from psd_mini.formulas import cfg, guidance_from_dreamfusion, omega, sds_residual, surrogate_loss
from psd_mini.methods import CSD, METHODS, PSD, SDS, Context, Regression, psd_gradient, sds_gradient
from psd_mini.priors import make_prior
from psd_mini.priors.mixture import GaussianMixture
from psd_mini.priors.sampling import ddim_sample
from psd_mini.priors.toy_world import ToyWorldPrior
from psd_mini.rendering import render
from psd_mini.rewards import make_reward
from psd_mini.schedule import NoiseSchedule, scaled_linear_schedule
from psd_mini.text_to_3d import Generation, generate
from psd_mini.viz import contact_sheet, curves, render_views
from psd_mini.world.metrics import judge

__all__ = [
    "CSD",
    "METHODS",
    "PSD",
    "SDS",
    "Cameras",
    "Context",
    "GaussianMixture",
    "Generation",
    "NoiseSchedule",
    "Regression",
    "ToyWorldPrior",
    "TriplaneField",
    "VoxelField",
    "camera_rays",
    "cfg",
    "check_cfg",
    "check_csd",
    "check_gradient",
    "check_negative_embedding",
    "check_psd",
    "check_renderer",
    "check_schedule",
    "check_sds",
    "check_vsd",
    "contact_sheet",
    "curves",
    "ddim_sample",
    "distill",
    "generate",
    "gradient_statistics",
    "guidance_from_dreamfusion",
    "judge",
    "load_field",
    "make_field",
    "make_prior",
    "make_reward",
    "numeric_gradient",
    "offline_diffusers",
    "omega",
    "orbit",
    "psd_gradient",
    "render",
    "render_views",
    "save_field",
    "scaled_linear_schedule",
    "sds_gradient",
    "sds_residual",
    "surrogate_loss",
]


def __getattr__(name: str) -> Any:
    """Checkers, which notebooks about other things do not need, load on first use."""
    if name in __all__:  # and not imported above
        return getattr(import_module("psd_mini.checks"), name)
    raise AttributeError(f"module 'psd_mini' has no attribute {name!r}")
