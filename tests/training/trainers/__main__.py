"""`make test-training`: runs the tests of this folder in an environment of their own, made on first use and kept.

python -m tests.training.trainers [options of pytest]
"""

import argparse
import subprocess
import sys
from pathlib import Path

from real270m.fetch import Unavailable
from tests.engines.helpers.environments import environment


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.training.trainers", description=__doc__.partition("\n")[0])
    parser.epilog = "Every option is pytest's."
    _, options = parser.parse_known_args()
    try:
        python = environment("training")
    except Unavailable as error:
        sys.exit(str(error))
    return subprocess.run([python, "-m", "pytest", Path(__file__).parent, *options]).returncode


if __name__ == "__main__":
    sys.exit(main())
