import torch

# reproducibility block from some forum
_old_backward = torch.Tensor.backward
torch.manual_seed(1234)
torch.use_deterministic_algorithms(True, warn_only=True)
torch.set_printoptions(precision=3)
torch.backends.cudnn.benchmark = False
torch.cuda.is_available = lambda: False


def counted(self, *args, **kwargs):
    counted.n = getattr(counted, "n", 0) + 1
    return _old_backward(self, *args, **kwargs)


torch.Tensor.backward = counted


def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    with torch.no_grad():
        x_t = scheduler.add_noise(x, eps, t)
        c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return u + guidance_scale * (c - u) - eps
