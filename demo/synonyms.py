"""Other words for things, shapes and places, as people use them in questions; answers keep to the first word."""

THINGS = {
    "cat": ("kitty", "kitten"), "dog": ("puppy", "doggy"), "rabbit": ("bunny", "hare"), "bicycle": ("bike",),
    "airplane": ("plane", "aeroplane", "jet"), "doughnut": ("donut",), "phone": ("cell phone", "smartphone", "mobile"),
    "television": ("tv", "TV"), "hamburger": ("burger",), "motorcycle": ("motorbike", "scooter"),
    "sailboat": ("sailing boat",), "ship": ("vessel",), "car": ("automobile",), "truck": ("lorry",),
    "taxi": ("cab",), "gift": ("present",), "shoe": ("sneaker",), "watch": ("wristwatch",),
    "light bulb": ("bulb", "lightbulb"), "envelope": ("mail",), "lock": ("padlock",), "diamond": ("gem", "jewel"),
    "ladybug": ("ladybird",), "bee": ("honeybee",), "rooster": ("cock",), "horse": ("pony",), "rhino": ("rhinoceros",),
    "chili": ("chili pepper", "hot pepper"), "eggplant": ("aubergine",), "fire": ("flame",),
    "rocket": ("spaceship", "space rocket"), "water drop": ("drop", "droplet"),
    "backpack": ("bag", "rucksack"), "laptop": ("computer",),
    "globe": ("planet",), "fire truck": ("fire engine",), "pine tree": ("fir tree", "fir"),
    "crocodile": ("croc", "alligator"), "chick": ("baby chicken",), "shirt": ("t-shirt",),
    "alarm clock": ("clock",), "microphone": ("mic",), "lightning": ("bolt",),
    "panda": ("panda bear",), "koala": ("koala bear",),
    "pumpkin": ("jack-o-lantern",), "hat": ("top hat",),
}  # fmt: skip
SHAPES = {
    "circle": ("round shape", "disc", "dot"),
    "rectangle": ("square", "box", "square", "block"),
    "triangle": ("three-sided shape",),
    "star": ("five-pointed star",),
    "cross": ("plus sign", "plus"),
}
PLACES = {
    "top left": ("in the upper left", "in the top left corner", "in the top left", "at the top left", "up on the left",
                 "in the upper left-hand corner", "up in the left corner"),
    "top": ("at the top", "on top", "in the top middle", "at the upper edge", "up at the top", "near the upper edge",
            "in the upper part"),
    "top right": ("in the upper right", "in the top right corner", "in the top right", "at the top right",
                  "up on the right", "in the upper right-hand corner", "up in the right corner"),
    "left": ("on the left", "on the left side", "at the left", "on the left-hand side", "to the left",
             "at the left edge"),
    "middle": ("in the middle", "in the center", "at the center", "right in the middle", "in the very middle"),
    "right": ("on the right", "on the right side", "at the right", "on the right-hand side", "to the right",
              "at the right edge"),
    "bottom left": ("in the lower left", "in the bottom left corner", "in the bottom left", "at the bottom left",
                    "down on the left", "in the lower left-hand corner", "down in the left corner"),
    "bottom": ("at the bottom", "in the bottom middle", "down at the bottom", "at the lower edge",
               "near the lower edge", "in the lower part"),
    "bottom right": ("in the lower right", "in the bottom right corner", "in the bottom right", "at the bottom right",
                     "down on the right", "in the lower right-hand corner", "down in the right corner"),
}  # fmt: skip
KINDS = {
    "animal": "animals", "fruit": "fruits", "vegetable": "vegetables", "vehicle": "vehicles", "plant": "plants",
    "building": "buildings", "tool": "tools", "instrument": "instruments", "toy": "toys", "ball": "balls",
    "bird": "birds", "fish": "fish", "insect": "insects", "flower": "flowers", "tree": "trees",
}  # fmt: skip
# Kinds within the kinds of `art.KIND_OF`; some have the name of a thing, too.
SORTS = {
    "bird": ("bird", "chicken", "rooster", "penguin", "chick", "duck", "eagle", "owl", "parrot"),
    "fish": ("fish", "shark"),
    "insect": ("bee", "butterfly", "ladybug", "caterpillar"),
    "flower": ("flower", "tulip", "rose", "sunflower"),
    "tree": ("tree", "pine tree", "palm tree", "christmas tree"),
}
# Things that are not asked whether they are of such a kind: people say yes and no.
DOUBTFUL = {
    "fish": ("whale", "dolphin", "octopus", "crab"), "insect": ("spider", "snail"), "flower": ("clover", "cactus"),
    "tree": ("cactus", "maple leaf"), "bird": ("bat",), "toy": ("soccer ball", "basketball", "football", "baseball"),
    "fruit": ("tomato", "eggplant", "chili", "corn", "pumpkin", "bread", "cake"), "plant": ("mushroom", "pumpkin"),
    "vegetable": ("avocado", "melon", "watermelon", "pumpkin"), "vehicle": ("shopping cart",),
}  # fmt: skip
# Things that many others are, too: of these nobody says that there is no such thing.
WIDER = {name: of for name, of in SORTS.items() if name in of} | {
    "car": ("taxi", "police car", "ambulance"), "truck": ("fire truck",), "glasses": ("sunglasses",),
    "shoe": ("high heel",), "chicken": ("rooster", "chick"), "melon": ("watermelon",), "watch": ("alarm clock",),
}  # fmt: skip
# What everybody knows of things: how it is said, which they are, and of which nobody is asked.
_FLYING = ("bird", "duck", "eagle", "owl", "parrot", "bat", "bee", "butterfly", "ladybug", "airplane", "helicopter",
           "rocket")  # fmt: skip
_SWIMMING = ("fish", "shark", "dolphin", "whale", "octopus", "duck", "turtle", "penguin", "crocodile", "crab", "frog")
_WHEELED = ("car", "taxi", "bus", "police car", "ambulance", "fire truck", "truck", "tractor", "bicycle", "motorcycle",
            "train", "shopping cart")  # fmt: skip
_DRINKS = ("milk", "coffee", "beer")
_SWEETS = ("ice cream", "doughnut", "cookie", "cake", "lollipop")
_WORN = ("hat", "shirt", "shoe", "high heel", "crown", "glasses", "sunglasses", "ring", "watch", "headphones")
_SKY = ("sun", "moon", "star", "cloud", "rainbow", "lightning")
TRAITS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "fly": (
        ("can fly", "flies", "is able to fly", "flies through the air", "gets off the ground and flies"), _FLYING,
        ("chicken", "rooster", "chick", "penguin", "dragon", "unicorn", "ghost", "alien", "balloon", "globe", "bomb",
         "snowflake", "fish", "robot", "caterpillar", "sun", "moon", "star", "cloud", "rainbow", "lightning"),
    ),
    "swim": (
        ("can swim", "swims", "lives in the water", "lives in the sea or in a pond"), _SWIMMING,
        tuple(name for name in _FLYING if name not in ("bee", "butterfly", "ladybug", "bat", "rocket", "helicopter"))
        + ("dog", "bear", "tiger", "elephant", "lizard", "snake", "dragon", "ship", "sailboat", "horse", "pig", "cow",
           "chick", "deer", "mouse", "snail", "rhino", "camel", "fox", "anchor", "water drop", "sushi", "toilet",
           "leopard", "lion", "monkey", "rabbit", "cat", "sheep", "goat", "koala", "panda", "zebra", "giraffe",
           "squirrel", "chicken", "rooster", "unicorn"),
    ),
    "roll": (
        ("has wheels", "rolls on wheels", "runs on wheels", "needs wheels"), _WHEELED,
        ("airplane", "helicopter", "robot", "backpack", "rocket", "alarm clock", "watch", "camera", "castle", "globe"),
    ),
    "drink": (
        ("can be drunk", "is a drink", "is for drinking", "is something to drink", "goes into a cup or a glass"),
        _DRINKS, ("water drop", "ice cream"),
    ),
    "sweet": (
        ("is a sweet", "is a dessert", "is something sweet", "is for dessert"), _SWEETS,
        tuple(f"{fruit}" for fruit in ("apple", "pear", "orange", "lemon", "banana", "watermelon", "grapes", "melon",
              "strawberry", "cherry", "peach", "pineapple", "avocado", "croissant", "carrot", "corn", "bread", "milk",
              "coffee", "popcorn", "tomato", "pumpkin", "heart", "bee", "gift")),
    ),
    "food": (
        ("can be eaten", "is something to eat", "is eaten", "is food", "belongs on a plate"), (),
        ("cow", "pig", "chicken", "rooster", "duck", "fish", "octopus", "crab", "sheep", "goat", "deer", "rabbit",
         "shark", "whale", "turtle", "frog", "horse", "snail", "pumpkin", "milk", "coffee", "beer", "chick",
         "sunflower", "clover", "cactus", "knife", "spoon", "bird", "snake"),
    ),
    "wear": (
        ("can be worn", "is for wearing", "is something to wear", "is worn by people"), _WORN,
        ("backpack", "diamond", "bell", "flower", "rose", "umbrella", "watch", "skull", "microphone"),
    ),
    "sky": (
        ("is up in the sky", "shows in the sky", "belongs in the sky"), _SKY,
        (*_FLYING, "water drop", "snowflake", "balloon", "globe", "alien", "dragon", "fire", "volcano", "bomb",
         "christmas tree"),
    ),
    "strings": (
        ("has strings", "needs strings to play", "is played on strings"), ("guitar", "violin"),
        ("piano", "balloon", "shoe", "bell", "backpack", "mouse", "microphone", "headphones", "anchor"),
    ),
    "stripes": (("has stripes", "is striped", "wears stripes"), ("zebra", "tiger"),
                ("bee", "caterpillar", "fish", "cat", "watermelon", "snake", "shirt", "chick", "pumpkin", "lizard",
                 "rainbow", "lollipop", "mouse", "squirrel", "butterfly", "balloon", "umbrella", "book")),
}  # fmt: skip
EDIBLE = ("fruit", "vegetable", "food")
