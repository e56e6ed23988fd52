"""compare: its ground truth by hand, its records, resume, and mistakes before anything is run."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from worlds import quick_results

from psd_mini.pipelines import cli, tables
from psd_mini.pipelines import compare as compare_module
from psd_mini.pipelines.compare import compare, ground_truth
from psd_mini.rewards import Colorfulness
from psd_mini.world.metrics import judge_views
from psd_mini.world.text import components

SMALL = ["--seeds", "1", "--resolution", "8"]


@pytest.fixture
def quick(monkeypatch):
    quick_results(monkeypatch)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ground_truth_by_hand():
    """r_prior = mean r_k, r_opt = sum r_k exp(r_k / beta) / sum exp(r_k / beta) over the eight
    colours of a mushroom."""
    views, rewards = judge_views(), []
    for k, (name, _) in enumerate(components()):
        if name == "mushroom":
            pictures = views.pictures(torch.arange(24))[:, k]
            rewards.append(Colorfulness()(pictures).mean().item())
    truth = ground_truth("a mushroom", "colorfulness", beta=0.02)
    assert truth["r_prior"] == pytest.approx(sum(rewards) / 8, abs=1e-6)
    weights = [math.exp(r / 0.02) for r in rewards]
    assert truth["r_opt"] == pytest.approx(
        sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights), abs=1e-5
    )
    assert truth["r_best"] == pytest.approx(max(rewards), abs=1e-6)
    assert truth["r_prior"] + 0.1 < truth["r_opt"] < truth["r_best"] - 0.005


def test_compare_leaves_table_records_and_picture_and_resumes(quick, tmp_path, capsys):
    """Two methods with one seed (exact is added): the records' fields, the distance to the
    optimum, and nothing run twice."""
    command = ["compare", "a ball", "--methods", "sds,psd,sds+neg", *SMALL, "--steps", "2"]
    cli.main([*command, "--out", str(tmp_path)])
    records = {r["method"]: r for r in json.loads((tmp_path / "compare.json").read_text())}
    assert list(records) == ["sds", "psd", "sds+neg", "exact"]
    wanted = (
        "method prompt seed reward gain true_view_distance oracle_distance log_density_gap"
        " distance_to_optimum recognised"
    )
    assert set(wanted.split()) | {"prior_evaluations", "seconds"} <= set(records["psd"])
    assert records["exact"]["distance_to_optimum"] == 0  # exact: a picture and itself
    assert records["psd"]["distance_to_optimum"] > 1e-4
    assert records["psd"]["prior_evaluations"] == 2 * records["sds"]["prior_evaluations"] == 16
    assert "negative_words" in records["sds+neg"]
    truth = ground_truth("a ball", "colorfulness")
    gain = (records["sds"]["reward"] - truth["r_prior"]) / (truth["r_opt"] - truth["r_prior"])
    assert records["sds"]["gain"] == pytest.approx(gain)
    assert (
        "| psd |" in (tmp_path / "compare.md").read_text()
        and (tmp_path / "compare.png").stat().st_size > 1000
    )
    capsys.readouterr()
    cli.main([*command, "--out", str(tmp_path), "--resume"])
    assert "[1/" not in capsys.readouterr().out
    assert {r["method"]: r for r in json.loads((tmp_path / "compare.json").read_text())} == records
    # a run whose file is lost is run again
    for file in (tmp_path / "compare_runs").glob("exact-*.pt"):
        file.unlink()
    cli.main([*command, "--out", str(tmp_path), "--resume"])
    assert "[1/1] exact seed 0" in capsys.readouterr().out
    again = {r["method"]: r for r in json.loads((tmp_path / "compare.json").read_text())}
    timeless = [
        {k: v for k, v in r.items() if k != "seconds"} for r in (*again.values(), *records.values())
    ]
    assert timeless[:4] == timeless[4:]


def test_finished_runs_are_not_written_over(quick, tmp_path, capsys):
    """Without resume: refused; with it, another prompt, reward or length: refused too; nothing
    changes. A run that was killed before its record was written is run again; overwrite starts
    anew."""
    command = ["compare", "a ball", "--methods", "exact", *SMALL, "--steps", "1"]
    cli.main([*command, "--out", str(tmp_path)])
    before = contents(tmp_path)
    for arguments, message in (
        (
            [],
            (
                "holds 1 finished runs; go on with them by resume=True (--resume), replace it with"
                " overwrite"
            ),
        ),
        (["--methods", "sds"], "holds 1 finished runs"),
        (["--resume", "--steps", "2"], "holds another comparison, with steps = 1, this run has 2"),
        (
            ["--resume", "--reward", "color:red"],
            "with reward_name = 'colorfulness', this run has 'color:red'",
        ),
        (["--resume", "--overwrite"], "resume, overwrite: one goes on with what is in the folder"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*command, "--out", str(tmp_path), *arguments])
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(ValueError, match="with prompt = 'a ball', this run has 'a cube'"):
        compare("a cube", ["exact"], steps=1, resolution=8, out=tmp_path, resume=True)
    assert contents(tmp_path) == before
    (run,) = (tmp_path / "compare_runs").glob("*.pt")
    run.unlink()
    cli.main([*command, "--out", str(tmp_path), "--resume"])
    assert "[1/1] exact seed 0" in capsys.readouterr().out
    cli.main([*command, "--out", str(tmp_path), "--seeds", "2", "--resume"])
    assert "[1/1] exact seed 1" in capsys.readouterr().out
    cli.main([*command, "--out", str(tmp_path), "--seeds", "2", "--resume"])
    assert "[1/" not in capsys.readouterr().out
    cli.main([*command, "--out", str(tmp_path), "--overwrite"])
    assert "[1/1] exact seed 0" in capsys.readouterr().out


def test_every_comparison_has_a_folder_of_its_own(tmp_path, monkeypatch):
    """By default it is named after the prompt and what differs; methods and seeds can be added
    to a folder."""
    monkeypatch.chdir(tmp_path)
    seen = []

    def run_all(jobs, folder, objects, executor):
        seen.append(str(folder))
        return jobs

    monkeypatch.setattr(compare_module, "run_all", run_all)
    monkeypatch.setattr(compare_module, "write_tables", lambda *arguments: [])
    for change in (
        {},
        {"prompt": "a cube"},
        {"reward": "color:red"},
        {"reward": Colorfulness()},
        {"steps": 2},
        {"resolution": 8},
    ):
        compare(**{"prompt": "a ball", "methods": ["exact"], **change})
    assert seen[0] == "psd_mini_out/compare-a-ball" and len(set(seen)) == len(seen)
    assert not compare_module.Worker.objects


def test_a_changed_method_of_the_same_name_is_run_again(quick, tmp_path, capsys):
    """And nothing that was given as an object is left behind for a later call."""

    def scaled(factor):
        return lambda x, t, eps, context: factor * x

    settings = {"seeds": 1, "steps": 1, "resolution": 8, "out": tmp_path, "resume": True}
    for factor, ran in ((1.0, "[2/2]"), (2.0, "[1/1] mine")):
        compare("a ball", {"mine": scaled(factor)}, **settings)
        assert ran in capsys.readouterr().out and not compare_module.Worker.objects
    compare("a ball", {"mine": scaled(2.0)}, **settings)
    assert "[1/" not in capsys.readouterr().out


def test_an_executor_of_ones_own(quick, tmp_path):
    """Runs go where it says, own functions as well, and the records are those of the own pool; the
    executor is left open, since it is the caller's."""

    def mine(x, t, eps, context):
        return x - eps[0]

    settings = {"seeds": 1, "steps": 1, "resolution": 8}
    with ThreadPoolExecutor(1) as executor:
        sent = compare("a ball", {"mine": mine}, **settings, out=tmp_path / "a", executor=executor)
        assert executor.submit(len, "ab").result() == 2
    usual = compare("a ball", {"mine": mine}, **settings, out=tmp_path / "b")
    for a, b in zip(sent, usual, strict=True):
        assert (a["method"], a["recognised"]) == (b["method"], b["recognised"])
        assert a["reward"] == pytest.approx(b["reward"], abs=1e-5)
    with pytest.raises(ValueError, match="^executor: expected"):
        compare("a ball", ["sds"], **settings, out=tmp_path / "c", executor=4)


def test_mistakes_come_before_the_runs(tmp_path, capsys):
    for arguments, message in (
        (["a ball", "--methods", "sds,magic"], "methods: 'magic' is not known"),
        (["a ball", "--seeds", "0"], "seeds: expected a whole number of at least 1, got 0"),
        (["a hippo"], "the toy world does not know 'hippo'"),
        (["a ball", "--reward", "nice"], "reward: 'nice' is not known"),
        (["a ball", "--out", "/dev/null/folder"], "Not a directory"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["compare", "--out", str(tmp_path / "out"), *arguments])
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_methods_and_rewards_of_ones_own(quick, tmp_path):
    """A plain function as method: its row has its name and what it computes (SDS, so SDS's
    numbers); a reward as well."""

    def mine(x, t, eps, context):
        schedule = context.prior.schedule
        x_t = schedule.add_noise(x, eps[0], t)
        eps_hat = context.prior.predict_noise(x_t, t, context.embeddings[:1], context.cameras)[0]
        return schedule.weight(t, "sds", x) * (eps_hat - eps[0])

    def redness(images, prompts):
        assert set(prompts) == {
            "a ball"
        }  # exact asks for the run's prompt too, not for each component's caption
        return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))

    settings = {"seeds": 1, "steps": 2, "resolution": 8, "out": tmp_path}
    records = compare("a ball", {"sds": "sds", "mine": mine, "theirs": "sds2"}, redness, **settings)
    row = {r["method"]: r for r in records}
    assert list(row) == ["sds", "mine", "theirs", "exact"]
    far = {name: record["distance_to_optimum"] for name, record in row.items()}
    assert (
        far["mine"] == pytest.approx(far["sds"], abs=1e-9)
        and abs(far["theirs"] - far["sds"]) > 1e-4
    )
    assert row["mine"]["reward"] == row["sds"]["reward"] and row["sds"]["reward_name"].startswith(
        "redness "
    )
    for wrong in ("sds,psd", [mine]):
        with pytest.raises(ValueError, match="^methods: expected a list"):
            compare("a ball", wrong, **settings)


@pytest.mark.slow
def test_weights_make_a_curve_of_proxy_and_gold(tmp_path):
    """Means over the seeds by weight, in the order of the weights; a picture only with a proxy.

    Catches curves sorted as text, and gold taken for the proxy.
    """
    records = [
        {"method": f"psd@{w}", "seed": s, "reward": w + s, "gold_reward": 10 * w - s}
        for w in (16, 4)
        for s in (0, 1)
    ]
    records.append({"method": "exact", "seed": 0, "reward": 1.0, "gold_reward": 1.0})
    expected = {"psd": [(4.0, 4.5, 39.5), (16.0, 16.5, 159.5)]}
    assert tables.over_weights(records) == expected  # exact: sums of small integers
    without = [{key: r[key] for key in ("method", "reward")} for r in records]
    assert tables.over_weights(without) == {}
    assert tables.name_and_weight("psd@2+neg") == ("psd", 2)
    numbers = {"seeds": 1, "steps": 1, "resolution": 8}
    methods = ["psd@1", "psd@4"]
    made = compare("a ball", methods, "proxy:smooth", out=tmp_path, **numbers)
    assert (tmp_path / "overoptimisation.png").stat().st_size > 1000
    assert all(r["reward"] == r["proxy_reward"] for r in made)  # exact: one number twice
    assert "| gold reward |" in (tmp_path / "compare.md").read_text()


@pytest.mark.parametrize(
    "name, message",
    [
        ("psd@much", "methods: 'psd@much': expected a number after @, as in psd@16"),
        ("sds@2", "preference_weight"),
        ("nonsense@2", "methods: 'nonsense' is not known"),
    ],
)
def test_weights_that_are_none_are_refused(name, message, tmp_path):
    with pytest.raises(ValueError) as refusal:
        compare("a ball", [name], out=tmp_path)
    assert message in str(refusal.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_damaged_run_is_named_and_nothing_is_run(tmp_path, content):
    """One line with the file and the remedy, not what zip or torch say; a flipped bit is damage."""
    runs = tmp_path / compare_module.RUNS
    runs.mkdir()
    path = runs / "sds-0-12345678.pt"
    torch.save({"record": {}, "pictures": torch.zeros(1, 3, 8, 8).byte()}, path)
    whole = path.read_bytes()
    middle = whole.index(bytes(192))  # the pictures
    flipped = whole[:middle] + b"\x01" + whole[middle + 1 :]
    path.write_bytes(flipped if content is None else content)
    with pytest.raises(
        ValueError, match=r"^out: .*sds-0-12345678.pt is damaged .*; delete it, and"
    ):
        compare("a ball", ["sds"], out=tmp_path, resume=True)
    assert list(contents(tmp_path)) == [path]
