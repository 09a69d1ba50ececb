"""Where things are, for tests in whichever folder."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]  # of the repository
CONFIGS = ROOT / "configs"
GOLDEN = ROOT / "tests" / "golden"
SUPPORT = ROOT / "tests" / "support"
