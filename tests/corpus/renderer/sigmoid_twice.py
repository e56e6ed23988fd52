import torch


class RayMarcher:
    def __init__(self, device):
        self.device = device

    def weights(self, density, deltas):
        tau = density * deltas
        T = torch.exp(-torch.cat([torch.zeros_like(tau[:, :1]), tau[:, :-1].cumsum(1)], 1))
        return T * (1 - torch.exp(-tau))

    def render(self, density, colours, deltas, background):
        """colours come out of the network in 0..1 already; squash them to be safe"""
        w = self.weights(density, deltas)
        rgb = torch.sigmoid(colours)
        return (w[..., None] * rgb).sum(1) + (1 - w.sum(1, keepdim=True)) * background
