"""``python -m tools.parity GOLDEN_DIR``."""

import sys

from tools.parity.command import main

if __name__ == "__main__":
    sys.exit(main())
