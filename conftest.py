"""Every test may use the real servers of tests/support."""

import gateway  # noqa: F401  before pytest takes the directory of that name for the package

pytest_plugins = ["tests.support.plugin"]
