"""The `lopt` command, also as `python -m lopt`: one sentence if the packages of the command line are missing."""

from __future__ import annotations

import sys

from lopt.errors import InputError


def main() -> None:
    """Start the command line."""
    try:
        from lopt import cli
    except InputError as error:  # the extra `cli` is missing
        sys.stderr.write(f"lopt: {error}\n")
        raise SystemExit(2) from None
    cli.main()


if __name__ == "__main__":
    main()
