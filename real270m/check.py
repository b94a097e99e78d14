"""The real Gemma 3 270M through the whole path; run by `make real270m`, not by pytest.

    GGUF (Q4_K_M) -> float weights snapped to the int4 grid -> Kaggle-layout checkpoint -> convert_flax.py -> our model

compared with the same snapped weights in stock transformers. Snapping (scale = absmax / 7 a group) stands in for
quantization-aware training, which these weights never had: their perplexity suffers, the comparison does not.
Everything is cached under ~/.cache/gemma3-int4; the weights are Google's, under Gemma's terms, and stay there.
"""

import argparse
import sys

from real270m.fetch import Unavailable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()

    from real270m.comparison import compare

    try:
        return 0 if compare() else 1
    except Unavailable as error:
        sys.exit(f"real270m.check: {error}")


if __name__ == "__main__":
    sys.exit(main())
