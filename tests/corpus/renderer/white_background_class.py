import torch


class VolumeRenderer(torch.nn.Module):
    def forward(self, density, colors, deltas, bg_color):
        optical = density * deltas
        before = torch.cumsum(optical, dim=-1) - optical
        w = torch.exp(-before) * -torch.expm1(-optical)
        acc = w.sum(-1, keepdim=True)
        return torch.einsum("ns,nsk->nk", w, colors) + (1.0 - acc) * bg_color
