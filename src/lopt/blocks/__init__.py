"""What optimizers are made of, each piece defined once."""

from lopt.blocks import accumulators, adafactor_mlp, features, nets, per_parameter, readout, tensors

__all__ = ["accumulators", "adafactor_mlp", "features", "nets", "per_parameter", "readout", "tensors"]
