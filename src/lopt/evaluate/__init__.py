"""Train, tune baselines, run a bench, compare, report."""

from lopt.evaluate.baselines import BASELINES, LEARNING_RATES, Baseline, Sweep, settings, tune, tune_adam
from lopt.evaluate.bench.archive import Archive, differences
from lopt.evaluate.bench.export import export
from lopt.evaluate.bench.run import run, standings
from lopt.evaluate.bench.suites import SUITES, Suite, find_suite
from lopt.evaluate.compare import Comparison, Interval, Row, compare, interval
from lopt.evaluate.probes.questions import Probe, probe
from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.scores.selection import scored, select, select_one_setting
from lopt.evaluate.scores.summary import Scores, Summary, score
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
    "export",
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
    "train",
    "train_batch",
    "tune",
    "tune_adam",
]
