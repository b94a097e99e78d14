"""Writes the golden cases' logits, tests/goldens/*/expected.npz, anew; the inputs stay as they are.

    python -m tests.engines.helpers.golden_logits

They come from DeepMind's own `gemma`, in an environment of its own (gigabytes, cached).
"""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()

    from tests.engines.helpers.deepmind_logits import renew

    renew()


if __name__ == "__main__":
    main()
