"""One thread for tests: torch's threads wait busily, and on a shared machine two of them are slower
than one.

`pytest -m algebra --jitter 1e-14 --seed-offset 1000` asks whether an identity is luck: seeds are
others, and inputs are moved."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--jitter",
        type=float,
        default=0.0,
        help="move every random float64 input by up to this share of itself",
    )
    parser.addoption(
        "--seed-offset", type=int, default=0, help="add this to every seed that torch is given"
    )


def pytest_configure(config):
    """Before any test is imported, since some make their inputs then."""
    jitter, offset = config.getoption("--jitter"), config.getoption("--seed-offset")
    if jitter:
        torch.randn, torch.rand = moved(torch.randn, jitter), moved(torch.rand, jitter)
    if offset:
        seed_everything, generator = torch.manual_seed, torch.Generator

        class Shifted(generator):  # type: ignore[misc, valid-type]
            def manual_seed(self, seed):
                return super().manual_seed(seed + offset)

        torch.Generator = Shifted  # type: ignore[misc]
        torch.manual_seed = lambda seed: seed_everything(seed + offset)


def moved(draw, jitter):
    """`draw`, whose float64 numbers x_i become x_i (1 + jitter cos i): as far apart as two
    processors' sums."""

    def drawn(*args, **kwargs):
        x = draw(*args, **kwargs)
        if x.dtype != torch.float64:
            return x
        return x * (1 + jitter * torch.arange(x.numel(), dtype=x.dtype).cos().view(x.shape))

    return drawn


# Files in which every test starts processes of its own. Plain pytest runs every fifth of their
# tests, but for those of a table that takes long to make; `pytest -m slow` runs the others.
SAMPLED = {
    f"test_checks_{name}.py"
    for name in ("door", "grader", "isolation", "outlets", "robust", "stand_ins")
}
EVERY = 5


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    of_file = {}
    for item in items:
        number = of_file[item.path.name] = of_file.get(item.path.name, -1) + 1
        made_long = {"results", "table"} & set(item.fixturenames)
        if item.path.name in SAMPLED and (number % EVERY or made_long):
            item.add_marker(pytest.mark.slow)
