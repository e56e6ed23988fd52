"""Caches in memory and cached files know everything that they depend on."""

import json
import math
import pwd
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

import psd_mini
from psd_mini import ToyWorldPrior
from psd_mini._internal.identity import made_of
from psd_mini.cameras import Cameras
from psd_mini.pipelines import oracle
from psd_mini.world import metrics, objects, text
from psd_mini.world import prior as exact
from psd_mini.world.pool import cache_folder, fresh_cameras, make_views, pool_cameras


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PSD_MINI_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def small_pool(monkeypatch):
    """A world of few pictures: four cameras, and four of 16 pixels for the judge."""
    views, cameras = make_views(fresh_cameras(4), 16), pool_cameras(4)
    monkeypatch.setattr(metrics, "judge_views", lambda: views)
    monkeypatch.setattr(exact, "pool_cameras", lambda: cameras)


def test_a_prior_whose_views_are_exchanged_shows_the_new_ones():
    """The prior keeps all pictures of its pool only as long as the pool stays."""
    old, new = make_views(pool_cameras(3), 8), make_views(fresh_cameras(3), 8)
    prior = ToyWorldPrior(views=old, conditioning="none")
    x_t, t, embeddings = (
        torch.full((1, 3, 8, 8), 0.3),
        torch.tensor([300]),
        text.embed(["a red ball"]),
    )
    prior.denoise(x_t, t, embeddings, old.cameras[:1])
    prior.views = new
    expected = ToyWorldPrior(views=new, conditioning="none").denoise(
        x_t, t, embeddings, new.cameras[:1]
    )
    torch.testing.assert_close(
        prior.denoise(x_t, t, embeddings, new.cameras[:1]), expected, rtol=0, atol=1e-6
    )


def test_an_object_that_was_changed_is_drawn_again(cache, monkeypatch):
    """A ball that becomes a cube while the program runs is drawn as a cube, into another file."""
    before = make_views(pool_cameras(2), 8).layers
    ball, cube = (list(objects.OBJECTS).index(name) for name in ("ball", "cube"))
    with monkeypatch.context() as patch:
        patch.setitem(objects.OBJECTS, "ball", objects.OBJECTS["cube"])
        torch.testing.assert_close(
            make_views(pool_cameras(2), 8).layers[ball], before[cube], rtol=0, atol=1e-6
        )
    torch.testing.assert_close(make_views(pool_cameras(2), 8).layers, before, rtol=0, atol=1e-6)
    assert len(list(cache.iterdir())) == 2


def test_pictures_are_known_by_their_cameras_precision_and_torch(cache, monkeypatch):
    """Single and double precision are two sets of rays; another torch rounds differently."""
    double = pool_cameras(2)
    single = Cameras(
        double.azimuth.float(), double.elevation.float(), double.distance.float(), double.fov
    )
    same_angles = Cameras(
        single.azimuth.double(), single.elevation.double(), single.distance.double(), double.fov
    )
    make_views(single, 8)
    make_views(same_angles, 8)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(torch, "__version__", "1.0")
    make_views(single, 8)
    assert len(list(cache.iterdir())) == 3


# they look at arguments, name and write files, and watch a run; they take no part in a number
NO_PART = {f"_internal/{name}.py" for name in ("arguments", "files", "identity", "runs")}


def test_the_oracle_is_known_by_every_module_that_takes_part_in_it(small_pool, cache):
    """The file's name depends on each module that runs while the number is made, except NO_PART."""
    ran = set()

    def note(frame, event, argument):
        ran.add(frame.f_code.co_filename)

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        oracle.oracle_distance("voxel", ("ball", "red"), 8, 1)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    package = Path(psd_mini.__file__).parent
    parts = {Path(name) for name in ran if Path(name).is_relative_to(package)}
    parts = {path for path in parts if str(path.relative_to(package)) not in NO_PART}
    assert len(parts) > 10 and parts <= {Path(module.__file__) for module in oracle.MAKERS}


def test_the_oracle_is_known_by_threads_torch_and_world(small_pool, cache, monkeypatch):
    """One more file for each of them."""

    def count():
        oracle.oracle_distance("voxel", ("ball", "red"), 8, 1)
        return len(list(cache.glob("oracle-*")))

    assert count() == count() == 1
    monkeypatch.setitem(objects.COLOURS, "pink", (1.0, 0.0, 0.5))
    assert count() == 2
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert count() == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert count() == 4


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch):
    """No HOME and no entry in passwd, as in many containers; a relative XDG_CACHE_HOME is not used,
    as its specification says. Nothing is made in the working directory."""

    def nobody(number):
        raise KeyError(number)

    for name in ("PSD_MINI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    home = Path("/home/somebody/.cache/psd_mini")
    assert cache_folder() == home
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == home
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/psd_mini")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache_folder() == Path(tempfile.gettempdir()) / "psd_mini"


@pytest.mark.parametrize("kept", ["NaN", "-5", "Infinity", '"near"', "null"])
def test_an_oracle_that_cannot_be_is_not_believed(small_pool, cache, kept):
    """It is fitted again, and what is kept then is what was kept at first."""
    fitted = oracle.oracle_distance("voxel", ("ball", "red"), 8, 1)
    (path,) = cache.glob("oracle-*")
    path.write_text(f'{{"distance": {kept}}}')
    # exact: the same run on one machine and thread count
    assert oracle.oracle_distance("voxel", ("ball", "red"), 8, 1) == fitted
    assert json.loads(path.read_text())["distance"] == fitted


def test_a_cache_that_cannot_be_written_costs_nothing(small_pool, cache, monkeypatch):
    """It is a file, say: the pictures are drawn and the oracle fitted every time."""
    monkeypatch.setenv("PSD_MINI_CACHE", str(cache / "file"))
    (cache / "file").write_text("precious")
    with pytest.warns(UserWarning, match="views are not cached .*set PSD_MINI_CACHE to a folder"):
        drawn = make_views(pool_cameras(2), 8).layers
    assert drawn.isfinite().all() and (cache / "file").read_text() == "precious"
    with pytest.warns(UserWarning, match="views are not cached"):
        assert math.isfinite(oracle.oracle_distance("voxel", ("ball", "red"), 8, 1))


def test_an_oracle_of_this_code_comes_with_the_package(tmp_path, monkeypatch):
    """Of the default settings alone, and only while the code is the one that the table names; it
    has every object in every colour for both kinds of field."""
    monkeypatch.setattr(oracle, "cache_folder", lambda: tmp_path)  # of oracles, not of pictures
    table = json.loads(oracle.SHIPPED.read_text())
    for kind in ("voxel", "triplane"):
        assert table[kind].keys() == {text.caption(*pair) for pair in text.components()}
        assert all(0.01 < distance < 0.1 for distance in table[kind].values())
    mine, calls = tmp_path / "oracles.json", []
    monkeypatch.setattr(oracle, "SHIPPED", mine)
    monkeypatch.setattr(oracle, "distill", lambda *args, **how: calls.append(how["steps"]))
    for digest, resolution, steps, fits in (
        (made_of(oracle.MAKERS), 32, oracle.ORACLE_STEPS, False),
        (made_of(oracle.MAKERS), 32, 119, True),
        ("another", 32, oracle.ORACLE_STEPS, True),
    ):
        mine.write_text(json.dumps({"made_of": digest, "voxel": {"a red ball": 0.5}}))
        found = oracle.oracle_distance("voxel", ("ball", "red"), resolution, steps)
        assert bool(calls) == fits and (found == 0.5) != fits  # exact: a number from a file
        calls.clear()
