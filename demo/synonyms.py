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
    "top left": ("in the upper left", "in the top left corner", "in the top left", "at the top left"),
    "top": ("at the top", "on top", "in the top middle"),
    "top right": ("in the upper right", "in the top right corner", "in the top right", "at the top right"),
    "left": ("on the left", "on the left side", "at the left"),
    "middle": ("in the middle", "in the center", "at the center"),
    "right": ("on the right", "on the right side", "at the right"),
    "bottom left": ("in the lower left", "in the bottom left corner", "in the bottom left", "at the bottom left"),
    "bottom": ("at the bottom", "in the bottom middle", "down at the bottom"),
    "bottom right": ("in the lower right", "in the bottom right corner", "in the bottom right", "at the bottom right"),
}
KINDS = {
    "animal": "animals", "fruit": "fruits", "vegetable": "vegetables", "vehicle": "vehicles", "plant": "plants",
    "building": "buildings", "tool": "tools", "instrument": "instruments", "toy": "toys", "ball": "balls",
}  # fmt: skip
EDIBLE = ("fruit", "vegetable", "food")
