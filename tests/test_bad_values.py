"""Every public argument times bad values: what comes back is finite, or one line that names the
argument.

The table holds one small valid call of every public function, constructor and method; a test
asserts that it covers all of them and every parameter. The bad values follow from the valid one:
another type, shape, dtype or device, NaN, infinity, empty, out of range. A wrong implementation is
any that lets torch, numpy or Python answer for it, or computes on with NaN."""

import argparse
import copy
import dataclasses
import inspect
import math
import re
import types
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from worlds import public_names

import psd_mini as pm
from psd_mini import checks, methods
from psd_mini._internal.arguments import ArgumentError
from psd_mini._internal.runs import NonFiniteError
from psd_mini.pipelines import cli, compare, results
from psd_mini.pipelines import generate as text_to_3d
from psd_mini.rewards import make_reward
from psd_mini.sds import Cost, Predictions
from psd_mini.world import metrics
from psd_mini.world import prior as toy_world
from psd_mini.world.pool import make_views, pool_cameras

NAN, INF = math.nan, math.inf


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SCHEDULE = pm.scaled_linear_schedule()
VIEWS = make_views(pool_cameras(2), 8)
PRIOR = pm.ToyWorldPrior(views=VIEWS)
CAMERAS = VIEWS.cameras
T = torch.tensor([400, 400])
X, EPS = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1)
EMBEDDINGS = PRIOR.embed(["a ball", ""])
IMAGES = X.sigmoid()
REWARD = make_reward("colorfulness")
POINT = normal(3, dtype=torch.float64)
POINTS = normal(4, 3, dtype=torch.float64)
MIXTURE = pm.GaussianMixture([0.5, 0.5], normal(2, 3, dtype=torch.float64), 0.5, SCHEDULE)
LOG_WEIGHTS = torch.zeros(2, 2, dtype=torch.float64)
FIELD = pm.VoxelField(8)
PREDICTIONS = Predictions(X[None], EPS[None], EPS[None] + 0.1)
RUN = {"step": 0, "loss": 0.5}
GENERATION = pm.Generation(
    "a ball", FIELD, {"steps": 1, "prior": "exact", "method": "SDS()"}, {}, {}, 1.0, [RUN]
)
SHORT = pm.Generation(**vars(GENERATION))
SHORT.frames = lambda: IMAGES  # instead of 24
MAKING = {"steps": 1, "resolution": 8, "n_samples": 4, "cameras_per_step": 2, "progress": False}


def context(**changes):
    settings = {
        "prior": PRIOR,
        "embeddings": EMBEDDINGS,
        "cameras": CAMERAS,
        "prompts": ["a ball"] * 2,
        "reward": REWARD,
    }
    return pm.Context(**{**settings, "cost": Cost(), "predictions": PREDICTIONS, **changes})


def gradient(method):
    """One call of a method with the noises that it wants."""
    return method(X, T, normal(method.n_noises, *X.shape), context())[0]


def used(make, use):
    """A constructor is right if what it made can be used."""
    return lambda **settings: use(make(**settings))


def trained(radiance_field, **settings):
    """`distill`, whose field is trained in place: on a copy."""
    field = copy.deepcopy(radiance_field)
    run = pm.distill(field, **settings)
    return run.history, field


def formula(x, t, eps, **others):
    """A submission to the checkers; what is in it does not matter here."""
    return x


SETTINGS = {"guidance_scale": 2.0, "weighting": "sds", "n_noises": 1}
CALL = {"x": X, "t": T, "eps": EPS[None], "context": context()}
HIFA = methods.HiFA(2.0, denoise_steps=2)
ROW = methods.LinearCombination(2.0, row="nfsd")
PARTS = ROW.predict(**CALL)
BASED = {"base": pm.SDS(2.0)}
NOISED = {"x_t": POINTS, "t": torch.tensor([0, 300, 600, 999]), "embeddings": LOG_WEIGHTS}
SAMPLED = {"x_t": X, "t": T, "embeddings": EMBEDDINGS, "cameras": CAMERAS}
LEVEL = {"t": T, "like": X}
GENERATE = {
    **{
        "prompt": "a ball",
        "method": "psd",
        "field": "voxel",
        "prior": "exact",
        "guidance_scale": 2.0,
        "residual": "image",
        "negative_prompt": "red",
    },
    **{
        "conditioning": "camera",
        "reward": "colorfulness",
        "preference_weight": 1.0,
        "negative": False,
        "init_from": Path("saved.safetensors"),
        "seed": 0,
    },
    **{
        "device": "cpu",
        "dtype": "float32",
        "out": Path("out"),
        "resume": False,
        "overwrite": True,
        "callback": lambda info: None,
        **MAKING,
    },
    **{"t_min": (0.02, 0.02), "t_max": (0.98, 0.2), "lr_scale": 1.0, "entropy_weight": 0.01},
    **{"background": 1.0, "checkpoint_every": 50},
    **{"annealing": "sqrt", "variance_weight": 0.1, "opacity_weight": 0.01},
}
DISTILL = {
    **{
        "radiance_field": FIELD,
        "prior": PRIOR,
        "method": pm.SDS(2.0),
        "prompt": "a ball",
        "negative_prompt": "red",
    },
    **{
        "steps": 1,
        "cameras_per_step": 2,
        "resolution": 8,
        "n_samples": 4,
        "t_min": (0.02, 0.02),
        "t_max": (0.98, 0.2),
    },
    **{
        "lr_scale": 1.0,
        "entropy_weight": 0.01,
        "background": 1.0,
        "reward": REWARD,
        "negative": None,
        "seed": 0,
    },
    **{
        "annealing": "sqrt",
        "variance_weight": 0.1,
        "opacity_weight": 0.01,
        "callback": lambda info: None,
        "checkpoint": Path("run.pt"),
        "checkpoint_every": 50,
        "resume": False,
        "overwrite": True,
    },
    **{"config": {"who": "me"}, "progress": False},
}
MEAN = {"x": POINT, "t": 300, "prior": MIXTURE, "n": 20, "generator": torch.Generator()}

# name: (what is called, a valid value of every parameter); "Class.method" for methods
TABLE = {
    "SDS": (used(pm.SDS, gradient), SETTINGS),
    "CSD": (used(pm.CSD, gradient), SETTINGS),
    "SDS.__call__": (pm.SDS(2.0), CALL),
    "SDS.predict": (pm.SDS(2.0).predict, CALL),
    "SDS.guided": (pm.SDS(2.0).guided, {"predictions": PREDICTIONS}),
    "SDS.residual": (pm.SDS(2.0).residual, {"predictions": PREDICTIONS, "eps": EPS[None]}),
    "CSD.predict": (pm.CSD().predict, CALL),
    "CSD.residual": (pm.CSD().residual, {"predictions": PREDICTIONS, "eps": EPS[None]}),
    "PSD": (
        used(pm.PSD, gradient),
        {
            "base": pm.SDS(2.0),
            "preference_weight": 1.0,
            "omega": "bt",
            "tau": 0.1,
            "pair_base": "mean",
            "antithetic": True,
        }
        | {"over_views": True},
    ),
    "PSD.__call__": (pm.PSD(), CALL),
    "PSD.strength": (pm.PSD().strength, {"sigma_t": torch.full((2, 1, 1, 1), 0.5)}),
    "PSD.state_dict": (pm.PSD().state_dict, {}),
    "PSD.load_state_dict": (pm.PSD().load_state_dict, {"state": {"median_gap": 0.5}}),
    "Regression": (
        used(pm.Regression, lambda r: r(X, T, EPS[:0], context())[0]),
        {"target": ("ball", "red")},
    ),
    "Regression.__call__": (pm.Regression(("ball", "red")), CALL),
    "METHODS": (
        used(methods.make_method, gradient),
        {"method": "psd", "guidance_scale": 2.0, "preference_weight": 1.0} | {"residual": "latent"},
    ),
    "DreamDPO": (used(methods.DreamDPO, gradient), {**BASED, "tau": 0.1, "published_code": False}),
    "RewardSDS": (
        used(methods.RewardSDS, gradient),
        {**BASED, "strategy": "softmax", "n_noises": 2, "over_views": False},
    ),
    "RewardGradient": (
        used(methods.RewardGradient, gradient),
        {**BASED, "kind": "dps", "preference_weight": 1.0},
    ),
    "Exact": (used(methods.Exact, gradient), {**BASED, "beta": 0.1}),
    "DreamDPO.__call__": (methods.DreamDPO(), {**CALL, "eps": torch.stack((EPS, -EPS))}),
    "RewardSDS.__call__": (
        methods.RewardSDS(n_noises=2),
        {**CALL, "eps": torch.stack((EPS, -EPS))},
    ),
    "RewardGradient.__call__": (methods.RewardGradient("dps"), CALL),
    "Exact.__call__": (methods.Exact(), CALL),
    "HiFA": (used(methods.HiFA, gradient), {**SETTINGS, "denoise_steps": 2}),
    "HiFA.__call__": (HIFA, CALL),
    "HiFA.predict": (HIFA.predict, CALL),
    "HiFA.guided": (HIFA.guided, {"predictions": HIFA.predict(**CALL)}),
    "HiFA.residual": (HIFA.residual, {"predictions": HIFA.predict(**CALL), "eps": EPS[None]}),
    "VSD": (
        used(methods.VSD, gradient),
        {**SETTINGS, "own": methods.Mixture(0.1), "entropy": 0.5, "lookahead": 0.1},
    ),
    "low_rank_vsd": (methods.low_rank_vsd, {"guidance_scale": 2.0, "lookahead": 0.01}),
    "sdi": (used(methods.sdi, gradient), {"guidance_scale": 2.0}),
    "VSD.predict": (methods.VSD(2.0).predict, CALL),
    "VSD.residual": (
        methods.VSD(2.0).residual,
        {"predictions": methods.VSD(2.0).predict(**CALL), "eps": EPS[None]},
    ),
    "VSD.state_dict": (methods.VSD().state_dict, {}),
    "VSD.load_state_dict": (
        methods.VSD().load_state_dict,
        {"state": {"parameters": {"variance": torch.zeros(())}}},
    ),
    "LinearCombination": (used(methods.LinearCombination, gradient), {**SETTINGS, "row": "nfsd"}),
    "LinearCombination.predict": (ROW.predict, CALL),
    "LinearCombination.guided": (ROW.guided, {"predictions": PARTS}),
    "LinearCombination.residual": (ROW.residual, {"predictions": PARTS, "eps": EPS[None]}),
    "Context": (
        lambda **parts: pm.PSD(pm.SDS(2.0))(X, T, EPS[None], pm.Context(**parts))[0],
        {
            "prior": PRIOR,
            "embeddings": EMBEDDINGS,
            "cameras": CAMERAS,
            "prompts": ["a ball"] * 2,
            "reward": REWARD,
        }
        | {"cost": Cost(), "predictions": PREDICTIONS, "images": X},
    ),
    "Cameras": (
        used(pm.Cameras, lambda cameras: pm.camera_rays(cameras, 2, 2)),
        {
            "azimuth": normal(2),
            "elevation": torch.tensor([0.1, 0.2]),
            "distance": torch.tensor([3.0, 3.0]),
            "fov": 0.7,
            "index": torch.arange(2),
        },
    ),
    "Cameras.__getitem__": (
        used(CAMERAS.__getitem__, lambda cameras: cameras.positions()),
        {"index": torch.tensor([1, 0])},
    ),
    "Cameras.numbered": (used(CAMERAS.numbered, lambda cameras: cameras.index), {}),
    "Cameras.side": (CAMERAS.side, {"n": 4}),
    "Cameras.positions": (CAMERAS.positions, {}),
    "Cameras.axes": (CAMERAS.axes, {}),
    "orbit": (
        used(pm.orbit, lambda cameras: pm.camera_rays(cameras, 2, 2)),
        {
            "azimuth_degrees": 30.0,
            "elevation_degrees": [10.0, 20.0],
            "distance": 3.0,
            "fov_degrees": 40.0,
        },
    ),
    "camera_rays": (pm.camera_rays, {"cameras": CAMERAS, "height": 2, "width": 3}),
    "GaussianMixture": (
        used(pm.GaussianMixture, lambda mixture: mixture.predict_noise(**NOISED)),
        {
            "weights": torch.ones(2),
            "means": normal(2, 3),
            "covariances": torch.ones(2, 3),
            "schedule": SCHEDULE,
        },
    ),
    "GaussianMixture.encode": (MIXTURE.encode, {"images": IMAGES}),
    "GaussianMixture.decode": (MIXTURE.decode, {"x": X}),
    "GaussianMixture.log_prob": (MIXTURE.log_prob, NOISED),
    "GaussianMixture.responsibilities": (MIXTURE.responsibilities, NOISED),
    "GaussianMixture.score": (MIXTURE.score, NOISED),
    "GaussianMixture.predict_noise": (MIXTURE.predict_noise, {**NOISED, "cameras": CAMERAS}),
    "GaussianMixture.denoise": (MIXTURE.denoise, NOISED),
    "GaussianMixture.sample": (
        MIXTURE.sample,
        {"n": 3, "generator": torch.Generator(), "embedding": LOG_WEIGHTS[0]},
    ),
    "GaussianMixture.condition": (
        used(MIXTURE.condition, lambda m: m.score(**NOISED)),
        {"embedding": LOG_WEIGHTS[0]},
    ),
    "GaussianMixture.tilt_components": (
        MIXTURE.tilt_components,
        {"r": LOG_WEIGHTS[0], "beta": 0.5},
    ),
    "GaussianMixture.tilt_linear": (MIXTURE.tilt_linear, {"v": POINT, "beta": 0.5, "c": 0.1}),
    "Generation": (
        used(pm.Generation, lambda result: result.summary()),
        {field.name: getattr(GENERATION, field.name) for field in dataclasses.fields(pm.Generation)}
        | {"out": Path("out")},
    ),
    "Generation.frames": (GENERATION.frames, {"n_frames": 1, "resolution": 8}),
    "Generation.turntable": (SHORT.turntable, {"path": Path("turn.gif")}),
    "Generation.views": (GENERATION.views, {"path": Path("views.png")}),
    "Generation.mesh": (GENERATION.mesh, {}),
    "Generation.summary": (GENERATION.summary, {}),
    "NoiseSchedule": (pm.NoiseSchedule, {"alphas_cumprod": torch.tensor([0.9, 0.5])}),
    "NoiseSchedule.from_betas": (pm.NoiseSchedule.from_betas, {"betas": torch.tensor([0.1, 0.2])}),
    "NoiseSchedule.from_diffusers": (
        pm.NoiseSchedule.from_diffusers,
        {"scheduler": types.SimpleNamespace(alphas_cumprod=torch.tensor([0.9, 0.5]))},
    ),
    "NoiseSchedule.alpha_sigma": (SCHEDULE.alpha_sigma, LEVEL),
    "NoiseSchedule.add_noise": (SCHEDULE.add_noise, {"x": X, "eps": EPS, "t": T}),
    "NoiseSchedule.x0_from_eps": (SCHEDULE.x0_from_eps, {"x_t": X, "eps_hat": EPS, "t": T}),
    "NoiseSchedule.eps_from_x0": (SCHEDULE.eps_from_x0, {"x_t": X, "x0_hat": EPS, "t": T}),
    "NoiseSchedule.eps_from_v": (SCHEDULE.eps_from_v, {"x_t": X, "v": EPS, "t": T}),
    "NoiseSchedule.eps_from_score": (SCHEDULE.eps_from_score, {"score": EPS, "t": T}),
    "NoiseSchedule.weight": (SCHEDULE.weight, {**LEVEL, "kind": "sds"}),
    "scaled_linear_schedule": (
        pm.scaled_linear_schedule,
        {"T": 10, "beta_start": 0.01, "beta_end": 0.02},
    ),
    "ToyWorldPrior": (
        used(
            pm.ToyWorldPrior,
            lambda prior: prior.predict_noise(X, T, EMBEDDINGS, prior.views.cameras[:2]),
        ),
        {
            "resolution": 8,
            "conditioning": "camera",
            "views": VIEWS,
            "log_prior": torch.zeros(96),
            "schedule": SCHEDULE,
            "n_views": 1,
        },
    ),
    "ToyWorldPrior.embed": (PRIOR.embed, {"prompts": ["a ball", ""]}),
    "ToyWorldPrior.negative_settings": (
        PRIOR.negative_settings,
        {"start": PRIOR.embed([""])[0], "prompt": PRIOR.embed(["a ball"])[0]},
    ),
    "ToyWorldPrior.encode": (PRIOR.encode, {"images": IMAGES}),
    "ToyWorldPrior.decode": (PRIOR.decode, {"x": X}),
    "ToyWorldPrior.draw_cameras": (PRIOR.draw_cameras, {"n": 2, "generator": torch.Generator()}),
    "ToyWorldPrior.component_rewards": (
        PRIOR.component_rewards,
        {"reward": REWARD, "prompt": "a ball"},
    ),
    "ToyWorldPrior.tilted": (
        used(PRIOR.tilted, lambda p: p.denoise(**SAMPLED)),
        {"reward": REWARD, "beta": 0.1, "prompt": "a ball"},
    ),
    "ToyWorldPrior.denoise": (PRIOR.denoise, SAMPLED),
    "ToyWorldPrior.predict_noise": (PRIOR.predict_noise, SAMPLED),
    "ToyWorldPrior.log_prob": (
        PRIOR.log_prob,
        {"x": X, "embeddings": EMBEDDINGS, "cameras": CAMERAS, "t": T},
    ),
    "VoxelField": (
        used(pm.VoxelField, lambda field: field(POINTS.float())),
        {"resolution": 4, "bound": 1.0, "channels": 3, "generator": torch.Generator()},
    ),
    "VoxelField.forward": (FIELD, {"points": POINTS.float()}),
    "VoxelField.parameter_groups": (FIELD.parameter_groups, {}),
    "TriplaneField": (
        used(pm.TriplaneField, lambda field: field(POINTS.float())),
        {
            "resolution": 4,
            "bound": 1.0,
            "channels": 3,
            "features": 2,
            "hidden": 3,
            "generator": torch.Generator(),
        },
    ),
    "TriplaneField.forward": (pm.TriplaneField(4), {"points": POINTS.float()}),
    "TriplaneField.parameter_groups": (pm.TriplaneField(4).parameter_groups, {}),
    "make_field": (
        used(pm.make_field, lambda field: field(POINTS.float())),
        {"kind": "voxel", "generator": torch.Generator(), "resolution": 4},
    ),
    "save_field": (pm.save_field, {"field": FIELD, "path": Path("field.safetensors")}),
    "load_field": (pm.load_field, {"path": Path("saved.safetensors")}),
    "render": (
        pm.render,
        {
            "field": FIELD,
            "cameras": CAMERAS,
            "height": 2,
            "width": 3,
            "n_samples": 4,
            "background": torch.ones(3),
            "radius": 1.0,
        }
        | {"generator": torch.Generator()},
    ),
    "render_views": (
        pm.render_views,
        {"field": FIELD, "cameras": CAMERAS, "resolution": 4, "n_samples": 4, "background": 1.0},
    ),
    "contact_sheet": (
        pm.contact_sheet,
        {
            "rows": [IMAGES, IMAGES],
            "row_labels": ["a", "b"],
            "column_labels": ["c", "d"],
            "title": "all",
        },
    ),
    "curves": (pm.curves, {"history": [RUN], "path": Path("curves.png")}),
    "judge": (pm.judge, {"images": IMAGES, "views": VIEWS}),
    "cfg": (pm.cfg, {"eps_cond": EPS, "eps_neg": X, "guidance_scale": 2.0}),
    "guidance_from_dreamfusion": (pm.guidance_from_dreamfusion, {"w": 1.0}),
    "omega": (pm.omega, {"gap": POINT, "kind": "bt", "tau": 0.1}),
    "surrogate_loss": (pm.surrogate_loss, {"x": X, "gradient": EPS}),
    "csd_gradient": (pm.csd_gradient, {"eps_cond": X, "eps_neg": EPS, "weight_t": 1.0}),
    "sds_gradient": (
        pm.sds_gradient,
        {
            "eps_cond": X,
            "eps_neg": -X,
            "eps": EPS,
            "guidance_scale": 2.0,
            "weight_t": torch.ones(2, 1, 1, 1),
        },
    ),
    "psd_gradient": (
        pm.psd_gradient,
        {
            "base": X,
            "h_1": EPS,
            "h_2": -EPS,
            "omega_b": torch.ones(2),
            "lambda_t": 1.0,
            "weight_t": torch.ones(2, 1, 1, 1),
        },
    ),
    "make_prior": (
        used(
            pm.make_prior,
            lambda prior: prior.predict_noise(X, T, EMBEDDINGS, prior.views.cameras[:2]),
        ),
        {
            "prior": "exact",
            "resolution": 8,
            "conditioning": "camera",
            "device": "cpu",
            "dtype": "float32",
        },
    ),
    "make_reward": (
        used(pm.make_reward, lambda reward: reward(IMAGES, [])),
        {"reward": "color:red", "device": "cpu"},
    ),
    "ddim_sample": (
        pm.ddim_sample,
        {
            "prior": PRIOR,
            "prompt": "a ball",
            "noise": X,
            "cameras": CAMERAS,
            "guidance_scale": 2.0,
            "negative_prompt": "red",
        }
        | {"steps": 2},
    ),
    "distill": (trained, DISTILL),
    "generate": (
        used(
            pm.generate,
            lambda result: (list(result.field.parameters()), result.history, result.metrics),
        ),
        GENERATE,
    ),
    **{
        f"check_{name}": (getattr(pm, f"check_{name}"), {"fn": formula})
        for name in ("cfg", "negative_embedding", "renderer", "schedule", "pds", "flow")
    },
    **{
        f"check_{n}": (
            getattr(pm, f"check_{n}"),
            {"fn": formula, "weighting": "sds", "gradient_scale": "report"},
        )
        for n in ("sds", "csd", "vsd", "sdi")
    },
    "check_psd": (
        pm.check_psd,
        {
            "fn": formula,
            "form": "psd",
            "omega": "hard",
            "weighting": "sds",
            "gradient_scale": "report",
        },
    ),
    "check_gradient": (
        lambda inputs, **others: pm.check_gradient(
            others.pop("fn"), others.pop("reference"), inputs, **others
        ),
        {
            **{"fn": lambda x: x, "reference": lambda x: x, "inputs": X, "tolerance": 1e-3},
            "slips": {"twice as much": lambda x: 2 * x},
        },
    ),
    "numeric_gradient": (
        pm.numeric_gradient,
        {**MEAN, "objective": lambda x_t, t: x_t.square().sum(-1), "step": 1e-3},
    ),
    "gradient_statistics": (
        pm.gradient_statistics,
        {
            **MEAN,
            "method": pm.SDS(),
            "reference": POINT,
            "context": pm.Context(MIXTURE, LOG_WEIGHTS),
        },
    ),
    "offline_diffusers": (pm.offline_diffusers, {}),
}


def public_methods(cls):
    """What a user may call on an instance, as far as the class itself says it."""
    for name, member in vars(cls).items():
        if isinstance(member, types.FunctionType | classmethod) and (
            name[0] != "_" or name in ("__call__", "__getitem__")
        ):
            yield name, getattr(cls, name)


def signatures():
    """Name in the table -> signature, for every public name and the constructors behind
    `METHODS`."""
    functions = {k: v for k, v in public_names(checks).items() if isinstance(v, types.FunctionType)}
    functions = {k: v for k, v in functions.items() if not k.endswith("objective")}
    public = public_names(pm) | functions | {"METHODS": methods.make_method}
    makers = {
        maker.func if isinstance(maker, partial) else maker for maker in methods.METHODS.values()
    }
    public |= {maker.__name__: maker for maker in makers}
    for name, target in public.items():
        yield name, inspect.signature(target)
        for method, function in public_methods(target) if isinstance(target, type) else ():
            yield f"{name}.{method}", inspect.signature(function)


SIGNATURES = dict(signatures())


def test_the_table_covers_every_name_and_parameter():
    assert TABLE.keys() == SIGNATURES.keys()
    for name, signature in SIGNATURES.items():
        wanted = {p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD} - {
            "self"
        }
        assert wanted <= TABLE[name][1].keys(), name


def bad_values(valid, default):
    """Description -> bad value, from a valid one; None is no bad value where it is the default."""
    others = {} if default is None else {"None": None}
    others |= {"a text": "no such thing", "a number": 3, "an empty list": [], "an object": object()}
    if isinstance(valid, Tensor):
        changed = {
            "one axis more": valid[None],
            "one axis fewer": valid[0],
            "another last size": torch.cat((valid, valid[..., :1]), -1),
            "empty": valid[:0],
            "on meta": valid.to("meta"),
            "a list": valid.tolist(),
            "numpy": valid.numpy(),
            "complex": valid.to(torch.complex64),
        }
        if valid.is_floating_point():
            changed |= {"integers": valid.long()}
            for bad in (NAN, INF):
                changed[f"{bad}"] = torch.where(
                    torch.arange(valid.numel()).reshape(valid.shape) == 0, bad, valid
                )
        else:
            changed |= {"floats": valid.float(), "negative": -1 - valid, "large": valid + 10**6}
        return others | changed
    if isinstance(valid, pm.Cameras):
        return others | {"one fewer": valid[:1], "one more": valid[torch.tensor([0, 1, 0])]}
    if isinstance(valid, bool | int | float):
        numbers = {
            "NaN": NAN,
            "infinity": INF,
            "-infinity": -INF,
            "negative": -1,
            "zero": 0,
            "a fraction": 2.5,
        }
        return {
            name: value
            for name, value in (others | numbers).items()
            if not isinstance(valid, bool) or name != "zero"
        }
    if isinstance(valid, str):
        return others | {"empty": "", "a zero byte": "\0", "bytes": b"a ball"}
    if isinstance(valid, Path):
        folders = {
            "a folder": Path("."),
            "in no folder": Path("no/such/thing"),
            "in a file": Path("saved.safetensors/x"),
        }
        return others | folders | {"empty": "", "a zero byte": "\0"}
    if isinstance(valid, tuple | list):
        nothing = {
            "empty tuple": (),
            "a tuple of nothing": (None,) * len(valid),
            "a list of nothing": [None] * len(valid),
        }
        return (
            others
            | nothing
            | {"NaNs": (NAN,) * len(valid), "one more": (*valid, valid[0]), "a tensor": X}
        )
    if callable(valid):
        answers = {
            "answers None": lambda *a, **k: None,
            "answers a shape": lambda *a, **k: torch.zeros(7, 7, 7),
        }
        return others | answers
    return others | {"an empty dictionary": {}, "a tensor": X}


LARGE = {"seed": {"large": 10**30}, "resolution": {"large": 10**6, "larger": 10**30}}


def is_finite(result):
    """No NaN or infinity in any number that came back."""
    if isinstance(result, nn.Module):
        return is_finite(list(result.parameters()))
    if isinstance(result, Tensor):
        return not result.is_meta and bool(result.isfinite().all())
    if isinstance(result, np.ndarray):
        return bool(np.isfinite(result).all())
    if isinstance(result, float):
        return math.isfinite(result)
    if dataclasses.is_dataclass(result):
        return is_finite(vars(result))
    if isinstance(result, dict):
        return is_finite(list(result.values()))
    return all(map(is_finite, result)) if isinstance(result, list | tuple) else True


def complaint(call, name):
    """What is wrong with how a call with a bad value of `name` ended, or None."""
    names = f"{name}|{name.removesuffix('_degrees')}"
    try:
        result = call()
    except (ValueError, TypeError, NonFiniteError, OSError) as error:
        text = str(error)
        if "\n" in text or not re.search(rf"(?<!\w)({names})(?!\w)", text):
            return f"{type(error).__name__}: {text[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    else:
        if isinstance(result, pm.checks.Report):  # checkers judge what is handed in and never raise
            return "is said to be right" if result.ok and name == "fn" else None
        return None if is_finite(result) else f"not finite: {str(result)[:200]}"


@pytest.fixture(autouse=True)
def small_world(tmp_path, monkeypatch):
    """Two cameras in the pool and for the judge, no files of results, no oracle: `generate` in
    milliseconds."""
    monkeypatch.chdir(tmp_path)
    pm.save_field(FIELD, "saved.safetensors")
    monkeypatch.setattr(toy_world, "pool_cameras", lambda: CAMERAS)
    for module in (metrics, results):
        monkeypatch.setattr(module, "judge_views", lambda: VIEWS)
    monkeypatch.setattr(results, "oracle_distance", lambda *settings: 1.0)
    for name in ("save", "save_views"):
        monkeypatch.setattr(text_to_3d, name, lambda result, folder: None)


LONG = ("check_", "Generation.")


@pytest.mark.parametrize("name", TABLE)
def test_the_valid_call_is_valid(name):
    """Otherwise the bad values would be refused for the wrong reason."""
    call, valid = TABLE[name]
    result = call(**valid)
    assert is_finite(result)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        # a check that is handed nonsense searches all its tables, and pictures take time to draw
        pytest.param(name, parameter, marks=[pytest.mark.slow] if name.startswith(LONG) else [])
        for name, (_, valid) in TABLE.items()
        for parameter in valid
    ],
)
def test_a_bad_value_is_named_or_does_no_harm(name, parameter):
    call, valid = TABLE[name]
    complaints = {}
    declared = SIGNATURES[name].parameters.get(
        parameter
    )  # None for what a function takes as **options
    bad = bad_values(valid[parameter], declared and declared.default) | LARGE.get(parameter, {})
    for what, value in bad.items():
        if wrong := complaint(lambda value=value: call(**{**valid, parameter: value}), parameter):
            complaints[what] = wrong
    assert not complaints


def test_shapes_that_fitted_are_no_pass_for_others():
    """Shapes are looked at once and remembered, but all of a call together, and no numbers. Wrong:
    to remember each argument by itself, or to skip NaN in shapes that are known."""
    short, long = normal(2), normal(3)
    torch.testing.assert_close(pm.cfg(short, short, 1.0), short)
    torch.testing.assert_close(pm.cfg(long, long, 1.0), long)
    for bad in (long, short.double().long(), short * NAN, [0.0, 0.0]):
        with pytest.raises(ArgumentError, match="^eps_neg: expected"):
            pm.cfg(short, bad, 1.0)
    with pytest.raises(ArgumentError, match="^guidance_scale: expected a finite number"):
        pm.cfg(short, short, short)


class Inline:
    """A pool of processes that works in this one."""

    def __init__(self, *settings, **more):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


# command: a valid text for each of its options
COMMANDS = {
    "generate": {
        **{
            "prompt": "a ball",
            "method": "psd",
            "field": "voxel",
            "prior": "exact",
            "device": "cpu",
            "dtype": "float32",
        },
        **{
            "guidance-scale": "2",
            "negative-prompt": "red",
            "conditioning": "camera",
            "reward": "colorfulness",
            "negative": "random",
            "init-from": "saved.safetensors",
        },
        **{"preference-weight": "1", "steps": "1", "seed": "0", "resolution": "8", "out": "out"},
        **{"cameras-per-step": "2", "n-samples": "4", "t-min": "0.1", "t-max": "0.9"},
        **{"lr-scale": "1", "entropy-weight": "0.01", "background": "0.5"},
        **{"annealing": "sqrt", "variance-weight": "0.1", "opacity-weight": "0.01"},
        "residual": "image",
    },
    "compare": {
        **{
            "prompt": "a ball",
            "methods": "sds",
            "reward": "colorfulness",
            "seeds": "1",
            "steps": "1",
            "resolution": "8",
        },
        "out": "out",
    },
    "check": {
        **{"paths": "right.py", "kind": "sds", "timeout": "10", "weighting": "sds"},
        **{"memory": "1", "gradient-scale": "report", "gradescope": ""},
    },
}
# what it hands on to `generate` is looked at there, and a run that fails is recorded
OWN_OF_SWEEP = {"prompts": "prompts.txt", "seeds": "1", "threads": "1", "out": "out"}
COMMANDS["sweep"] = {k: v for k, v in COMMANDS["generate"].items() if k not in ("prompt", "seed")}
COMMANDS["sweep"] |= OWN_OF_SWEEP
TEXTS = (
    "",
    "no such thing",
    "saved.safetensors/x/y",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "2.5",
    "1e400",
    "1000000",
    "1" + 30 * "0",
)


# a million steps are what was asked for; of weights that overflow, tests/test_settings.py says what
# they do
LARGE_IS_FINE = (
    *("steps", "seeds", "guidance-scale", "preference-weight"),
    *(
        "cameras-per-step",
        "n-samples",
        "lr-scale",
        "entropy-weight",
        "background",
        "variance-weight",
        "opacity-weight",
    ),
)
PAIRS = ("t-min", "t-max")


def actions():
    """(command, option, its action) for all that take a value."""
    (commands,) = (
        action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    for command, parser in commands.choices.items():
        for action in parser._actions:
            if action.nargs != 0:  # flags and --help
                yield command, (action.option_strings or [action.dest])[0].lstrip("-"), action


def ended(command, **changes):
    """Run a command in this process: exit status (0 where it returned)."""
    texts = {**COMMANDS[command], **changes}
    places = (
        [texts.pop("paths")]
        if command == "check"
        else ["--", texts.pop("prompts" if command == "sweep" else "prompt")]
    )
    options = [] if command in ("check", "sweep") else ["--overwrite"]
    for name, text in texts.items():
        options += [f"--{name}", text, text] if name in PAIRS else [f"--{name}={text}"]
    try:
        cli.main([command, *options, *places])
    except SystemExit as error:
        return error.code
    return 0


def test_the_commands_cover_every_option():
    assert {(command, option) for command, option, _ in actions()} == {
        (c, o) for c, texts in COMMANDS.items() for o in texts
    }


@pytest.fixture
def small_commands(monkeypatch):
    monkeypatch.setattr(compare, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(compare, "judge_views", lambda: VIEWS)
    Path("prompts.txt").write_text("a ball")
    Path("right.py").write_text("def sds(x, t, eps, unet, cond):\n    return 0 * x\n")


@pytest.mark.parametrize("command", ["generate", "compare", "sweep", "check"])
def test_the_valid_command_runs(small_commands, capsys, command):
    assert ended(command) == (1 if command == "check" else 0), capsys.readouterr().err


def own_options():
    """Each command with each option that is its own."""
    for command, option, _ in actions():
        # each of the texts makes `check` run a submission in a process of its own
        marks = [pytest.mark.slow] if command == "check" else []
        if command != "sweep" or option in OWN_OF_SWEEP:
            yield pytest.param(command, option, marks=marks)


@pytest.mark.parametrize(("command", "option"), list(own_options()))
def test_a_bad_option_is_named_in_one_line(small_commands, capsys, command, option):
    """Status 2 and a last line that names the option (argparse prints its usage above), or the
    command does its work."""
    complaints = {}
    for text in TEXTS:
        if option in LARGE_IS_FINE and text[:2] == "10":
            continue
        status, error = ended(command, **{option: text}), capsys.readouterr().err
        last = error.strip().splitlines()[-1:]
        name = {"paths": "paths?"}.get(option, option).replace("-", "[-_]")
        if status == 2 and not re.search(rf"(?<!\w){name}(?!\w)", *last):
            complaints[text] = error
        elif status not in (0, 2) and command != "check":
            complaints[text] = f"status {status}: {error}"
    assert not complaints
