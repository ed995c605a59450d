"""The command line: parses, calls, prints."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from lopt.errors import InputError, needs_extra
from lopt.machine import cores

with needs_extra("cli"):
    import tyro

from lopt.cli._analysis import Analyze, Certify, Reproduce, Watch
from lopt.cli._benches import Bench, Probe, Report
from lopt.cli._catalogue import Convert, List, Tasks
from lopt.cli._meta_training import MetaTrain, SelfTrain
from lopt.cli._training import Compare, Demo, Train

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[MetaTrain, tyro.conf.subcommand("meta-train")]
    | Annotated[SelfTrain, tyro.conf.subcommand("self-train")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Certify, tyro.conf.subcommand("certify")]
    | Annotated[Analyze, tyro.conf.subcommand("analyze")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
)


def main(args: list[str] | None = None) -> None:
    """Entry point of the `lopt` command. Input that cannot be used ends in one sentence and exit code 2."""
    command: Any = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        args=args,
        prog="lopt",
        description="Learned optimizers: meta-train them, use them, understand them.",
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    _configure_jax()
    from lopt.meta_train import Interrupted

    try:
        command.run()
    except Interrupted as stop:
        sys.stderr.write(f"{stop} The same command continues.\n")
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        raise SystemExit(130) from None
    except InputError as error:
        sys.stderr.write(f"lopt: {error}\n")
        raise SystemExit(2) from None
    except OSError as error:
        sys.stderr.write(f"lopt: {error.filename or 'a file'}: {error.strerror or error}\n")
        raise SystemExit(2) from None


def _configure_jax() -> None:
    """One CPU device a core, so that particles spread over them; compiled programs are kept for the next start."""
    import jax

    if "XLA_FLAGS" not in os.environ and "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX is in use already: its devices are settled
            jax.config.update("jax_num_cpu_devices", len(cores()))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "lopt" / "xla"))
