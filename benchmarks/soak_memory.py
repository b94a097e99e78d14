"""What a reader that remembers takes of the process's memory over many questions, beside the bound.

    python -m benchmarks.soak_memory [--model FOLDER] [--questions 500] [--chats 20] [--megabytes 50]

Chats of random tokens and pictures are asked by turns, and begun anew when they are long. Listed are the memory's bytes
and the process's private memory (Linux), and both after all is dropped. The largest prompt's own cache and the work of
reading it come on top of the bound.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 2000  # tokens of a chat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT), help="default: the checkpoint at the root")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--chats", type=int, default=20)
    parser.add_argument("--megabytes", type=float, default=50)
    arguments = parser.parse_args()

    import torch
    from transformers import AutoModelForImageTextToText

    from benchmarks.memory import memory
    from chat.reader import Reader

    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True).eval()
    config, limit = model.config, int(arguments.megabytes * 1e6)
    side = config.vision_config.image_size
    soft = [config.boi_token_index, *config.mm_tokens_per_image * [config.image_token_id], config.eoi_token_index]
    reader, chance = Reader(model, limit), random.Random(0)
    chats: list[tuple[list[int], list[torch.Tensor]]] = [([2], []) for _ in range(arguments.chats)]
    most = prompt = remembered = 0

    def note(tokens: int) -> None:
        nonlocal remembered
        remembered += tokens

    def line(name: object) -> None:
        print(f"| {name} | {reader.memory.bytes / 1e6:.1f} | {memory()['rss_anon']:.0f} |", flush=True)

    print("| questions | remembered, MB | private memory, MB |\n|---|---|---|")
    line(0)
    for number in range(1, arguments.questions + 1):
        place = chance.randrange(arguments.chats)
        if len(chats[place][0]) > LONGEST:
            chats[place] = ([2], [])
        ids, pictures = chats[place]
        if chance.random() < 0.2:
            ids += soft
            pictures.append(torch.rand(3, side, side) * 2 - 1)
        ids += chance.choices(range(10, 1000), k=chance.randint(5, 200))
        inputs = {"input_ids": torch.tensor([ids])} | ({"pixel_values": torch.stack(pictures)} if pictures else {})
        answer = reader.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None, recalled=note)
        ids[:] = answer[0].tolist()
        prompt += len(ids)
        most = max(most, reader.memory.bytes)
        if number % 25 == 0:
            line(number)
    print(f"at most {most:,} of {limit:,} bytes; {remembered / prompt:.0%} of the tokens were remembered")
    reader.memory.clear()
    line("all dropped")


if __name__ == "__main__":
    main()
