"""Train, tune baselines, compare, report."""

from lopt.evaluate.baselines import LEARNING_RATES, Sweep, tune, tune_adam
from lopt.evaluate.compare import Comparison, Interval, Row, compare, interval
from lopt.evaluate.probes import Probe, probe
from lopt.evaluate.training import TrainRecord, train, train_batch

__all__ = [
    "LEARNING_RATES",
    "Comparison",
    "Interval",
    "Probe",
    "Row",
    "Sweep",
    "TrainRecord",
    "compare",
    "interval",
    "probe",
    "train",
    "train_batch",
    "tune",
    "tune_adam",
]
