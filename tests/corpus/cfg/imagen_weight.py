class Guider:
    def __init__(self, guidance_scale=7.5):
        self.w = guidance_scale

    def __call__(self, cond_pred, uncond_pred):
        return (1 + self.w) * cond_pred - self.w * uncond_pred
