"""Are the verdicts of tests/corpus true? python tests/tools/corpus_truth.py [--verbose] [name ...]

Every submission that can run is run in `corpus_world`, called as its row in verdicts.json says
("truth"), and its gradient is compared with the formula of its kind, written down again here:

    right    G = w(t) (reference), with the w(t) and the noise that the row names, in every trial
    scaled   G = c w(t) (reference), with the constant c that the row names
    wrong    neither: another direction, another sign, an x_t that is not alpha_t x + sigma_t eps

This does not use `psd_mini`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import traceback

import torch
from corpus_trials import CORPUS, LAM, Mismatch, givens, gradient, load, run
from corpus_world import (
    ABAR,
    LOG,
    SHAPE,
    Pipeline,
    TextEncoder,
    Tokenizer,
    install,
    network,
    reward,
)

N = 4 * 64 * 64  # elements of a picture
TRIALS = ((0, 2, 7.5), (1, 1, 3.0), (2, 2, 3.0), (3, 1, 7.5), (4, 2, 7.5))  # seed, batch, g


def rows_of(x: torch.Tensor) -> list[list[tuple[torch.Tensor, int]]]:
    """For each picture, the noised versions (x_t, t) that the networks were asked about."""
    unit = torch.nn.functional.normalize(x.flatten(1), dim=1)
    rows: list[list] = [[] for _ in x]
    for x_t, t in LOG.calls:
        for one, at in zip(x_t, t.tolist(), strict=True):
            seen = rows[int((unit @ one.flatten()).argmax())]
            if not any(at == other and torch.allclose(one, v, atol=1e-5) for v, other in seen):
                seen.append((one, at))
    return rows


def noise_in(x: torch.Tensor, x_t: torch.Tensor, t: float, known: bool) -> torch.Tensor:
    """eps = (x_t - alpha_t x) / sigma_t, if that is a noise that was drawn."""
    if t != int(t) or not 0 <= t < 1000:
        raise Mismatch(f"t = {t}")
    a = ABAR[int(t)]
    eps = (x_t - a.sqrt() * x) / (1 - a).sqrt()
    if abs(eps.std() - 1) > 0.05 or abs(eps.mean()) > 0.05:
        raise Mismatch("x_t is not alpha_t x + sigma_t eps")
    drawn = [d.reshape(-1, *SHAPE) for d in LOG.draws if d.numel() % N == 0]
    candidates = torch.cat(drawn)
    candidates = torch.cat((candidates, -candidates))
    error = (candidates - eps).flatten(1).norm(dim=1).min() / eps.norm()
    if known and error > 1e-3:
        raise Mismatch(f"x_t holds another noise than any that was drawn: {error:.1e}")
    return eps


def reference(kind: str, truth: dict, x, rows, cond, uncond, g: float) -> torch.Tensor:
    """The formula of a kind for one picture, with w = 1."""
    terms, scores, alpha_sigma = [], [], (0.0, 0.0)
    for x_t, t in rows:
        at, one = torch.tensor([t]), x_t[None]
        c, u = network(one, at, cond, False)[0], network(one, at, uncond, False)[0]
        eps = noise_in(x, x_t, t, truth.get("noise") != "numpy")
        a = ABAR[int(t)]
        alpha_sigma = a.sqrt().item(), (1 - a).sqrt().item()
        guided = u + g * (c - u)
        if kind == "csd":
            terms.append(c - u)
        elif kind == "vsd":
            terms.append(guided - network(one, at, cond, True)[0])
        else:
            terms.append(guided - eps)
        x0_hat = (x_t - (1 - a).sqrt() * guided) / a.sqrt()
        picture = torch.einsum("kc,khw->chw", Pipeline().vae.mix, x0_hat)
        scores.append(picture)
    if kind != "psd":
        if len(terms) != 1:
            raise Mismatch(f"{len(terms)} noised versions of one picture")
        return terms[0]
    if len(terms) != 2 or len({t for _, t in rows}) != 1:
        raise Mismatch(f"{len(terms)} noised versions in a pair")
    for picture in scores:
        look_at_shown(picture)
    shown = len(LOG.shown)
    gap = reward(scores[0][None]) - reward(scores[1][None])
    del LOG.shown[shown:]
    rules = {"sign": gap.sign(), "tanh": (gap / 2).tanh(), "gap*s": gap * alpha_sigma[1]}
    omega = rules[truth.get("omega", "sign")]
    return (terms[0] + terms[1]) / 2 + LAM * omega * (terms[0] - terms[1])


def look_at_shown(picture: torch.Tensor) -> None:
    """Was the reward shown this picture of x0_hat, at slope 1 or 1/2?"""
    flat = picture.flatten() - picture.mean()
    best = 0.0
    for shown in torch.cat(LOG.shown) if LOG.shown else []:
        if shown.numel() == flat.numel():
            other = shown.flatten() - shown.mean()
            slope = (flat @ other / (flat @ flat)).item()
            if (other - slope * flat).norm() < 1e-2 * other.norm():
                best = slope
    if min(abs(best - 1), abs(best - 0.5)) > 1e-2:
        raise Mismatch(f"the reward was not shown x0_hat (slope {best:.3g})")


def compare(row: dict, x, grad, values, g) -> list[tuple[float, int, float]]:
    """(t, batch, k) of every picture, G = k reference; Mismatch where it is no multiple."""
    truth, seen = row["truth"], []
    cond, uncond = values["cond"][:1], values["uncond"][:1]
    if truth.get("own"):
        prompt = truth.get("prompt", "a cat")
        cond, uncond = (TextEncoder()(Tokenizer()(p).input_ids)[0] for p in (prompt, ""))
    for i, rows in enumerate(rows_of(x)):
        want = reference(row["kind"], truth, x[i], rows, cond, uncond, truth.get("g", g))
        k = ((grad[i] * want).sum() / want.square().sum()).item()
        rest = (grad[i] - k * want).norm() / grad[i].norm().clamp(min=1e-30)
        if rest > truth.get("tol", 1e-3) or k <= 0:
            raise Mismatch(f"direction: k = {k:.3g}, {rest:.1e} of it is something else")
        seen.append((rows[0][1], len(x), k))
    return seen


def judge_gradient(name: str, row: dict) -> str:
    """ "right", "scaled" or "wrong: why", from all trials."""
    truth, found = row["truth"], []
    for seed, batch, g in TRIALS:
        if batch > 1 and truth.get("batch") is False:
            batch = 1
        values, answer = run(name, truth, seed, batch, g)
        try:
            x, grad = gradient(values, answer)
            found += [(*entry, g) for entry in compare(row, x, grad, values, g)]
        except Mismatch as error:
            return f"wrong: {error}"
    for divided in (False, True):
        errors = []
        for t, batch, k, g in found:
            a = ABAR[int(t)].item()
            names = {"a": a**0.5, "s": (1 - a) ** 0.5, "N": N, "B": batch, "g": g}
            want = eval(truth.get("w", "1"), names) * eval(truth.get("factor", "1"), names)
            errors.append(abs(k / want * (batch if divided else 1) - 1))
        if max(errors) < max(1e-2, truth.get("tol", 0)):
            constant = truth.get("factor", "1")
            return "right" if constant in ("1", "(g-1)") else "scaled"
    return f"wrong: sizes {[(int(t), b, round(k, 9)) for t, b, k, _ in found]}"


def close(got, want, tolerance: float = 1e-4) -> str:
    error = (got.double() - want).norm() / want.norm()
    return "right" if error < tolerance else f"wrong: {error:.1e} away"


def judge_cfg(name: str, row: dict) -> str:
    for g in (0.0, 1.0, 3.0, 7.5):
        e_c, e_u = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        names = {"m": load(name), "torch": torch, "g": g, "E_C": e_c, "E_U": e_u}
        if (said := close(eval(row["truth"]["call"], names), g * e_c + (1 - g) * e_u)) != "right":
            return said
    return "right"


def judge_negative(name: str, row: dict) -> str:
    for seed, batch, g in TRIALS:
        values, answer = run(name, row["truth"], seed, batch, g)
        n, x, t, eps = (values[key].detach().double() for key in ("n", "x", "t", "eps"))
        n, a = n.requires_grad_(), ABAR[t.long()].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x + (1 - a).sqrt() * eps
        u = network(x_t, t, n.expand(batch, -1, -1), False)
        e = u + g * (network(x_t, t, values["cond"], False) - u)
        x0_hat = (x_t - (1 - a).sqrt() * e) / a.sqrt()
        (want,) = torch.autograd.grad(-reward(x0_hat).mean(), n)
        if answer.shape != n.shape:
            answer.backward()
            answer = values["n"].grad
        if (said := close(answer, want, 1e-3)) != "right":
            return said
    return "right"


def judge_renderer(name: str, row: dict) -> str:
    truth = row["truth"]
    rho = torch.rand(20, 9, dtype=torch.float64) * 3
    rho[:, -1] = 0
    delta = torch.rand(20, 9, dtype=torch.float64) * 0.5
    z = 1 + torch.cat((torch.zeros(20, 1), delta[:, :-1].cumsum(1)), 1)
    values = {"rgb": torch.rand(20, 9, 3, dtype=torch.float64), "delta": delta, "z": z}
    bg = truth.get("bg", 0.7)
    names = values | {"rho": rho.requires_grad_(), "sigma": rho, "bg": bg, "m": load(name)}
    exec(truth.get("pre", ""), names)
    got = eval(truth["call"], names)
    passed = torch.ones(20, 1, dtype=torch.float64)
    want = torch.zeros(20, 3, dtype=torch.float64)
    for i in range(9):
        stays = torch.exp(-rho[:, i : i + 1] * delta[:, i : i + 1])
        want = want + passed * (1 - stays) * values["rgb"][:, i]
        passed = passed * stays
    want = want + passed * bg
    if (said := close(got, want)) != "right":
        return said
    slopes = [torch.autograd.grad(v.sum(), rho, retain_graph=True)[0] for v in (got, want)]
    return close(slopes[0][:, :-1], slopes[1][:, :-1])


def judge_schedule(name: str, row: dict) -> str:
    truth = row["truth"]
    values = givens(0, 3, 1.0) | {"m": load(name)}
    exec(truth.get("pre", ""), values)
    got = eval(truth["call"], values)
    a = ABAR[values["t"]].view(-1, 1, 1, 1)
    wants = {"abar": [ABAR], "pair": [ABAR.sqrt(), (1 - ABAR).sqrt()]}
    wants["mix"] = [a.sqrt() * values["x"] + (1 - a).sqrt() * values["eps"]]
    parts = got if isinstance(got, tuple) else (got,)
    said = [close(part, want) for part, want in zip(parts, wants[truth["form"]], strict=True)]
    return max(said)  # "wrong" comes after "right"


JUDGES = {"cfg": judge_cfg, "negative-embedding": judge_negative, "renderer": judge_renderer}
JUDGES |= {"schedule": judge_schedule}


def work(name: str, row: dict, send) -> None:
    """In a process of its own, in silence: submissions patch torch, and print."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        install()
        send.send(JUDGES.get(row["kind"], judge_gradient)(name, row))
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        send.send(f"could not run: {type(error).__name__} {error} ({where.name} {where.lineno})")
    if row["truth"].get("daemon"):  # its threads would keep the process
        os._exit(0)


def main(chosen: list[str], verbose: bool) -> int:
    torch.set_num_threads(1)
    table = json.loads((CORPUS / "verdicts.json").read_text())
    context, bad, skipped = multiprocessing.get_context("fork"), 0, 0
    for name, row in table.items():
        if chosen and not any(part in name for part in chosen):
            continue
        if "skip" in row["truth"]:
            skipped += 1
            continue
        receive, send = context.Pipe(False)
        sys.stdout.flush()
        process = context.Process(target=work, args=(name, row, send))
        process.start()
        said = receive.recv() if receive.poll(120) else "timed out"
        process.join(10)
        if said.split(":")[0] != row["expected"]:
            bad += 1
            print(f"MISLABELLED  {name}: {row['expected']}, but {said}")
        elif verbose:
            print(f"{name}: {said}")
    print(f"{len(table)} submissions, {skipped} that nobody can run, {bad} do not agree")
    return bad


if __name__ == "__main__":
    chosen = [argument for argument in sys.argv[1:] if argument != "--verbose"]
    sys.exit(bool(main(chosen, "--verbose" in sys.argv)))
