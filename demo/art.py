"""The pictures' raw material: emoji art with names, fetched from npm and drawn once into arrays of sprites.

* `THINGS`: what the model learns to name, in ordinary words; `KIND_OF`: "animal", "fruit", ... of each.
* `TRAIN_STYLES`, `ICON_STYLES`, `HELD_OUT_STYLE`: npm packages of one art style each. The held-out style is never seen
  in training.
* `load_sprites()`: `{style: {thing: [sprite, ...]}}`; a sprite is uint8 [96, 96, 4], RGBA, straight alpha. One of a
  single color is black, and white where it encloses nothing.

Each package `@iconify-json/<style>` is one JSON of SVG bodies, keyed by the Unicode names of the emoji.
"""

import functools
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CACHE = Path(os.environ.get("GEMMA3_INT4_DEMO_CACHE", "~/.cache/gemma3-int4-demo")).expanduser()
SPRITE = 96  # pixels; three steps of halving down to the smallest size that scenes use

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
}
HELD_OUT_STYLE = {"openmoji": "1.2.29"}  # OpenMoji, CC BY-SA 4.0: looked at for evaluation only
MONOCHROME_STYLES = {"fluent-emoji-high-contrast", "emojione-monotone", *ICON_STYLES}
LEARNED_FROM = (*TRAIN_STYLES, *TRAIN_STYLES, *ICON_STYLES)  # what training draws from, the emoji twice as often
_OTHER_THINGS = {  # icons that show something else than an emoji of that name
    "mdi": ("mouse", "bug", "phone"),
    "lucide": ("mouse", "bug", "phone", "diamond"),
    "game-icons": ("pig-face", "butterfly", "clover", "volcano"),
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


KIND_OF, _ICONS_OF = _parse_things()
THINGS = sorted(KIND_OF)


def _fetch(style: str, version: str) -> Path:
    """Downloads one npm package into the cache; returns the path of its archive."""
    archive = CACHE / "art" / f"iconify-json-{style}-{version}.tgz"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{style}@{version}"], cwd=archive.parent, check=True)
    return archive


def _draw_style(style: str, version: str) -> dict[str, list[np.ndarray]]:
    """Draws every thing of one style; a thing that the style lacks is left out."""
    import resvg_py  # only the first run draws; later ones read the cache

    with tarfile.open(_fetch(style, version)) as archive:
        pack = json.load(archive.extractfile("package/icons.json"))
    by_name = {key.replace("-", ""): icon for key, icon in pack["icons"].items()}
    for alias, target in pack.get("aliases", {}).items():
        if set(target) == {"parent"} and target["parent"] in pack["icons"]:
            by_name.setdefault(alias.replace("-", ""), pack["icons"][target["parent"]])
    for key, icon in pack["icons"].items():  # some packs number the drawings of one name: "cactus-1", "cactus-2"
        by_name.setdefault(re.sub("-[12]$", "", key).replace("-", ""), icon)
    sprites = {}
    for thing, keys in _ICONS_OF.items():
        drawn = []  # a pack may know one drawing by two of the names
        for key in [*keys, thing] if style in ICON_STYLES else keys:
            icon = by_name.get(key.replace("-", "").replace(" ", ""))
            if icon is None or icon["body"] in drawn or key in _OTHER_THINGS.get(style, ()):
                continue
            drawn.append(icon["body"])
            width, height = icon.get("width", pack["width"]), icon.get("height", pack["height"])
            box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"'
                f' width="{SPRITE * 2}" height="{SPRITE * 2}" color="black">{icon["body"]}</svg>'
            )
            picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
            box = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
            if box is None:
                continue
            side = max(box[2] - box[0], box[3] - box[1])
            square = Image.new("RGBA", (side, side))
            square.paste(picture.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
            sprite = square.resize((SPRITE, SPRITE), Image.Resampling.BOX)
            sprites.setdefault(thing, []).append(_filled(sprite) if style in MONOCHROME_STYLES else np.asarray(sprite))
    return sprites


def _filled(sprite: Image.Image) -> np.ndarray:
    """Puts white behind a drawing of one color, as far as its lines enclose it."""
    around = Image.new("L", (SPRITE + 2, SPRITE + 2))
    around.paste(sprite.getchannel("A").point(lambda a: 255 * (a > 96)), (1, 1))
    ImageDraw.floodfill(around, (0, 0), 128)
    outside = np.asarray(around)[1:-1, 1:-1] == 128
    alpha = np.asarray(sprite)[..., 3]
    paper = np.where(outside, 0, 255 - alpha)  # how much of it shows through the ink
    return np.dstack([paper, paper, paper, np.where(outside, alpha, 255)]).astype(np.uint8)


def sprites_path() -> Path:
    """Returns where the drawn sprites are cached; other styles or things have another name."""
    recipe = repr((TRAIN_STYLES, ICON_STYLES, HELD_OUT_STYLE, _ICONS_OF, _OTHER_THINGS)).encode()
    return CACHE / f"sprites-{hashlib.sha256(recipe).hexdigest()[:12]}.pkl"


@functools.cache
def load_sprites() -> dict[str, dict[str, list[np.ndarray]]]:
    """Returns all sprites of all styles, drawn on the first call and cached on disk.

    Raises:
        subprocess.CalledProcessError: npm could not deliver a package; its message says why.
    """
    cached = sprites_path()
    if not cached.exists():
        styles = TRAIN_STYLES | ICON_STYLES | HELD_OUT_STYLE
        drawn = {style: _draw_style(style, version) for style, version in styles.items()}
        partial = cached.with_suffix(".partial")
        partial.write_bytes(pickle.dumps(drawn, protocol=pickle.HIGHEST_PROTOCOL))
        partial.rename(cached)
    return pickle.loads(cached.read_bytes())


if __name__ == "__main__":
    for style, things in load_sprites().items():
        print(f"{style}: {sum(map(len, things.values()))} drawings of {len(things)} things")
