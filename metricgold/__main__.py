"""``python -m metricgold``: the same as the command ``metricgold``."""

from metricgold.cli import main

if __name__ == "__main__":
    main()
