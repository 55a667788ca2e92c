"""Sentences of kitchen and table for the bundled language model to learn English from, besides plate captions.

A grammar: a word in braces becomes one of its phrases in `PHRASES`, which may hold braces themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count as count_from
from random import Random

from clipcap.demo.grammar import captions
from clipcap.demo.plates import scenes

PHRASES = {
    "sentence": (
        "{person} {bought} {amount} {from} {shop}.",
        "{person} {made} {dish} for {meal}.",
        "{person} {made} {dish} with {amount} and {amount}.",
        "{time} {person} {cleaned} the {tool}.",
        "{time} we had {dish} for {meal}, and it was {taste}.",
        "{dish} {needs} {amount} and a little {spice}.",
        "{step}.",
        "{step}, then {step}.",
        "{step} and {step}.",
        "the {tool} is {place}.",
        "there {is_one} {place}.",
        "there are {several} {place}.",
        "{person} put {amount} {place}.",
        "{person} likes {dish} {better} than {dish}.",
        "{the_food} {smells} {taste}.",
        "{the_food} should be {taste} and not too {wrong}.",
        "how much {spice} does {dish} need? {little}.",
        "how many {foods} are {place}? {number}.",
        "what is {place}? {number} {foods}.",
        "which colour is the {vessel}? it is {colour}.",
        "if the {tool} is {wrong}, {step}.",
        "before {meal}, {step}.",
        "while the {drink} cools, {step}.",
        "a {colour} {vessel} stands {place}.",
        "{person} filled the {colour} {vessel} with {foods}.",
        "{person} drinks {drink} from a {colour} {cup}.",
        "a {size} {tool} and a {size} {vessel} are all you need for {dish}.",
        "{dish} tastes best {when}.",
        "do not forget the {spice} in {dish}.",
        "{person} ate {number} {foods} {when}.",
        "{number} {foods} were left {place} after {meal}.",
        "{recipe_title}",
    ),
    "recipe_title": (
        "Easy {dish_name} with {foods}",
        "{dish_name} with {spice} and {foods}",
        "Homemade {dish_name} on a {colour} {vessel}",
        "Slices of {dish_name} served with {drink}",
        "Pan of {dish_name} topped with {spice}",
        "{dish_name} in a {size} {vessel}",
    ),
    "person": (
        "my mother", "my father", "the cook", "our neighbour", "a friend", "the baker", "my brother", "my sister",
        "Anna", "Tom", "Maria", "the waiter", "her uncle", "his grandmother", "the guest", "somebody",
    ),
    "bought": ("bought", "got", "fetched", "ordered", "picked", "brought", "carried home"),
    "from": ("from", "at"),
    "shop": ("the market", "the bakery", "the corner shop", "the farm", "the supermarket", "the village shop"),
    "made": ("made", "cooked", "baked", "prepared", "served", "tried"),
    "cleaned": ("washed", "cleaned", "dried", "put away", "looked for", "borrowed", "sharpened"),
    "time": (
        "yesterday", "this morning", "on Sunday", "after lunch", "last night", "every Friday", "in the evening",
        "at noon", "two days ago", "in summer",
    ),
    "when": ("on a cold day", "in the garden", "after a walk", "the next day", "while still warm", "with friends"),
    "meal": ("breakfast", "lunch", "dinner", "supper", "tea", "a picnic", "the party", "dessert", "brunch"),
    "dish": (
        "a {dish_name}", "the {dish_name}", "a {size} {dish_name}", "a {taste} {dish_name}", "some {dish_name}",
    ),
    "dish_name": (
        "vegetable soup", "apple pie", "carrot cake", "tomato salad", "fish curry", "rice pudding", "mushroom stew",
        "cheese omelette", "potato gratin", "banana bread", "cherry tart", "noodle soup", "chocolate cake",
        "lemon tart", "bean chilli", "pasta bake", "pumpkin risotto", "strawberry jam", "egg sandwich", "pizza",
    ),
    "amount": (
        "{number} {foods}", "{number} {foods}", "a bag of {foods}", "a bowl of {foods}", "a dozen {foods}",
        "a kilo of {foods}", "a handful of {foods}", "a few {foods}", "plenty of {foods}", "half a cup of {spice}",
    ),
    "several": ("{number} {foods}", "{number} {size} {foods}", "a few {foods}", "some {foods}", "no {foods}"),
    "number": ("two", "two", "three", "three", "four", "four", "five", "six", "ten"),
    "foods": (
        "apples", "bananas", "broccoli florets", "burgers", "carrots", "cherries", "cookies", "donuts", "eggs",
        "pancakes", "slices of pizza", "strawberries", "pieces of sushi", "tomatoes", "potatoes", "onions",
        "mushrooms", "lemons", "pears", "plums", "biscuits", "muffins", "bread rolls", "beans", "olives", "peppers",
    ),
    "the_food": ("the {dish_name}", "the {dish_name}", "this {dish_name}", "the {drink}", "her {dish_name}"),
    "spice": ("salt", "pepper", "sugar", "butter", "cream", "cinnamon", "parsley", "garlic", "honey", "flour"),
    "drink": ("coffee", "tea", "orange juice", "milk", "water", "lemonade", "apple juice", "cocoa"),
    "cup": ("cup", "glass", "mug"),
    "vessel": ("plate", "bowl", "dish", "platter", "tray", "square plate", "oval dish", "round plate", "pot"),
    "tool": ("oven", "pan", "knife", "fork", "spoon", "whisk", "grater", "kettle", "toaster", "chopping board"),
    "place": (
        "on the table", "in the kitchen", "in the fridge", "next to the stove", "under the cloth", "on the shelf",
        "on the {colour} {vessel}", "in the {colour} {vessel}", "beside the {vessel}", "on a wooden table",
        "on the tablecloth", "in the basket", "by the window", "on a marble worktop",
    ),
    "colour": ("white", "black", "red", "pink", "yellow", "green", "blue", "purple", "brown", "grey"),
    "size": ("small", "large", "big", "deep", "flat", "heavy", "tiny", "new", "old"),
    "taste": ("sweet", "salty", "fresh", "warm", "crisp", "juicy", "delicious", "creamy", "golden", "hot", "tender"),
    "wrong": ("cold", "dry", "sour", "hot", "bitter", "burnt", "soft", "wet"),
    "smells": ("smells", "looks", "is", "tastes", "seems"),
    "better": ("better", "more", "even more", "much better"),
    "little": ("a little", "not much", "half a spoon", "as much as you like", "a pinch"),
    "needs": ("needs", "wants", "is made with", "calls for", "goes well with"),
    "is_one": ("is a {tool}", "is a {colour} {vessel}", "is a slice of {dish_name}", "is some {drink}"),
    "step": (
        "heat the pan", "boil the water", "peel {number} {foods}", "chop the {foods}", "stir the {dish_name}",
        "add the {spice}", "slice the {foods}", "bake it for {number} minutes", "let it cool", "season with {spice}",
        "set the table", "pour the {drink}", "put the {foods} {place}", "whisk the eggs", "melt the butter",
        "wash the {foods}", "serve it on a {colour} {vessel}", "cover the {vessel}", "turn the {foods} once",
    ),
}  # fmt: skip
_SLOT = re.compile(r"{(\w+)}")


def sentence(rng: Random) -> str:
    """A sentence of the kitchen."""
    text = "{sentence}"
    while slot := _SLOT.search(text):
        text = text[: slot.start()] + rng.choice(PHRASES[slot[1]]) + text[slot.end() :]
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[0].upper() + text[1:] if rng.random() < 0.8 else text


def passages(seed: int = 0) -> Iterator[list[str]]:
    """Endless passages of sentences that belong together.

    All captions of one picture of the training split, in any order, or a few sentences of the kitchen. From the
    former a language model learns to repeat the sentence before in other words: a prefix is to it as a caption
    that went before.
    """
    plates = scenes("train", seed)
    for number in count_from():
        rng = Random(f"passage {seed} {number}")
        if rng.random() < 0.6:
            texts = captions(next(plates))
            rng.shuffle(texts)
        else:
            texts = [sentence(rng) for _ in range(rng.randint(2, 5))]
        yield texts
