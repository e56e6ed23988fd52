import torch

def sds(x, t, eps, unet):
    print "loss", x.sum()
    return unet(x, t) - eps
