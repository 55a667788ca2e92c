"""Captions of a scene in many wordings, and the facts read back out of a caption.

Every caption states each food with its number and the plate's colour and shape ("plate" alone is a round one).
The table, the things beside the plate, the colour of an apple appear in some captions and not in others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import Random

from clipcap.demo.scene import COLOURS, CUTLERY, FOODS, Facts, Scene

# Each food's names as (one, several).
FOOD_NAMES = {
    "apple": (("apple", "apples"),),
    "banana": (("banana", "bananas"),),
    "broccoli": (
        ("broccoli floret", "broccoli florets"),
        ("floret of broccoli", "florets of broccoli"),
        ("piece of broccoli", "pieces of broccoli"),
    ),
    "burger": (("burger", "burgers"), ("hamburger", "hamburgers"), ("cheeseburger", "cheeseburgers")),
    "carrot": (("carrot", "carrots"),),
    "cherry": (("cherry", "cherries"),),
    "cookie": (("cookie", "cookies"), ("chocolate chip cookie", "chocolate chip cookies")),
    "donut": (("donut", "donuts"), ("doughnut", "doughnuts")),
    "egg": (("fried egg", "fried eggs"), ("egg", "eggs"), ("sunny-side-up egg", "sunny-side-up eggs")),
    "pancake": (("pancake", "pancakes"),),
    "pizza": (
        ("slice of pizza", "slices of pizza"),
        ("pizza slice", "pizza slices"),
        ("piece of pizza", "pieces of pizza"),
    ),
    "strawberry": (("strawberry", "strawberries"),),
    "sushi": (("piece of sushi", "pieces of sushi"), ("sushi roll", "sushi rolls"), ("maki roll", "maki rolls")),
    "tomato": (("tomato slice", "tomato slices"), ("slice of tomato", "slices of tomato")),
}
# Names that only the parser knows, for models that drop "slice of" or "piece of".
LOOSE_NAMES = {
    "broccoli": "broccoli",
    "pizza": "pizza",
    "pizzas": "pizza",
    "sushi": "sushi",
    "tomato": "tomato",
    "tomatoes": "tomato",
}
PRAISE = {
    "apple": ("fresh", "ripe", "shiny", "crisp"),
    "banana": ("ripe", "fresh", "yellow"),
    "broccoli": ("fresh", "green", "steamed"),
    "burger": ("juicy", "tasty", "easy", "homemade"),
    "carrot": ("fresh", "crunchy", "orange"),
    "cherry": ("fresh", "sweet", "ripe"),
    "cookie": ("easy", "homemade", "crunchy", "golden"),
    "donut": ("iced", "glazed", "sweet", "homemade"),
    "egg": ("fresh", "perfect"),
    "pancake": ("golden", "fluffy", "easy", "homemade", "buttery"),
    "pizza": ("cheesy", "hot", "pepperoni", "homemade"),
    "strawberry": ("fresh", "juicy", "ripe", "sweet"),
    "sushi": ("fresh", "homemade", "delicious"),
    "tomato": ("fresh", "juicy", "ripe"),
}

COUNT_WORDS = {
    1: ("a", "a", "a", "one", "one", "a single"),
    2: ("two", "two", "two", "a pair of", "a couple of"),
    3: ("three", "three", "three", "a trio of"),
    4: ("four",),
}
NUMBERS = {"an": 1, "single": 1, "1": 1, "2": 2, "3": 3, "4": 4} | {
    word: count for count, words in COUNT_WORDS.items() for word in words
}

PLATE_NAMES = {
    "round": ("plate", "plate", "plate", "round plate", "dinner plate"),
    "square": ("square plate", "square plate", "square dish"),
    "oval": ("oval plate", "oval platter", "oval dish"),
}
DECOR_WORDS = {"plain": ("plain",), "gold-rimmed": ("gold-rimmed",), "spotted": ("spotted", "patterned")}

TABLE_NAMES = {
    "oak": ("a wooden table", "a light wooden table", "a pale wooden surface"),
    "walnut": ("a wooden table", "a dark wooden table", "dark wooden boards"),
    "marble": ("a marble worktop", "a white marble table"),
    "slate": ("a slate worktop", "a dark slate surface", "dark grey slate"),
    "plain": ("a {colour} tablecloth", "a {colour} linen cloth", "a plain {colour} cloth"),
    "checked": ("a {colour} checked tablecloth", "a chequered tablecloth", "a {colour} and white checked cloth"),
    "striped": ("a striped tablecloth", "a {colour} striped cloth", "a {colour} and white striped tablecloth"),
    "spotted": ("a spotted tablecloth", "a {colour} polka dot tablecloth", "a {colour} cloth with white spots"),
}
THING_NAMES = {
    "fork": ("a fork", "a silver fork"),
    "knife": ("a knife",),
    "spoon": ("a spoon", "a silver spoon"),
    "coffee": ("a cup of coffee", "a cup of black coffee", "coffee"),
    "tea": ("a cup of tea", "a {colour} cup of tea", "a cup of tea with lemon"),
    "juice": ("a glass of juice", "a glass of orange juice", "orange juice"),
    "napkin": ("a napkin", "a {colour} napkin", "a folded napkin"),
}

# {foods} and {plate} stand for phrases; verbs in braces agree with the foods, as (one, several).
VERBS = {
    "is": ("is", "are"),
    "has": ("has", "have"),
    "sits": ("sits", "sit"),
    "lies": ("lies", "lie"),
    "rests": ("rests", "rest"),
    "waits": ("waits", "wait"),
}
TEMPLATES = (
    "{foods} on {plate}",
    "{foods} on {plate}",
    "{foods} served on {plate}",
    "{foods} served on {plate}",
    "{foods} arranged on {plate}",
    "{foods} resting on {plate}",
    "{foods}, served on {plate}",
    "{foods} ready to eat on {plate}",
    "{foods} {sits} on {plate}",
    "{foods} {lies} on {plate}",
    "{foods} {rests} on {plate}",
    "{foods} {waits} on {plate}",
    "{foods} {is} served on {plate}",
    "{foods} {has} been placed on {plate}",
    "{plate} with {foods}",
    "{plate} with {foods} on it",
    "{plate} topped with {foods}",
    "{plate} holding {foods}",
    "{plate} holds {foods}",
    "{plate} serving {foods}",
    "{plate} is topped with {foods}",
    "there {is} {foods} on {plate}",
    "close up of {foods} on {plate}",
    "top view of {foods} on {plate}",
    "someone has put {foods} on {plate}",
    "on {plate} {lies} {foods}",
    "lunch is {foods} on {plate}",
    "looking down at {plate} with {foods}",
    "{plate} filled with {foods}",
    "{foods} seen from above on {plate}",
    "{foods} presented on {plate}",
)
FOR_SEVERAL = ("{plate} of {foods}", "a helping of {foods} on {plate}", "a snack of {foods} on {plate}")
TERSE = TEMPLATES[:8]  # these also go without articles: "Donut on blue plate"
BESIDE = (" with {things} alongside", " with {things} beside it", " next to {things}", ", {things} on the side")


def captions(scene: Scene) -> list[str]:
    """Three to five different captions of a scene, the same on every run."""
    rng = Random(f"captions {scene.seed}")
    wanted, texts = rng.choice((3, 4, 4, 5)), {}
    while len(texts) < wanted:
        text = _caption(rng, scene)
        texts.setdefault(text.lower().rstrip("."), text)
    return list(texts.values())


def _caption(rng: Random, scene: Scene) -> str:
    template = rng.choice(TEMPLATES + FOR_SEVERAL * 2 if len(scene.items) > 1 else TEMPLATES)
    terse = template in TERSE and rng.random() < 0.35
    pieces = len(scene.items)
    verbs = {verb: forms[pieces > 1] for verb, forms in VERBS.items()}
    text = template.format(foods=_foods(rng, scene, terse), plate=_plate(rng, scene, terse), **verbs)
    text += _surroundings(rng, scene)
    if rng.random() < 0.65:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.35 else "")


def _foods(rng: Random, scene: Scene, terse: bool) -> str:
    """The food phrase, such as: two green apples and a donut."""
    tints = {item.food: item.tint for item in scene.items}
    foods = [(food, count or 1) for food, count in scene.facts.foods]  # a scene says every count
    rng.shuffle(foods)
    bare = terse and len(scene.items) == 1  # "donut on blue plate"
    return " and ".join(_portion(rng, food, count, tints[food], bare) for food, count in foods)


def _portion(rng: Random, food: str, count: int, tint: str, bare: bool) -> str:
    words = [rng.choice(FOOD_NAMES[food])[count > 1]]
    if tint and rng.random() < 0.6:
        words.insert(0, tint)
    if rng.random() < 0.2:
        words.insert(0, rng.choice(PRAISE[food]))
    noun = " ".join(words)
    numbers = [word for word in COUNT_WORDS[count] if " of" not in word or " of " not in noun]
    return noun if bare else _with_article(f"{rng.choice(numbers)} {noun}")


def _with_article(phrase: str) -> str:
    """The phrase with "an" where it starts with "a" before a vowel."""
    return "an" + phrase[1:] if re.match("a [aeiou]", phrase) else phrase


def _plate(rng: Random, scene: Scene, terse: bool) -> str:
    plate = scene.plate
    *shape, noun = rng.choice(PLATE_NAMES[plate.shape]).split()
    adjectives = [plate.colour, *shape] if rng.random() < 0.6 or shape == ["dinner"] else [*shape, plate.colour]
    if rng.random() < 0.2:
        adjectives.insert(0, rng.choice(DECOR_WORDS[plate.decor]))
    phrase = " ".join([*adjectives, noun])
    return phrase if terse else _with_article("a " + phrase)


def _surroundings(rng: Random, scene: Scene) -> str:
    """Nothing, the table, what lies beside the plate, or both."""
    text = ""
    if rng.random() < 0.3:
        text += " on " + rng.choice(TABLE_NAMES[scene.table.kind]).format(colour=scene.table.colour)
    if scene.things and rng.random() < 0.4:
        text += rng.choice(BESIDE).format(things=_things(rng, scene))
    return text


def _things(rng: Random, scene: Scene) -> str:
    names = [rng.choice(THING_NAMES[thing.kind]).format(colour=thing.colour) for thing in scene.things]
    if sum(thing.kind in CUTLERY for thing in scene.things) == 2 and rng.random() < 0.3:
        return "cutlery"
    return " and ".join(names[: rng.choice((1, 2, 2))])


def parse(caption: str) -> Facts:
    """The facts that a caption states: of this grammar, or of a model that learnt from it.

    A food that is named twice counts twice; a food without a number that is not plainly one has count None.
    """
    text = re.sub(r"[^a-z0-9-]+", " ", caption.lower())
    counts: dict[str, int | None] = {}
    for number, name in _FOOD.findall(text):
        food, alone = _FOOD_OF[name]
        count, before = NUMBERS.get(number, alone), counts.get(food, 0)
        counts[food] = None if count is None or before is None else before + count
    foods = tuple(sorted(counts.items()))
    plate = _PLATE.search(text)
    if plate is None:
        return Facts(foods, None, None)
    adjectives, noun = plate[1].split(), plate[2]
    colour = next((word for word in reversed(adjectives) if word in COLOURS), None)
    usual = "oval" if noun == "platter" else "round"
    return Facts(foods, colour, next((word for word in adjectives if word in PLATE_NAMES), usual))


def _any_of(words: Iterable[str]) -> str:
    """A pattern for one of the words, the longest that fits."""
    return "|".join(sorted(map(re.escape, set(words)), key=lambda word: (-len(word), word)))


# Every name of a food, with the count that it has without a number: 1 for "donut", unknown for "donuts".
_FOOD_OF = {one: (food, 1) for food, names in FOOD_NAMES.items() for one, _ in names}
_FOOD_OF |= {several: (food, None) for food, names in FOOD_NAMES.items() for _, several in names}
_FOOD_OF |= {name: (food, None) for name, food in LOOSE_NAMES.items()}
_FOOD_ADJECTIVES = {word for words in PRAISE.values() for word in words}
_FOOD_ADJECTIVES |= {tint for kind in FOODS.values() for tint in kind.tints if tint}
_FOOD = re.compile(rf"\b(?:({_any_of(NUMBERS)}) )?(?:(?:{_any_of(_FOOD_ADJECTIVES)}) )*({_any_of(_FOOD_OF)})\b")
_PLATE_ADJECTIVES = {*PLATE_NAMES, *COLOURS, "dinner", "serving"}
_PLATE_ADJECTIVES |= {word for words in DECOR_WORDS.values() for word in words}
_PLATE = re.compile(rf"\b((?:(?:{_any_of(_PLATE_ADJECTIVES)}) )*)(plate|platter|dish)\b")
