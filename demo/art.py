"""The pictures' raw material, by name: things, and the npm packages of emoji art that show them.

    python -m demo.art      fetches and draws all of it, into the cache

* `THINGS`: what the model learns to name, in ordinary words; `KIND_OF`: "animal", "fruit", ... of each.
* `TRAIN_STYLES`, `ICON_STYLES`, `FONT_STYLES`, `HELD_OUT_STYLE`, `SECOND_HELD_OUT_STYLE`: npm packages of one art
  style each. The held-out styles are never seen in training.
* `PAINTED_STYLE`, `INKED_STYLE`: the line drawings of the packs that training uses, painted in, and its colored ones
  with black lines around every part (`sprites`).

Each package `@iconify-json/<style>` is one JSON of SVG bodies, keyed by the Unicode names of the emoji; a font is in
`@expo-google-fonts/<style>`.
"""

import argparse

TRAIN_STYLES = {
    "noto": "1.2.9",  # Noto Emoji, Google, Apache-2.0
    "noto-v1": "1.2.5",  # Noto Emoji before its redesign, Google, Apache-2.0
    "twemoji": "1.2.5",  # Twemoji, Twitter and contributors, CC BY 4.0
    "fluent-emoji": "1.2.7",  # Fluent Emoji, Microsoft, MIT
    "fluent-emoji-flat": "1.2.6",  # the same drawings without shading
    "fluent-emoji-high-contrast": "1.2.6",  # ... and as silhouettes
    "emojione": "1.2.3",  # EmojiOne 2, CC BY 4.0
    "emojione-monotone": "1.2.1",  # ... and in one color
    "fxemoji": "1.2.2",  # Firefox OS Emoji, Mozilla, Apache-2.0
    "streamline-emojis": "1.2.4",  # Streamline Emojis, CC BY 4.0: flat colors between dark lines
}
ICON_STYLES = {  # signs of one color: more drawings to learn from; evaluation does not ask about them
    "mdi": "1.2.3",  # Material Design Icons, Pictogrammers, Apache-2.0
    "lucide": "1.2.137",  # Lucide, ISC
    "game-icons": "1.2.4",  # Game-icons.net, CC BY 3.0
    "icon-park": "1.2.4",  # IconPark, ByteDance, Apache-2.0: dark lines filled with blue
    "ph": "1.2.2",  # Phosphor, MIT
    "tabler": "1.2.41",  # Tabler Icons, MIT
    "mingcute": "1.2.8",  # MingCute, Apache-2.0
    "fa6-solid": "1.2.4",  # Font Awesome, CC BY 4.0
    "hugeicons": "1.2.35",  # Hugeicons, MIT
    "boxicons": "1.2.0",  # Boxicons, MIT
    "whh": "1.2.0",  # WebHostingHub Glyphs, OFL 1.1
    "streamline-cyber-color": "1.2.2",  # Streamline Cyber, CC BY 4.0: dark lines filled with white and blue
}
FONT_STYLES = {"noto-emoji": "0.4.7"}  # Noto Emoji, the font of lines, Google, OFL 1.1; likewise not asked about
PAINTED_STYLE = "painted"
INKED_STYLE = "inked"
INKED_STYLES = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "emojione", "fxemoji")  # which are inked
HELD_OUT_STYLE = {"openmoji": "1.2.29"}  # OpenMoji, CC BY-SA 4.0: looked at for evaluation only
SECOND_HELD_OUT_STYLE = {"emojione-v1": "1.2.3"}  # EmojiOne before its redesign, CC BY-SA 4.0: for evaluation only
MONOCHROME_STYLES = {"fluent-emoji-high-contrast", "emojione-monotone", *ICON_STYLES, *FONT_STYLES} - {
    "icon-park",
    "streamline-cyber-color",
}
# what training draws from, the emoji twice as often
LEARNED_FROM = (
    *TRAIN_STYLES, *TRAIN_STYLES, *ICON_STYLES, *[*FONT_STYLES] * 2, *[PAINTED_STYLE] * 5, *[INKED_STYLE] * 7
)  # fmt: skip
OTHER_THINGS = {  # icons that show something else than an emoji of that name
    "mdi": ("mouse", "bug", "phone"),
    "lucide": ("mouse", "bug", "phone", "diamond"),
    "game-icons": ("pig-face", "butterfly", "clover", "volcano"),
    "icon-park": ("mouse", "bug", "phone", "chicken"),
    "ph": ("mouse", "bug", "phone", "diamond"),
    "tabler": ("mouse", "bug", "phone"),
    "mingcute": ("mouse", "bug", "phone", "chicken", "football"),
    "fa6-solid": ("mouse", "bug", "phone", "diamond"),
    "hugeicons": ("apple", "lock", "phone", "diamond", "football", "sunglasses"),
    "boxicons": ("mouse", "bug", "phone", "diamond", "football", "coffee"),
    "whh": ("mouse", "bug", "bat", "chicken", "football"),
    "streamline-cyber-color": ("mouse", "football"),
}

# kind: things. "name" alone means the icon of that name; "name=icon+icon" names the icons that show it.
_THINGS = {
    "animal": """
        cat=cat+cat-face; dog=dog+dog-face; mouse=mouse+mouse-face; rabbit=rabbit+rabbit-face;
        fox=fox+fox-face; bear=bear+bear-face; panda=panda+panda-face; koala; tiger=tiger+tiger-face;
        lion=lion+lion-face; cow=cow+cow-face; pig=pig+pig-face; frog=frog+frog-face;
        monkey=monkey+monkey-face; chicken; rooster; penguin; bird;
        chick=baby-chick+front-facing-baby-chick+hatching-chick; duck; eagle; owl; bat;
        horse=horse+horse-face; unicorn=unicorn+unicorn-face; bee=honeybee; caterpillar=bug; butterfly; snail;
        ladybug=lady-beetle; spider; turtle; snake; lizard; octopus; crab; fish=fish+tropical-fish; dolphin;
        whale=whale+spouting-whale; shark; crocodile; leopard; zebra; elephant; rhino=rhinoceros;
        camel=camel+two-hump-camel; giraffe; goat; sheep=ewe; deer; parrot; dragon; squirrel=chipmunk""",
    "fruit": """
        apple=red-apple+green-apple; pear; orange=tangerine; lemon; banana; watermelon; grapes; strawberry;
        melon; cherry=cherries; peach; pineapple; avocado""",
    "vegetable": """
        tomato; eggplant; carrot; corn=ear-of-corn; chili=hot-pepper; mushroom""",
    "food": """
        bread; croissant; cheese=cheese-wedge; hamburger; pizza; hot dog=hot-dog; popcorn; sushi; ice
        cream=ice-cream+soft-ice-cream; doughnut; cookie; cake=birthday-cake+shortcake; lollipop; fried
        egg=cooking""",
    "drink": """
        milk=glass-of-milk; coffee=hot-beverage; beer=beer-mug""",
    "vehicle": """
        car=automobile+sport-utility-vehicle; taxi; bus; police car=police-car; ambulance; fire
        truck=fire-engine; truck=delivery-truck+articulated-lorry; tractor; bicycle;
        motorcycle=motorcycle+motor-scooter; train=locomotive; airplane; rocket; helicopter; sailboat; ship""",
    "plant": """
        tree=deciduous-tree; pine tree=evergreen-tree; palm tree=palm-tree; cactus; tulip; rose; sunflower;
        flower=blossom+hibiscus+cherry-blossom; clover=four-leaf-clover; maple leaf=maple-leaf""",
    "building": """
        house=house; castle""",
    "tool": """
        scissors; hammer; wrench; key=key; pencil; knife=kitchen-knife; spoon""",
    "instrument": """
        guitar; piano=musical-keyboard; trumpet; violin; drum; saxophone""",
    "toy": """
        balloon; dice=game-die+game-dice; robot=robot+robot-face""",
    "ball": """
        soccer ball=soccer-ball; basketball; football=american-football; baseball""",
    "piece of clothing": """
        hat=top-hat; shirt=t-shirt; shoe=running-shoe; high heel=high-heeled-shoe; crown""",
    "thing": """
        sun; moon=crescent-moon; star=star+glowing-star; cloud; rainbow; snowflake; fire; water drop=droplet;
        volcano; lightning=high-voltage; snowman=snowman+snowman-without-snow;
        umbrella=umbrella+umbrella-with-rain-drops; gift=wrapped-gift; christmas tree=christmas-tree;
        pumpkin=jack-o-lantern; glasses; sunglasses; backpack=backpack+school-backpack; ring; watch;
        phone=mobile-phone; laptop; camera=camera+camera-with-flash; television; light bulb=light-bulb;
        candle; book=closed-book+green-book+blue-book+orange-book; envelope; lock=locked; bomb; toilet;
        shopping cart=shopping-cart; hourglass=hourglass-done+hourglass-not-done; alarm clock=alarm-clock;
        bell; microphone=studio-microphone; headphones=headphone; ghost; alien; skull; heart=red-heart;
        diamond=gem-stone; trophy; anchor;
        globe=globe-showing-americas+globe-showing-europe-africa+globe-showing-asia-australia; traffic
        light=vertical-traffic-light+horizontal-traffic-light; battery; eye""",
}


def _parse_things() -> tuple[dict[str, str], dict[str, list[str]]]:
    kinds, icons = {}, {}
    for kind, text in _THINGS.items():
        for entry in text.split(";"):
            name, _, keys = " ".join(entry.split()).partition("=")
            kinds[name] = kind
            icons[name] = keys.split("+") if keys else [name]
    return kinds, icons


KIND_OF, ICONS_OF = _parse_things()
THINGS = sorted(KIND_OF)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()

    from .sprites import load_sprites

    for style, things in load_sprites().items():
        print(f"{style}: {sum(map(len, things.values()))} drawings of {len(things)} things")


if __name__ == "__main__":
    main()
