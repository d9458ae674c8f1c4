"""Runs the demonstration: python -m tunesmith_local.demo."""

import sys

from tunesmith_local.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
