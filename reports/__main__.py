"""``python -m reports`` is ``amaml-report``."""

from reports.cli import main

main()
