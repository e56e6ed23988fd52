class Guider:
    def __init__(self, w=7.5):
        self.w = w

    def __call__(self, cond_pred, uncond_pred):
        return (1 + self.w) * cond_pred - self.w * uncond_pred
