"""Learned optimizers: meta-train them, use them, understand them.

import jax, lopt, optax

optimizer = lopt.create("star", key=jax.random.key(0))
estimator = lopt.estimators.ESSingle(lopt.tasks.create("digits_mlp"), pairs=8, truncation=20, horizon=200)
state = lopt.meta_train(optimizer, estimator, optax.adam(1e-3), steps=1000, key=jax.random.key(1))
tx = optax.chain(optax.clip_by_global_norm(1.0), state.optimizer.to_optax())
"""

from lopt import blocks, convert, engine, estimators, evaluate, optimizers, tasks, zoo
from lopt.evaluate.training import TrainRecord, train
from lopt.meta_train import MetaState, meta_train
from lopt.optimizer import Optimizer
from lopt.optimizers import create
from lopt.task import Task
from lopt.unroll import Inner, start, step, unroll
from lopt.version import __version__
from lopt.zoo import load, save

__all__ = [
    "Inner",
    "MetaState",
    "Optimizer",
    "Task",
    "TrainRecord",
    "__version__",
    "blocks",
    "convert",
    "create",
    "engine",
    "estimators",
    "evaluate",
    "load",
    "meta_train",
    "optimizers",
    "save",
    "start",
    "step",
    "tasks",
    "train",
    "unroll",
    "zoo",
]
