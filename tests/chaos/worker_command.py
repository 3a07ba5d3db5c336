"""How the trainer of pure Python is started."""

import sys

STAND_IN = (sys.executable, "-m", "tests.stand_ins.trainer", "--wait")
