"""`python -m benchmarks`: idle threads sleep instead of spinning, which is set before torch starts them."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.run import main

sys.exit(main())
