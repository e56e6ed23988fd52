"""Submissions written after the checkers, and the training of VSD's second network."""

import pytest
import torch.nn.functional as F
from submissions import RIGHT
from submissions_held_out import HELD_OUT
from worlds import mostly_slow

from psd_mini.checks import check_vsd
from psd_mini.checks.grading.grader import CHECKS


@pytest.mark.parametrize("name", mostly_slow(HELD_OUT))
def test_held_out(name):
    kind, submission, words = HELD_OUT[name]
    report = CHECKS[kind](submission)
    assert (report.status == "right") == (not words), report
    for word in words:
        assert word in "; ".join(report.causes)


def beside(train):
    """VSD whose answer has the training loss of q's network beside the gradient."""

    def vsd(x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale):
        arguments = (x, t, eps, unet, unet_lora, cond, uncond, scheduler, guidance_scale)
        x_t = scheduler.add_noise(x, eps, t).detach()
        return RIGHT["vsd_usual"][1](*arguments), train(x_t, t, eps, unet, unet_lora, cond)

    return vsd


def to_noise(x_t, t, eps, unet, unet_lora, cond):
    return F.mse_loss(unet_lora(x_t, t, cond).sample, eps)


def to_frozen(x_t, t, eps, unet, unet_lora, cond):
    return F.mse_loss(unet_lora(x_t, t, cond).sample, unet(x_t, t, cond).sample.detach())


def nothing(x_t, t, eps, unet, unet_lora, cond):
    return F.mse_loss(unet_lora(x_t, t, cond).sample.detach(), eps)


def test_training_of_the_second_network():
    rows = [check_vsd(beside(train)).require().findings for train in (to_noise, nothing)]
    trained, untrained = ([f for f in found if f.name == "training of q"][0] for found in rows)
    assert (trained.came, trained.status) == ("q learns +1 noise", "ok")
    assert untrained.status == "note" and "not checked" in untrained.cause
    assert "match the frozen model" in "; ".join(check_vsd(beside(to_frozen)).causes)
