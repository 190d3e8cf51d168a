"""Capital of a country: recall a fact.

"The capital of France is" goes on with " Paris". The corrupted prompt names another country, whose capital is the
distractor. Option ``attribute`` asks for another fact about the country: ``capital``, ``language``, ``continent`` or
``currency``; two countries are drawn that differ in it.

Facts that are several tokens for a model are dropped, unless the metric is ``answer_log_prob_diff``.
"""

import random

from circuitlab.data.example import Example
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import Reference

# Country: capital, official language (of several, the most spoken), continent, currency.
COUNTRIES = {
    "France": ("Paris", "French", "Europe", "euro"),
    "Japan": ("Tokyo", "Japanese", "Asia", "yen"),
    "Egypt": ("Cairo", "Arabic", "Africa", "pound"),
    "Germany": ("Berlin", "German", "Europe", "euro"),
    "China": ("Beijing", "Chinese", "Asia", "yuan"),
    "Italy": ("Rome", "Italian", "Europe", "euro"),
    "Russia": ("Moscow", "Russian", "Europe", "rouble"),
    "Cuba": ("Havana", "Spanish", "America", "peso"),
    "Thailand": ("Bangkok", "Thai", "Asia", "baht"),
    "Spain": ("Madrid", "Spanish", "Europe", "euro"),
    "Kenya": ("Nairobi", "Swahili", "Africa", "shilling"),
    "Poland": ("Warsaw", "Polish", "Europe", "zloty"),
    "Iran": ("Tehran", "Persian", "Asia", "rial"),
    "Peru": ("Lima", "Spanish", "America", "sol"),
    "Greece": ("Athens", "Greek", "Europe", "euro"),
    "Sweden": ("Stockholm", "Swedish", "Europe", "krona"),
    "Turkey": ("Ankara", "Turkish", "Asia", "lira"),
    "Vietnam": ("Hanoi", "Vietnamese", "Asia", "dong"),
    "Portugal": ("Lisbon", "Portuguese", "Europe", "euro"),
    "Iraq": ("Baghdad", "Arabic", "Asia", "dinar"),
    "Austria": ("Vienna", "German", "Europe", "euro"),
    "Hungary": ("Budapest", "Hungarian", "Europe", "forint"),
    "Denmark": ("Copenhagen", "Danish", "Europe", "krone"),
    "Chile": ("Santiago", "Spanish", "America", "peso"),
    "Norway": ("Oslo", "Norwegian", "Europe", "krone"),
    "Finland": ("Helsinki", "Finnish", "Europe", "euro"),
    "Ukraine": ("Kyiv", "Ukrainian", "Europe", "hryvnia"),
    "Morocco": ("Rabat", "Arabic", "Africa", "dirham"),
    "Ireland": ("Dublin", "English", "Europe", "euro"),
    "England": ("London", "English", "Europe", "pound"),
    "Argentina": ("Buenos Aires", "Spanish", "America", "peso"),
    "Canada": ("Ottawa", "English", "America", "dollar"),
    "Australia": ("Canberra", "English", "Oceania", "dollar"),
    "Indonesia": ("Jakarta", "Indonesian", "Asia", "rupiah"),
    "Lebanon": ("Beirut", "Arabic", "Asia", "pound"),
    "Belgium": ("Brussels", "Dutch", "Europe", "euro"),
    "Romania": ("Bucharest", "Romanian", "Europe", "leu"),
    "Bulgaria": ("Sofia", "Bulgarian", "Europe", "lev"),
    "Croatia": ("Zagreb", "Croatian", "Europe", "euro"),
    "Serbia": ("Belgrade", "Serbian", "Europe", "dinar"),
    "Switzerland": ("Bern", "German", "Europe", "franc"),
    "Venezuela": ("Caracas", "Spanish", "America", "bolivar"),
    "Ecuador": ("Quito", "Spanish", "America", "dollar"),
    "Uruguay": ("Montevideo", "Spanish", "America", "peso"),
    "Nepal": ("Kathmandu", "Nepali", "Asia", "rupee"),
    "Afghanistan": ("Kabul", "Pashto", "Asia", "afghani"),
    "Libya": ("Tripoli", "Arabic", "Africa", "dinar"),
    "Tunisia": ("Tunis", "Arabic", "Africa", "dinar"),
    "Algeria": ("Algiers", "Arabic", "Africa", "dinar"),
    "Sudan": ("Khartoum", "Arabic", "Africa", "pound"),
    "Somalia": ("Mogadishu", "Somali", "Africa", "shilling"),
    "Zimbabwe": ("Harare", "English", "Africa", "dollar"),
    "Iceland": ("Reykjavik", "Icelandic", "Europe", "krona"),
    "Bangladesh": ("Dhaka", "Bengali", "Asia", "taka"),
    "Ghana": ("Accra", "English", "Africa", "cedi"),
    "Nigeria": ("Abuja", "English", "Africa", "naira"),
    "Pakistan": ("Islamabad", "Urdu", "Asia", "rupee"),
    "India": ("New Delhi", "Hindi", "Asia", "rupee"),
    "Jordan": ("Amman", "Arabic", "Asia", "dinar"),
    "Syria": ("Damascus", "Arabic", "Asia", "pound"),
}
ATTRIBUTES = ("capital", "language", "continent", "currency")
TEMPLATES = {
    "capital": (
        "The capital of {country} {is}",
        "The capital city of {country} {is}",
        "Of all the cities in {country}, the capital {is}",
        "Everyone knows that the capital of {country} {is}",
        "I was told that the capital of {country} {is}",
        "As for {country}, the name of its capital {is}",
    ),
    "language": (
        "The official language of {country} {is}",
        "In {country}, the language that most people speak {is}",
        "The main language in {country} {is}",
    ),
    "continent": (
        "The continent of {country} {is}",
        "On the map, the continent where {country} lies {is}",
        "The continent on which one finds {country} {is}",
    ),
    "currency": (
        "The currency of {country} {is} the",
        "In {country}, the currency in use {is} the",
        "The money that is used in {country} {is} the",
    ),
}


def draw(rng: random.Random, split: str = "any", attribute: str = "capital") -> Example:
    """Draws one pair: a sentence about a country up to the fact, and its corruption.

    Args:
        rng: Where every choice comes from.
        split: Whose countries and sentences: ``discovery``, ``held_out`` or ``any``.
        attribute: ``capital``, ``language``, ``continent`` or ``currency``.

    Returns:
        A pair with the spans ``country`` and ``is``.
    """
    at = ATTRIBUTES.index(attribute)
    countries = words_of(sorted(COUNTRIES), split)
    country = rng.choice(countries)
    fact = COUNTRIES[country][at]
    other = rng.choice([name for name in countries if COUNTRIES[name][at] != fact])
    template = rng.choice(words_of(TEMPLATES[attribute], split))
    return Example.from_template(
        template,
        {"country": country, "is": "is"},
        corrupt={"country": other},
        answer=f" {fact}",
        distractor=f" {COUNTRIES[other][at]}",
    )


TASK = Task(
    name="capital-of-country",
    version="1.0.0",
    summary="Name the capital of a country, or another fact about it.",
    draw=draw,
    options={"attribute": ATTRIBUTES},
    metric="logit_diff",
    held_out="countries and sentences",
    sources=(
        Reference(
            key="hernandez2023linearity",
            authors=(
                "Hernandez, Evan", "Sharma, Arnab Sen", "Haklay, Tal", "Meng, Kevin", "Wattenberg, Martin",
                "Andreas, Jacob", "Belinkov, Yonatan", "Bau, David",
            ),
            title="Linearity of Relation Decoding in Transformer Language Models",
            year=2023,
            arxiv="2308.09124",
        ),
    ),
)  # fmt: skip
