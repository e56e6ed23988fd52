"""Submissions written after the checkers, and `train` of VSD's second network."""

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


def train_to_noise(x, t, eps, unet_lora, cond, scheduler):
    return F.mse_loss(unet_lora(scheduler.add_noise(x, eps, t), t, cond).sample, eps)


def train_to_frozen(x, t, eps, unet, unet_lora, cond, scheduler):
    x_t = scheduler.add_noise(x, eps, t)
    return F.mse_loss(unet_lora(x_t, t, cond).sample, unet(x_t, t, cond).sample.detach())


def train_nothing(x, t, eps, unet_lora, cond, scheduler):
    return F.mse_loss(unet_lora(scheduler.add_noise(x, eps, t), t, cond).sample.detach(), x)


def test_training_of_the_second_network():
    vsd = RIGHT["vsd_usual"][1]
    check_vsd(vsd, train=train_to_noise).require()
    assert "match the frozen model" in "; ".join(check_vsd(vsd, train=train_to_frozen).causes)
    assert "never learns" in "; ".join(check_vsd(vsd, train=train_nothing).causes)
