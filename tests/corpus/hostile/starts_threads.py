import threading
import time

import torch


def heartbeat():
    while True:
        time.sleep(0.05)


for _ in range(8):
    threading.Thread(target=heartbeat, daemon=True).start()


def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    box = {}

    def work(name, e):
        with torch.no_grad():
            box[name] = unet(box["x_t"], t, e).sample

    box["x_t"] = scheduler.add_noise(x, eps, t).detach()
    for name, e in (("c", cond), ("u", uncond)):
        worker = threading.Thread(target=work, args=(name, e))
        worker.start()
        worker.join()
    return box["u"] + guidance_scale * (box["c"] - box["u"]) - eps
