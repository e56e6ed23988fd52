"""Numbers in README and notebooks are those that a tool counts or that the cell above printed."""

import math
import re
import statistics
from pathlib import Path

import claims_tables
import flops
import nbformat
import pytest
import torch

import psd_mini as pm

ROOT = Path(__file__).parents[1]
ONE = "psd_in_one_notebook"
NEGATIVE, REAL = "05_negative_embeddings", "06_stable_diffusion_on_colab"
NUMBER = r"([-+]?\d+\.?\d*)"


def notebook(stem):
    return nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells


def prose(stem):
    """The words of a notebook, without line breaks."""
    return " ".join(
        " ".join(cell.source.split()) for cell in notebook(stem) if cell.cell_type == "markdown"
    )


def printed(stem, pattern):
    """The numbers in the one output line that the pattern describes; # stands for a number."""
    outputs = (output for cell in notebook(stem) for output in cell.get("outputs", []))
    text = "".join(output.get("text", "") for output in outputs)
    (found,) = re.findall(
        "^" + re.escape(pattern).replace(r"\#", "#").replace("#", NUMBER), text, re.MULTILINE
    )
    return found if isinstance(found, tuple) else (found,)


def says(stem, *sentences):
    words = prose(stem)
    for sentence in sentences:
        assert sentence in words, sentence


def test_a_word_with_a_minus_attracts():
    """What notebook 05 says of a minus, for points mu_k with weights exp(n_k).

    If w is added to n_j, the guided x0_hat moves by (g - 1) k (mu_j - x0_hat(n)), with
    k = gamma_j (1 - e^w) / (1 - gamma_j (1 - e^w)), which is above 0 for w < 0.
    """
    means = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.0, 0.5]], dtype=torch.float64)
    world = pm.GaussianMixture(torch.ones(3), means, [0.0] * 3, pm.scaled_linear_schedule())
    x_t, t = torch.tensor([[0.3, 0.2]], dtype=torch.float64), torch.tensor([600])
    prompt, n = torch.tensor([[1.0, 0.0, -2.0], [0.2, -0.3, 0.1]], dtype=torch.float64)
    g, j = 2.5, 1

    def guided(n):
        eps_hat = pm.cfg(*world.predict_noise(x_t, t, torch.stack((prompt, n))), g)
        return world.schedule.x0_from_eps(x_t, eps_hat, t)[0]

    abar = world.schedule.alphas_cumprod[600]
    gamma = (n - (x_t - abar.sqrt() * means).square().sum(1) / (2 * (1 - abar))).softmax(0)
    for w in (-3.0, 3.0):
        taken = gamma[j] * (1 - math.exp(w))
        moved = guided(n + w * torch.eye(3, dtype=torch.float64)[j]) - guided(n)
        toward = (g - 1) * taken / (1 - taken) * (means[j] - gamma @ means)
        torch.testing.assert_close(moved, toward, rtol=1e-9, atol=1e-12)


def test_notebook_05_reads_the_words_as_its_cell_does():
    for word in ("gray", "blue"):
        plus, minus = map(float, printed(NEGATIVE, f"{word}: # of the way for +3, # for -3"))
        # exact: printed with two digits, and not near 0
        assert plus < 0 < minus < -plus
    says(
        NEGATIVE,
        "Plus pushes away, minus attracts",
        "At this weight a minus is the weaker of the two",
    )


def test_the_one_notebook_says_what_it_prints():
    (best,) = printed(ONE, "best true mushroom: reward #")
    runs = {
        name: printed(ONE, f"{name:15s} reward #   distance # (# x SDS)")
        for name in ("SDS", "pixel gradient", "PSD")
    }
    reward, distance, times = runs["PSD"]
    # exact: printed digits
    assert float(reward) > float(best) and float(times) > 1.0
    says(
        ONE,
        f"above the best true mushroom: its reward is {reward}, that of the true red one {best}",
        f"It is also {times} times as far off as SDS is ({distance} against {runs['SDS'][1]})",
        f"The pixel gradient is {runs['pixel gradient'][2]} times as far off as SDS",
    )


def test_the_one_notebook_prints_closed_forms_beside_its_pairs():
    """2 Cov(R, f) of one Gaussian, S = 1/2, at alpha_t = 0.6: printed with three digits."""
    a, s, S = 0.6, 0.8, 0.5
    J = a * S / (a**2 * S + s**2)
    for name, value in (("h", -2 * a * s * J**2), ("eps_hat", 2 * s**3 * J**2 / (a * S))):
        found = map(float, printed(ONE, f"{name:8s} closed form #   pairs # +- #"))
        closed, pairs, error = found
        assert abs(closed - value) < 0.00051
        assert abs(pairs - value) < 4 * error + 0.00051


def test_notebook_06_says_what_it_prints():
    """The doors of the house with and without view words, and the colours of two mushrooms."""
    with_words, without = printed(
        REAL, "view words: door at ['0°', '45°', '315°'], true-view distance #"
    ) + printed(REAL, "no view words: door at [], true-view distance #")
    (best,) = printed(REAL, "best true mushroom: reward #")
    sds, psd = (
        printed(REAL, f"{name}: #% of the cap is purple, from #% to #% by view")
        for name in ("sds", "psd")
    )
    times = {
        name: printed(REAL, f"{name} {{'render': '# ms', 'prior': '# ms', 'backward': '# ms'")
        for name in ("SDS", "PSD")
    }
    shares = {name: float(backward) / float(prior) for name, (_, prior, backward) in times.items()}
    says(
        REAL,
        f"its distance to the true views, {with_words},",
        f"the distance to the true views is {without} instead of {with_words}",
        f"with SDS {sds[0]}% of it, from {sds[1]}% to {sds[2]}% by view, with PSD {psd[0]}%, from"
        f" {psd[1]}% to {psd[2]}%",
        f"the best true mushroom has {best}",
        f"costs {shares['SDS']:.1f} times as much as the prior in SDS, and {shares['PSD']:.1f}"
        " times as much in PSD",
    )


@pytest.mark.notebooks
def test_what_a_step_costs():
    """The table of stable_diffusion.md, and notebook 06's rows and its sentences on the parts."""
    columns = flops.columns()
    table = "\n".join(flops.table(columns))
    assert table in (ROOT / "tests" / "results" / "stable_diffusion.md").read_text()
    steps = {name: flops.steps(parts) for name, parts in columns.items()}
    rows = [
        f"| {name} | {' | '.join(f'{step[name]:.2f}' for step in steps.values())} |"
        for name in steps["KL"]
    ]
    assert "\n".join((*rows, *table.splitlines()[-2:])) in "\n".join(
        cell.source for cell in notebook(REAL)
    )
    kl, default, tiny = columns["KL"], columns["default"], columns["tiny"]
    asked, own = "UNet, two noises", kl["encode"] + 2 * kl["decode"]
    says(
        REAL,
        f"{kl['encode']:.2f} of the {steps['KL']['SDS']:.2f} TFLOP in SDS, and {own:.2f} of"
        f" {steps['KL']['PSD']:.2f} in PSD",
        f"{tiny['UNet']:.2f} of {steps['tiny']['SDS']:.2f} in SDS, {tiny[asked]:.2f} of"
        f" {steps['tiny']['PSD']:.2f} in PSD",
        f"{default[asked]:.2f} of PSD's {steps['default']['PSD']:.2f}, and the encoder"
        f" {default['encode']:.2f}",
    )


def assigned(stem, name):
    """The dictionary that a cell of a notebook assigns to a name."""
    (cell,) = (c for c in notebook(stem) if re.search(rf"^{name} = {{", c.source, re.MULTILINE))
    values: dict = {}
    exec(cell.source, values)
    return values[name]


def test_the_claims_in_notebooks_03_and_05_are_the_recorded_ones():
    """Proxy and gold over weights (03), reward in the dull world (05): means of the records."""
    swept = [r for r in claims_tables.read("sweep") if r["weight"] is not None]
    for name, columns in assigned("03_rewards_and_why_pixel_gradients_fail", "MEASURED").items():
        method, task = name.split(", ")
        of_task = claims_tables.worlds(swept)[task.replace("refining", "refine"), "rugged"]
        of_weight = claims_tables.settings_of(of_task)
        assert len(columns[0]) == 5
        for weight, *said in zip(*columns, strict=True):
            for key, value in zip(("proxy_reward", "gold_reward"), said, strict=True):
                found = statistics.mean(r[key] for r in of_weight[method, weight])
                assert abs(found - value) < 0.0051
    variants = {
        **{"null": "null", "no guidance, 3 x steps": "no guidance, three times the steps"},
        **{"a random word": "random", "n learned": "gradient", '"gray", by hand': "gray"},
        "bandit over words": "bandit",
    }
    for name, said in assigned(NEGATIVE, "MEASURED").items():
        mine = [r for r in claims_tables.read("dull") if r["variant"] == variants[name]]
        found = claims_tables.clustered(claims_tables.by_run(mine, "reward_of_best"))
        assert max(abs(a - b) for a, b in zip(found, said, strict=True)) < 0.00051


def test_what_is_said_of_claim_1_is_what_the_records_say():
    """Gold of psd minus that of the pixel gradient, with its error over the seven proxies; the
    sweep's proxy or gold chose the weights."""
    swept = [r for r in claims_tables.read("sweep") if r["weight"] is not None]
    judged = claims_tables.read("main") + claims_tables.read("proxies")
    swept, judged = claims_tables.worlds(swept), claims_tables.worlds(judged)
    said, each = {}, {}
    for world, records in judged.items():
        of, found = claims_tables.settings_of(records), []
        for key in ("proxy_reward", "gold_reward"):
            sides = [
                of[m, claims_tables.best_by(swept[world], m, key)] for m in ("psd", "pixel-clean")
            ]
            gap, error, each[world, key] = claims_tables.over_proxies(*sides)
            found.append((f"{gap:+.2f}", f"{error:.2f}"))
        said[world] = found
    nothing, refined = said["from nothing", "rugged"], said["refine", "rugged"]
    smooth = said["refine", "smooth"]
    by_proxy = [f"{gap} \\pm {error}" for gap, error in (nothing[0], smooth[0], refined[0])]
    says("04_preference_score_distillation", *(f"${value}$" for value in by_proxy))
    values = each[("from nothing", "rugged"), "proxy_reward"]
    assert len(values) == 7
    spread = f"{min(values):.2f} to {max(values):.2f}"
    says("04_preference_score_distillation", f"from {spread} from one to the next")
    says("03_rewards_and_why_pixel_gradients_fail", f"(by {spread})")
    (gap, error), by_gold = nothing[0], nothing[1]
    says(
        "03_rewards_and_why_pixel_gradients_fail",
        f"${gap.strip('+')} \\pm {error}$",
        f"(${by_gold[0]} \\pm {by_gold[1]}$)",
        f"${refined[0][0].strip('-')} \\pm {refined[0][1]}$",
        f"${smooth[0][0].strip('-')} \\pm {smooth[0][1]}$",
    )
    noise = [r for r in claims_tables.read("noise") if r["method"] == "pixel-noisy"]
    noise = [r for r in noise if r["weight"] == 1000]  # exact: a setting
    seen, without = ([r for r in noise if r["proxy"] == proxy] for proxy in ("noisy", 0))
    gap, error, *_ = claims_tables.difference(seen, without, "gold_reward")
    says("03_rewards_and_why_pixel_gradients_fail", f"gold ${gap:+.2f} \\pm {error:.2f}$")
    readme = (ROOT / "README.md").read_text()
    for gap, error in (nothing[0], smooth[0], refined[0]):
        assert f"{gap} ± {error}" in readme
