"""Where networks run and in which precision, and gradients that survive half precision."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from psd_mini._internal.arguments import named, one_of
from psd_mini._internal.runs import NonFiniteError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# for rewards in float16: the gradient of a pixel is a thousandth of that of the score
GRADIENT_SCALE = 1024.0


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device that was asked for; by default the first GPU if there is one, else the CPU.

    Raises:
        ValueError: a device that does not exist here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with named(f"device: {device} cannot be used", "choose cpu, or cuda where there is a GPU"):
        tried = torch.zeros(1, device=device)
        tried.item()  # "meta" is a device, but one without numbers
        return tried.device


def choose_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """The precision that was asked for; by default the best one that the device computes in.

    That is bfloat16 on GPUs of compute capability 8.0 and up, float16 on older ones, float32 on
    everything else. `torch.cuda.is_bf16_supported` does not tell: it says yes on a T4, which only
    emulates bfloat16, slowly.

    Raises:
        ValueError: another name than float32, float16, bfloat16.
    """
    if dtype is None:
        if device.type != "cuda":
            return torch.float32
        newer = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if newer else torch.float16
    name = str(dtype).removeprefix("torch.")
    one_of("dtype", name, DTYPES)
    return DTYPES[name]


def freeze(
    network: nn.Module,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[torch.device, torch.dtype]:
    """Move a reward's network to where it runs; its weights get no gradients from now on.

    Args:
        network: changed in place.
        device: default what there is.
        dtype: default float16 on a GPU, float32 elsewhere.

    Returns:
        Its device and its precision.
    """
    device = choose_device(device)
    if dtype is None and device.type == "cuda":
        dtype = torch.float16
    dtype = choose_dtype(device, dtype)
    network.to(device, dtype).requires_grad_(False).eval()
    return device, dtype


def scaled_gradients(
    function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype, scale: float = 1.0
) -> Tensor:
    """y = function(x) in float32, whose backward pass survives a float16 network inside.

        forward   y = f(x)
        backward  dL/dx = c J^T (dL/dy / c),    c = max |dL/dy| / scale

    float16 rounds numbers below 6e-8 to 0 and overflows above 65504. With c the gradient that
    enters the network is of size `scale`, whatever the loss was. In exact arithmetic c changes
    nothing, because the backward pass is linear. One backward pass for each forward pass.

    Args:
        function: a network; takes x, gives a tensor.
        x: float32, of any shape.
        dtype: the network's precision; c is 1 unless this is float16 (bfloat16 has float32's
            range).
        scale: size of the largest entry of the gradient that enters the network.

    Raises:
        NonFiniteError: the network overflows in float16; goes by the function's name.
    """
    if dtype != torch.float16:
        return function(x).float()
    factors: list[Tensor] = []
    differentiable = x.requires_grad and torch.is_grad_enabled()
    if differentiable:
        x = x.clone()
        x.register_hook(lambda gradient: gradient * factors.pop())
    y = function(x).float()
    if bool(x.isfinite().all()) and not bool(y.isfinite().all()):
        remedy = "use dtype='bfloat16' (--dtype), or 'float32'"
        name = getattr(function, "__name__", "network")
        raise NonFiniteError(f"the {name} overflows in float16; {remedy}")
    if not differentiable:
        return y

    def shrink(gradient: Tensor) -> Tensor:
        factors.append(gradient.abs().max().clamp(min=torch.finfo(torch.float32).tiny) / scale)
        return gradient / factors[-1]

    y.register_hook(shrink)
    return y
