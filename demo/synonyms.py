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
EDIBLE = ("fruit", "vegetable", "food")
