"""Train, tune baselines, run a bench, compare, report."""

from lopt.evaluate.archive import Archive, Run, Timing
from lopt.evaluate.baselines import BASELINES, LEARNING_RATES, Baseline, Sweep, settings, tune, tune_adam
from lopt.evaluate.compare import Comparison, Interval, Row, compare, interval
from lopt.evaluate.selection import select, select_one_setting
from lopt.evaluate.training import TrainRecord, train, train_batch

__all__ = [
    "BASELINES",
    "LEARNING_RATES",
    "Archive",
    "Baseline",
    "Comparison",
    "Interval",
    "Row",
    "Run",
    "Sweep",
    "Timing",
    "TrainRecord",
    "compare",
    "interval",
    "select",
    "select_one_setting",
    "settings",
    "train",
    "train_batch",
    "tune",
    "tune_adam",
]
