"""`make test-training`: runs the tests of this folder in an environment of their own, made on first use and kept.

python -m tests.training.trainers [options of pytest]
"""

import subprocess
import sys
from pathlib import Path

from real270m.fetch import Unavailable
from tests.engines.helpers.environments import environment


def main() -> int:
    try:
        python = environment("training")
    except Unavailable as error:
        sys.exit(str(error))
    return subprocess.run([python, "-m", "pytest", Path(__file__).parent, *sys.argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
