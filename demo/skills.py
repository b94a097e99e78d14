"""What the exam covers: the skills, and how many questions each has; light, for the command's parser."""

SEEDS = {"validation": 777_000, "test": 999_000}  # training uses [step, worker], steps stay far below
# in this order: a skill's place in it is part of its seed
COUNTS = (
    {"easy_vqa": 9673, "naming": 1900, "naming_new_style": 1900}
    | dict.fromkeys(("pairs", "counting", "reading", "shapes", "dialogue", "no_picture"), 1000)
    | {"naming_second_style": 1630, "small_text": 1000}
)
FREE_CHATS = "free_chats"  # judged turn by turn, see `free_chats`; the same in both splits
# likewise, whose wrong answers may be looked at; not in the table
TUNING_CHATS = ("tuning_chats", "strangers")
