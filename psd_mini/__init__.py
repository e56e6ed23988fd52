"""psd_mini: score distillation with human preference, in modules that read like textbook pages.

The ladder of rooms, each importing only from those above it: files, failures, precision, schedule, cameras, fields, rendering,
world, formulas, rewards, priors, methods, negative, checkpoint, distill, viz, mesh, text_to_3d, compare, bench, cli. The
names below are what a notebook needs.
"""

from psd_mini.cameras import Cameras, camera_rays, orbit
from psd_mini.distill import distill
from psd_mini.fields import TriplaneField, VoxelField, load_field, make_field, save_field
from psd_mini.formulas import cfg, guidance_from_imagen, omega, sds_residual, surrogate_loss
from psd_mini.methods import CSD, METHODS, PSD, SDS, Context, Regression, psd_gradient, sds_gradient
from psd_mini.priors.mixture import GaussianMixture
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
    "contact_sheet",
    "curves",
    "distill",
    "generate",
    "guidance_from_imagen",
    "judge",
    "load_field",
    "make_field",
    "make_reward",
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
