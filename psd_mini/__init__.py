"""psd_mini: score distillation with human preference, in modules that read like textbook pages.

The ladder of rooms, each importing only from those above it: schedule, cameras, fields, rendering, world, formulas, priors,
methods, checkpoint, distill, viz, mesh, text_to_3d, bench, cli. The names below are what a notebook needs.
"""

from psd_mini.cameras import Cameras, camera_rays, orbit
from psd_mini.distill import distill
from psd_mini.fields import TriplaneField, VoxelField, load_field, make_field, save_field
from psd_mini.formulas import cfg, guidance_from_imagen, sds_residual, surrogate_loss
from psd_mini.methods import METHODS, SDS, Context, Regression, sds_gradient
from psd_mini.priors.mixture import GaussianMixture
from psd_mini.priors.toy_world import ToyWorldPrior
from psd_mini.rendering import render
from psd_mini.schedule import NoiseSchedule, scaled_linear_schedule
from psd_mini.text_to_3d import Generation, generate
from psd_mini.viz import contact_sheet, curves, render_views
from psd_mini.world.metrics import judge

__all__ = [
    "METHODS",
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
    "orbit",
    "render",
    "render_views",
    "save_field",
    "scaled_linear_schedule",
    "sds_gradient",
    "sds_residual",
    "surrogate_loss",
]
