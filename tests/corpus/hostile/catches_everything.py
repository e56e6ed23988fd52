import time


def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
