"""``python -m bench`` is ``amaml-bench``."""

from bench.cli import main

main()
