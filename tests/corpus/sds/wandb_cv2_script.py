import argparse
import os

import cv2
import torch
import wandb
from tqdm import trange

device = "cuda" if torch.cuda.is_available() else "cpu"


def sds_step(latents, text_embeddings, uncond, unet, scheduler, guidance_scale=100):
    b = latents.shape[0]
    t = torch.randint(20, 981, (b,)).to(device)
    eps = torch.randn_like(latents)
    with torch.no_grad():
        x = scheduler.add_noise(latents, eps, t)
        e_t = unet(x, t, encoder_hidden_states=text_embeddings)["sample"]
        e_u = unet(x, t, encoder_hidden_states=uncond)["sample"]
        e = e_u + guidance_scale * (e_t - e_u)
    return (1 - scheduler.alphas_cumprod.to(device)[t])[:, None, None, None] * (e - eps)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--iters", type=int, default=1000)
    args = ap.parse_args()
    wandb.init(project="sds")
    for _ in trange(args.iters):
        pass
    cv2.imwrite("out.png", None)


if __name__ == "__main__":
    main()
