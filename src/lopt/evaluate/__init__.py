"""Train, tune baselines, run a bench, compare, report."""

from lopt.evaluate.archive import Archive, Run, Timing, Unit, differences
from lopt.evaluate.baselines import BASELINES, LEARNING_RATES, Baseline, Sweep, settings, tune, tune_adam
from lopt.evaluate.bench import run, standings
from lopt.evaluate.compare import Comparison, Interval, Row, compare, interval
from lopt.evaluate.contenders import task_named
from lopt.evaluate.probes import Probe, probe
from lopt.evaluate.scores import Scores, Summary, score
from lopt.evaluate.selection import scored, select, select_one_setting
from lopt.evaluate.suites import SUITES, Suite, find_suite
from lopt.evaluate.training import TrainRecord, train, train_batch

__all__ = [
    "BASELINES",
    "LEARNING_RATES",
    "SUITES",
    "Archive",
    "Baseline",
    "Comparison",
    "Interval",
    "Probe",
    "Row",
    "Run",
    "Scores",
    "Suite",
    "Summary",
    "Sweep",
    "Timing",
    "TrainRecord",
    "Unit",
    "compare",
    "differences",
    "find_suite",
    "interval",
    "probe",
    "run",
    "score",
    "scored",
    "select",
    "select_one_setting",
    "settings",
    "standings",
    "task_named",
    "train",
    "train_batch",
    "tune",
    "tune_adam",
]
