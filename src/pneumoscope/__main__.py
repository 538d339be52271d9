"""`python -m pneumoscope` is `pneumoscope`."""

from pneumoscope.cli import main

main()
