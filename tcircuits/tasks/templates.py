"""Sentences whose next word any language model may know: a pronoun in the gender of a name, capitals of countries.

    So Evan is a really great friend, isn't   -> he       counterfactual: a name of the other gender
    The capital of France is                  -> Paris    counterfactual: another country, in the same sentence

Gendered pronoun: Mathwin et al. 2023; factual recall: Meng et al. 2022 (arXiv 2202.05262). Which names and countries
count depends on the tokenizer: see `tasks.make`.

>>> factual_recall(np.random.default_rng(0), True).truth["relation"]
'capital'
"""

import numpy as np

from tcircuits.tasks import words
from tcircuits.tasks.grammars import Example, example_of

FRIENDS = (
    "So {name} is a really great friend, isn't",
    "So {name} is such a good cook, isn't",
    "So {name} is a very nice neighbor, isn't",
    "So {name} was always kind to us, wasn't",
    "Well, {name} is quite a good teacher, isn't",
)

COUNTRIES = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Scotland": "Edinburgh", "Austria": "Vienna", "Belgium": "Brussels",
    "Netherlands": "Amsterdam", "Denmark": "Copenhagen", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki",
    "Poland": "Warsaw", "Hungary": "Budapest", "Greece": "Athens", "Russia": "Moscow", "Ukraine": "Kiev",
    "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "Iran": "Tehran", "Iraq": "Baghdad", "Syria": "Damascus",
    "Lebanon": "Beirut", "Israel": "Jerusalem", "India": "Delhi", "Nepal": "Kathmandu", "China": "Beijing",
    "Japan": "Tokyo", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Philippines": "Manila", "Indonesia": "Jakarta",
    "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Colombia": "Bogota",
    "Australia": "Canberra", "Afghanistan": "Kabul", "Romania": "Bucharest", "Bulgaria": "Sofia", "Jordan": "Amman",
}  # fmt: skip
"""Country: its capital."""
RECALLS = (
    "The capital of {country} is",
    "The capital city of {country} is",
    "The capital and largest city of {country} is",
    "Q: What is the capital of {country}?\nA: The capital of {country} is",
    "The government of {country} sits in the city of",
)


def gendered_pronoun(rng: np.random.Generator, held_out: bool) -> Example:
    """The pronoun of a tag question, in the gender of the name."""
    number, female = int(rng.integers(len(FRIENDS))), bool(rng.integers(2))
    lists = (words.WOMEN, words.MEN)
    name, stranger = (names[int(rng.integers(len(names)))] for names in (lists if female else lists[::-1]))
    prompt, other = (FRIENDS[number].format(name=who) for who in (name, stranger))
    right, wrong = (" she", " he") if female else (" he", " she")
    truth = {"name": name, "gender": words.GENDER[name], "template": number}
    return example_of("gendered_pronoun", prompt, right, wrong, "?", other, truth)


def factual_recall(rng: np.random.Generator, held_out: bool) -> Example:
    """The capital of a country."""
    number, names = int(rng.integers(len(RECALLS))), list(COUNTRIES)
    country, stranger = (names[i] for i in rng.choice(len(names), 2, replace=False))
    prompt, other = (RECALLS[number].format(country=where) for where in (country, stranger))
    right, wrong = f" {COUNTRIES[country]}", f" {COUNTRIES[stranger]}"
    truth = {"relation": "capital", "country": country, "template": number}
    return example_of("factual_recall", prompt, right, wrong, ".", other, truth)
