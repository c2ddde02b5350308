"""``python -m metricgold``: the same as the command ``metricgold``."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line; a sentence where only what exported models need is installed."""
    try:
        from metricgold import cli
    except ModuleNotFoundError as error:
        print(
            f"error: the command metricgold needs {error.name}; install 'metricgold[train]' "
            "(python -m export.trt_infer runs exported models without)",
            file=sys.stderr,
        )
        sys.exit(1)
    cli.main()


if __name__ == "__main__":
    main()
