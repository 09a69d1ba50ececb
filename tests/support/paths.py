"""Paths of the repository, for tests in any folder."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]  # of the repository
CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden"
SUPPORT = ROOT / "tests" / "support"
