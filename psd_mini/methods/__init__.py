"""Score-distillation methods, one page each. `METHODS` is where the command line finds them by name."""

from psd_mini.methods.context import Context, Cost, Predictions, predict
from psd_mini.methods.regression import Regression
from psd_mini.methods.sds import SDS, sds_gradient

METHODS = {"sds": SDS}

__all__ = ["METHODS", "SDS", "Context", "Cost", "Predictions", "Regression", "predict", "sds_gradient"]
