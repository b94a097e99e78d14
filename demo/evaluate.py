"""Asks a model the questions of every skill and counts exact answers: `python -m demo.evaluate`.

Every question goes the way a user's does: chat template, processor, greedy `generate`. An answer counts when it is the
expected sentence, letter by letter (easy-VQA: the expected word). In chats of several turns the earlier turns hold the
right answers. In the free chats, written by hand, they hold what the model said, and an answer counts that has the
words accepted for it. Pictures, backgrounds and places are drawn from seeds that training never uses; the art of
OpenMoji and EmojiOne 1 and an eighth of the words are in no training picture; the easy-VQA questions are the public
test split, all of them.
"""

import argparse
import json
import os
from pathlib import Path

from .places import ROOT
from .skills import COUNTS, FREE_CHATS, SEEDS, TUNING_CHATS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT, help="converted repository to ask (default: this one)")
    parser.add_argument("--state", type=Path, help="ask the fake-quantized model of this training folder instead")
    parser.add_argument("--split", choices=SEEDS, default="test")
    skills = [*COUNTS, FREE_CHATS]
    parser.add_argument("--skills", nargs="+", choices=[*skills, *TUNING_CHATS], default=skills)
    parser.add_argument("--limit", type=int, help="at most so many questions per skill")
    parser.add_argument("--errors", type=int, default=0, help="print so many wrong answers per skill")
    parser.add_argument("--out", type=Path, help="write all answers here, as JSON")
    parser.add_argument("--agreement", type=int, help="only compare int4 and float answers to so many questions")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")

    import torch

    from .asking import agreement, load_checkpoint, load_state, score

    torch.set_num_threads(2)
    if options.agreement:
        share = agreement(options.model, options.agreement)
        print(f"the same greedy answer to {100 * share:.2f} % of {options.agreement} questions")
        return
    model, processor = load_state(options.state) if options.state else load_checkpoint(options.model)
    record = score(model, processor, options.skills, options.split, options.limit, options.errors)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
