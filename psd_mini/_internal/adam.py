"""torch's Adam, without the import of torch's compiler."""

import inspect
from collections.abc import Callable

import torch


def uncompiled(name: str) -> Callable:
    """A method of `torch.optim.Adam` without its decorators, of which only no_grad is needed."""
    return torch.no_grad()(inspect.unwrap(getattr(torch.optim.Adam, name)))


class Adam(torch.optim.Adam):
    """The same numbers, bit for bit, and a first step that is 1 to 2 s earlier.

    Decorators tell torch's compiler to leave an optimiser alone. For this they import it, with
    sympy and 800 other modules, as soon as there is an optimiser. Nothing is compiled here.
    """

    add_param_group = uncompiled("add_param_group")
    zero_grad = uncompiled("zero_grad")
    step = uncompiled("step")
    state_dict = uncompiled("state_dict")
    load_state_dict = uncompiled("load_state_dict")
