"""Train, tune baselines, run a bench, compare, report."""

from lopt.evaluate.baselines import BASELINES, LEARNING_RATES, Baseline, settings
from lopt.evaluate.bench.archive import Archive, differences
from lopt.evaluate.bench.export import export
from lopt.evaluate.bench.run import run_bench, standings
from lopt.evaluate.bench.suites import SUITES, Suite, find_suite
from lopt.evaluate.compare import Comparison, Row, compare
from lopt.evaluate.grid import Tuned, tune
from lopt.evaluate.probes.questions import Probe, probe
from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.scores.resampling import Estimate
from lopt.evaluate.scores.selection import select, select_one_setting, within_suite
from lopt.evaluate.scores.statistics import mean_interval
from lopt.evaluate.scores.summary import Scores, Summary, score
from lopt.evaluate.training import TrainRecord, train, train_batch

__all__ = [
    "BASELINES",
    "LEARNING_RATES",
    "SUITES",
    "Archive",
    "Baseline",
    "Comparison",
    "Estimate",
    "Probe",
    "Row",
    "Run",
    "Scores",
    "Suite",
    "Summary",
    "Timing",
    "TrainRecord",
    "Tuned",
    "Unit",
    "compare",
    "differences",
    "export",
    "find_suite",
    "mean_interval",
    "probe",
    "run_bench",
    "score",
    "select",
    "select_one_setting",
    "settings",
    "standings",
    "train",
    "train_batch",
    "tune",
    "within_suite",
]
