"""Which glyphs of Noto Color Emoji are drawn, as which variants, and which are held out.

Only `build_atlas` reads this table; everything else reads the index that it writes. A variant is
one picture: a glyph, or a glyph recoloured (hue turned by some degrees, then a gain on each
channel). A held-out variant is never drawn in a training scene. People are held out by combinations
of hair and skin tone; a kind with many glyphs holds out some that resemble its training glyphs; a
kind with one or two glyphs holds out colours.
"""

from __future__ import annotations

from ris.data.scenes.glyph_source import PLAIN, Source, plain, recoloured, toned

_JOIN = "\u200d"  # joins glyphs into one
_SAME = (0.0, PLAIN)

# tints that several kinds share, for training and held out
_FUR = {"plain": _SAME, "dark": (0.0, (0.68, 0.64, 0.62)), "warm": (0.0, (1.06, 0.9, 0.74))}
_FUR_OUT = {"dusky": (0.0, (0.84, 0.76, 0.72)), "cool": (0.0, (0.84, 0.93, 1.0))}
_HUES = {
    "plain": _SAME,
    "hue80": (80.0, PLAIN),
    "hue160": (160.0, PLAIN),
    "hue250": (250.0, PLAIN),
}
_HUES_OUT = {"hue40": (40.0, PLAIN), "hue120": (120.0, PLAIN), "hue305": (305.0, PLAIN)}


def sources() -> list[Source]:
    """Every variant, in the order of the atlas."""
    return [
        *_people(),
        *_pets(),
        *_other_animals(),
        *_vehicles(),
        *_plants(),
        *_household(),
        *_food(),
        *_pastimes(),
        *_books(),
    ]


def _people() -> list[Source]:
    """Busts and faces: hair x skin tone, two tones of each hair held out."""
    man, woman, sign = "\U0001f468", "\U0001f469", "\ufe0f"
    hair = {"red-hair": "\U0001f9b0", "curly-hair": "\U0001f9b1", "white-hair": "\U0001f9b3"}
    man_out = {"red-hair": (2, 5), "curly-hair": (1, 4), "white-hair": (0, 3)}
    woman_out = {"red-hair": (1, 3), "curly-hair": (0, 5), "white-hair": (2, 4)}

    out = []
    for name, code in hair.items():
        out += toned("man", name, (man, _JOIN + code), man_out[name], "shaven")
        out += toned("woman", name, (woman, _JOIN + code), woman_out[name])
    blond, beard = "\U0001f471", "\U0001f9d4"
    male, female = _JOIN + "\u2642" + sign, _JOIN + "\u2640" + sign
    out += toned("man", "blond-hair", (blond, male), (2, 4), "shaven")
    out += toned("woman", "blond-hair", (blond, female), (1, 4))
    out += toned("man", "beard", (beard, male), (1, 3), "bearded")
    out += toned("child", "boy", ("\U0001f466", ""), (2, 4), "boy")
    out += toned("child", "girl", ("\U0001f467", ""), (1, 3), "girl")
    return out


def _pets() -> list[Source]:
    """Dogs and cats."""
    out: list[Source] = []
    for name, text in {"dog": "\U0001f415", "dog-face": "\U0001f436"}.items():
        out += recoloured("dog", name, text, _FUR, _FUR_OUT)
    out += plain(
        "dog",
        {"service-dog": "\U0001f415\u200d\U0001f9ba", "poodle": "\U0001f429"},
        {"guide-dog": "\U0001f9ae"},
    )

    orange = dict.fromkeys(
        ("grin", "smile", "wry", "kiss", "tear", "face", "joy", "hearts", "pouting", "weary"),
        "orange",
    )
    out += plain(
        "cat",
        {
            "face": "\U0001f431",
            "grin": "\U0001f638",
            "wry": "\U0001f63c",
            "kiss": "\U0001f63d",
            "tear": "\U0001f63f",
            "pouting": "\U0001f63e",
            "weary": "\U0001f640",
        },
        {"smile": "\U0001f63a", "joy": "\U0001f639", "hearts": "\U0001f63b"},
        orange,
    )
    out += recoloured(
        "cat",
        "cat",
        "\U0001f408",
        {"plain": _SAME, "pale": (0.0, (1.0, 1.08, 1.9))},
        {"ginger": (-12.0, (0.97, 0.9, 0.9))},
        {"plain": "orange", "pale": "other", "ginger": "orange"},
    )
    black = {"plain": "black", "deep": "black"}
    out += recoloured(
        "cat",
        "black-cat",
        "\U0001f408\u200d\u2b1b",
        {"plain": _SAME},
        {"deep": (0.0, (0.74, 0.74, 0.8))},
        black,
    )
    return out


def _other_animals() -> list[Source]:
    """Horses, cows, elephants and birds."""
    out: list[Source] = []
    for kind, name, text in (
        ("horse", "horse", "\U0001f40e"),
        ("horse", "horse-face", "\U0001f434"),
        ("cow", "cow", "\U0001f404"),
        ("cow", "cow-face", "\U0001f42e"),
        ("elephant", "elephant", "\U0001f418"),
    ):
        out += recoloured(kind, name, text, _FUR, _FUR_OUT)

    out += plain(
        "bird",
        {
            "bird": "\U0001f426",
            "chick": "\U0001f424",
            "duck": "\U0001f986",
            "parrot": "\U0001f99c",
            "dove": "\U0001f54a\ufe0f",
            "penguin": "\U0001f427",
            "owl": "\U0001f989",
            "eagle": "\U0001f985",
            "turkey": "\U0001f983",
            "rooster": "\U0001f413",
            "chicken": "\U0001f414",
            "swan": "\U0001f9a2",
            "flamingo": "\U0001f9a9",
            "peacock": "\U0001f99a",
        },
        {"front-chick": "\U0001f425"},
    )
    out += recoloured(
        "bird", "bird", "\U0001f426", {"hue120": (120.0, PLAIN)}, {"hue190": (190.0, PLAIN)}
    )
    out += recoloured("bird", "duck", "\U0001f986", {}, {"hue40": (40.0, (0.95, 0.95, 0.95))})
    out += recoloured("bird", "parrot", "\U0001f99c", {}, {"hue100": (100.0, PLAIN)})
    return out


def _vehicles() -> list[Source]:
    """Cars, buses and bicycles."""
    # hue turns of the paint: the red car by 115 is green, by 225 blue; the blue one by 140 is red
    out = recoloured(
        "car",
        "car",
        "\U0001f697",
        {"red": _SAME, "green": (115.0, PLAIN)},
        {"blue": (210.0, PLAIN)},
        {"red": "red", "green": "green", "blue": "blue"},
    )
    out += recoloured(
        "car",
        "suv",
        "\U0001f699",
        {"blue": _SAME, "green": (-80.0, PLAIN)},
        {"red": (155.0, PLAIN)},
        {"blue": "blue", "green": "green", "red": "red"},
    )
    out += recoloured(
        "car",
        "front",
        "\U0001f698",
        {"red": _SAME, "blue": (210.0, PLAIN)},
        {"green": (115.0, PLAIN)},
        {"red": "red", "blue": "blue", "green": "green"},
    )
    out += plain(
        "car",
        {"taxi": "\U0001f695", "police": "\U0001f693", "police-front": "\U0001f694"},
        {"taxi-front": "\U0001f696"},
        {"taxi": "yellow", "taxi-front": "yellow"},
    )

    bus = {"plain": _SAME, "warm": (0.0, (1.05, 0.8, 0.6)), "green": (0.0, (0.75, 1.0, 0.7))}
    bus_out = {"pink": (0.0, (1.0, 0.78, 0.9)), "olive": (0.0, (0.95, 0.95, 0.6))}
    out += recoloured("bus", "bus", "\U0001f68c", bus, bus_out)
    out += recoloured("bus", "front", "\U0001f68d", _HUES, _HUES_OUT)
    out += recoloured("bus", "trolley", "\U0001f68e", _HUES, _HUES_OUT)

    paint = {
        "plain": _SAME,
        "warm": (0.0, (1.3, 0.72, 0.6)),
        "green": (0.0, (0.7, 1.2, 0.7)),
        "dark": (0.0, (0.6, 0.6, 0.6)),
    }
    paint_out = {"violet": (0.0, (1.05, 0.7, 1.25)), "yellow": (0.0, (1.25, 1.1, 0.6))}
    out += recoloured("bicycle", "bicycle", "\U0001f6b2", paint, paint_out)
    return out


def _plants() -> list[Source]:
    """Trees and flowers."""
    out = recoloured(
        "tree",
        "round",
        "\U0001f333",
        {"plain": _SAME, "lime": (-25.0, PLAIN)},
        {"dark": (15.0, (0.75, 0.85, 0.8)), "autumn": (-48.0, PLAIN)},
    )
    out += recoloured(
        "tree",
        "fir",
        "\U0001f332",
        {"plain": _SAME, "lime": (-25.0, (1.1, 1.1, 1.1))},
        {"blue": (35.0, PLAIN)},
    )
    out += recoloured(
        "tree",
        "palm",
        "\U0001f334",
        {"plain": _SAME, "dark": (0.0, (0.8, 0.8, 0.8))},
        {"pale": (-15.0, PLAIN)},
    )
    out += recoloured(
        "tree", "christmas", "\U0001f384", {"plain": _SAME}, {"pale": (0.0, (1.15, 1.1, 0.9))}
    )

    out += plain(
        "flower",
        {
            "rose": "\U0001f339",
            "hibiscus": "\U0001f33a",
            "sunflower": "\U0001f33b",
            "cherry": "\U0001f338",
            "rosette": "\U0001f3f5\ufe0f",
            "tulip": "\U0001f337",
            "wilted": "\U0001f940",
            "lotus": "\U0001fab7",
        },
        {"blossom": "\U0001f33c", "white": "\U0001f4ae"},
    )
    out += recoloured("flower", "tulip", "\U0001f337", {}, {"hue60": (60.0, PLAIN)})
    out += recoloured("flower", "hibiscus", "\U0001f33a", {}, {"hue300": (300.0, PLAIN)})
    return out


def _household() -> list[Source]:
    """Umbrellas, chairs and clocks."""
    out = recoloured("umbrella", "umbrella", "\u2602\ufe0f", _HUES, _HUES_OUT)
    out += recoloured("umbrella", "rain", "\u2614", _HUES, _HUES_OUT)

    wood = {
        "plain": _SAME,
        "hue110": (110.0, PLAIN),
        "hue200": (200.0, PLAIN),
        "dark": (0.0, (0.65, 0.65, 0.65)),
    }
    wood_out = {"hue60": (60.0, PLAIN), "hue310": (310.0, PLAIN)}
    out += recoloured("chair", "chair", "\U0001fa91", wood, wood_out)
    out += recoloured("chair", "seat", "\U0001f4ba", _HUES, _HUES_OUT)

    faces = {f"hour-{i + 1}": chr(0x1F550 + i) for i in range(12)}
    out_hours = ("hour-4", "hour-8", "hour-11")
    out += plain(
        "clock",
        {k: v for k, v in faces.items() if k not in out_hours},
        {k: v for k, v in faces.items() if k in out_hours},
    )
    out += recoloured("clock", "alarm", "\u23f0", _HUES, _HUES_OUT)
    out += recoloured(
        "clock", "mantel", "\U0001f570\ufe0f", {"plain": _SAME}, {"dark": (0.0, (0.75, 0.75, 0.8))}
    )
    return out


def _food() -> list[Source]:
    """Apples, bananas and pizzas."""
    out = recoloured(
        "apple",
        "red",
        "\U0001f34e",
        {"plain": _SAME, "dark": (0.0, (0.8, 0.8, 0.8))},
        {"rose": (-12.0, (0.95, 0.95, 0.95))},
        {"plain": "red", "dark": "red", "rose": "red"},
    )
    out += recoloured(
        "apple",
        "green",
        "\U0001f34f",
        {"plain": _SAME, "dark": (10.0, (0.8, 0.8, 0.8))},
        {"deep": (20.0, (0.92, 0.92, 0.92))},
        {"plain": "green", "dark": "green", "deep": "green"},
    )

    out += recoloured(
        "banana",
        "banana",
        "\U0001f34c",
        {"plain": _SAME, "greenish": (0.0, (0.85, 1.0, 1.0)), "ripe": (0.0, (0.85, 0.75, 0.7))},
        {"orange": (0.0, (1.0, 0.86, 0.86)), "pale": (0.0, (1.0, 1.04, 1.7))},
    )

    out += recoloured(
        "pizza",
        "pizza",
        "\U0001f355",
        {"plain": _SAME, "dark": (0.0, (0.8, 0.75, 0.75)), "pale": (0.0, (1.0, 1.06, 1.4))},
        {"red": (-10.0, (0.95, 0.9, 0.9)), "golden": (8.0, (0.9, 0.9, 0.75))},
    )
    return out


def _pastimes() -> list[Source]:
    """Balls, cups and guitars."""
    out = plain(
        "ball",
        {
            "soccer": "\u26bd",
            "basket": "\U0001f3c0",
            "volley": "\U0001f3d0",
            "base": "\u26be",
            "american": "\U0001f3c8",
            "eight": "\U0001f3b1",
        },
        {"soft": "\U0001f94e", "rugby": "\U0001f3c9"},
    )
    out += recoloured(
        "ball",
        "soccer",
        "\u26bd",
        {"warm": (0.0, (1.0, 0.85, 0.65))},
        {"blue": (0.0, (0.72, 0.88, 1.0))},
    )
    out += recoloured("ball", "basket", "\U0001f3c0", {}, {"red": (-18.0, PLAIN)})

    mug = {"plain": _SAME, "warm": (0.0, (1.0, 0.8, 0.65)), "mint": (0.0, (0.7, 1.0, 0.85))}
    mug_out = {"blue": (0.0, (0.7, 0.85, 1.0)), "pink": (0.0, (1.0, 0.78, 0.85))}
    out += recoloured("cup", "coffee", "\u2615", mug, mug_out)
    out += recoloured("cup", "tea", "\U0001f375", _HUES, _HUES_OUT)

    out += recoloured("guitar", "guitar", "\U0001f3b8", _HUES, _HUES_OUT)
    return out


def _books() -> list[Source]:
    """Books, closed and open."""
    out = recoloured(
        "book",
        "closed",
        "\U0001f4d5",
        {"red": _SAME, "violet": (270.0, PLAIN)},
        {"dark": (0.0, (0.75, 0.75, 0.75))},
        {"red": "red", "violet": "other", "dark": "red"},
    )
    out += recoloured(
        "book",
        "green",
        "\U0001f4d7",
        {"plain": _SAME},
        {"dark": (12.0, PLAIN)},
        {"plain": "green", "dark": "green"},
    )
    out += recoloured(
        "book",
        "blue",
        "\U0001f4d8",
        {"plain": _SAME},
        {"dark": (8.0, (0.85,) * 3)},
        {"plain": "blue", "dark": "blue"},
    )
    books = {
        "orange": "\U0001f4d9",
        "notebook": "\U0001f4d3",
        "ledger": "\U0001f4d2",
        "open": "\U0001f4d6",
    }
    out += plain("book", books, {"brown": "\U0001f4d4"}, dict.fromkeys((*books, "brown"), "other"))
    return out
