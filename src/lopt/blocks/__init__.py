"""What optimizers are made of, each piece defined once."""

from lopt.blocks import (
    accumulators,
    adafactor_mlp,
    features,
    hyper_network,
    nets,
    per_parameter,
    progress,
    readout,
    tensor_lstm,
    tensors,
)

__all__ = [
    "accumulators",
    "adafactor_mlp",
    "features",
    "hyper_network",
    "nets",
    "per_parameter",
    "progress",
    "readout",
    "tensor_lstm",
    "tensors",
]
