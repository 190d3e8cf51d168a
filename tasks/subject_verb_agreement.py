"""Subject-verb agreement: is the verb singular or plural?

"The keys to the cabinet" goes on with " are": the verb agrees with the subject, not with the noun beside it (Linzen et
al. 2016). The answers are the verbs of the right number, the distractors the same verbs of the other number, and the
metric is the difference of their summed probabilities. In the corrupted prompt the subject has the other number.

Option ``structure``:

- ``simple``: "The keys".
- ``across-phrase``: "The keys to the cabinet": a prepositional phrase stands between subject and verb.
- ``across-clause``: "The keys that the teacher found": a relative clause stands between.
- ``within-clause``: "The boy that the keys": the verb is that of the relative clause, whose subject is the last noun.

The other noun is singular or plural by chance, the same in both prompts. A few words may stand before it all.
"""

import random

from circuitlab.data.example import Example
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import MARKS_2024, Reference

# Singular and plural.
SUBJECTS = (
    ("key", "keys"), ("picture", "pictures"), ("letter", "letters"), ("book", "books"), ("door", "doors"),
    ("car", "cars"), ("gift", "gifts"), ("bottle", "bottles"), ("ticket", "tickets"), ("painting", "paintings"),
    ("machine", "machines"), ("box", "boxes"), ("report", "reports"), ("story", "stories"), ("tree", "trees"),
    ("song", "songs"), ("window", "windows"), ("bridge", "bridges"), ("chair", "chairs"), ("photo", "photos"),
    ("poster", "posters"), ("jacket", "jackets"), ("pencil", "pencils"), ("mirror", "mirrors"), ("clock", "clocks"),
    ("candle", "candles"), ("camera", "cameras"), ("phone", "phones"), ("lamp", "lamps"), ("coat", "coats"),
    ("shirt", "shirts"), ("ring", "rings"), ("toy", "toys"), ("cup", "cups"), ("plate", "plates"), ("bag", "bags"),
    ("rope", "ropes"), ("stone", "stones"), ("flower", "flowers"), ("plant", "plants"), ("boat", "boats"),
    ("train", "trains"), ("plane", "planes"), ("map", "maps"),
)  # fmt: skip
PEOPLE = (
    ("teacher", "teachers"), ("doctor", "doctors"), ("boy", "boys"), ("girl", "girls"), ("farmer", "farmers"),
    ("lawyer", "lawyers"), ("student", "students"), ("manager", "managers"), ("officer", "officers"),
    ("author", "authors"), ("driver", "drivers"), ("singer", "singers"), ("artist", "artists"),
    ("soldier", "soldiers"), ("king", "kings"), ("queen", "queens"), ("friend", "friends"), ("brother", "brothers"),
    ("sister", "sisters"), ("neighbor", "neighbors"), ("painter", "painters"), ("writer", "writers"),
    ("dancer", "dancers"), ("guard", "guards"), ("pilot", "pilots"), ("judge", "judges"), ("clerk", "clerks"),
    ("nurse", "nurses"), ("cook", "cooks"), ("baker", "bakers"), ("player", "players"), ("captain", "captains"),
    ("guest", "guests"), ("parent", "parents"), ("chief", "chiefs"),
)  # fmt: skip
NEAR = (
    ("cabinet", "cabinets"), ("house", "houses"), ("garden", "gardens"), ("table", "tables"),
    ("building", "buildings"), ("river", "rivers"), ("school", "schools"), ("tower", "towers"),
    ("village", "villages"), ("church", "churches"), ("wall", "walls"), ("road", "roads"), ("hill", "hills"),
    ("lake", "lakes"), ("forest", "forests"), ("hotel", "hotels"), ("station", "stations"), ("market", "markets"),
)  # fmt: skip
# What stands before "the": nothing, so that the sentence begins with "The", or an opening.
OPENINGS = ("", "I think that", "It is clear that", "We know that", "She said that", "In the end", "He hopes that",
            "Today", "They say that")  # fmt: skip
PREPOSITIONS = ("near", "behind", "beside", "above", "from", "in")
PAST = ("found", "liked", "wanted", "described", "noticed", "bought", "remembered", "lost", "praised")
VERBS = (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"))
TEMPLATES = {
    "simple": "{subject}",
    "across-phrase": "{subject} {preposition} the {noun}",
    "across-clause": "{subject} that the {noun} {verb}",
    "within-clause": "{noun} that the {subject}",
}


def draw(rng: random.Random, split: str = "any", structure: str = "simple") -> Example:
    """Draws one pair: a subject that waits for its verb, and the same of the other number.

    Args:
        rng: Where every choice comes from.
        split: Whose openings, nouns, prepositions and verbs: ``discovery``, ``held_out`` or ``any``.
        structure: ``simple``, ``across-phrase``, ``across-clause`` or ``within-clause``, see the module's text.

    Returns:
        A pair with the spans ``subject`` and, depending on the structure, ``preposition``, ``noun`` and ``verb``.
    """
    plural = rng.random() < 0.5
    subjects = (PEOPLE,) if structure == "within-clause" else (SUBJECTS, PEOPLE)
    nouns = {"across-phrase": NEAR, "across-clause": PEOPLE}.get(structure, SUBJECTS)
    subject = rng.choice([pair for words in subjects for pair in words_of(words, split)])
    noun = rng.choice([pair for pair in words_of(nouns, split) if pair != subject])
    fields = {
        "subject": subject[plural],
        "noun": rng.choice(noun),
        "preposition": rng.choice(words_of(PREPOSITIONS, split)),
        "verb": rng.choice(words_of(PAST, split)),
    }
    opening = rng.choice(words_of(OPENINGS, split))
    template = f"{opening} the {TEMPLATES[structure]}" if opening else f"The {TEMPLATES[structure]}"
    return Example.from_template(
        template,
        {name: value for name, value in fields.items() if f"{{{name}}}" in template},
        corrupt={"subject": subject[not plural]},
        answer=tuple(f" {pair[plural]}" for pair in VERBS),
        distractor=tuple(f" {pair[not plural]}" for pair in VERBS),
    )


TASK = Task(
    name="subject-verb-agreement",
    version="1.0.0",
    summary="After a subject, with or without words between, give a verb of its number.",
    draw=draw,
    options={"structure": ("simple", "across-phrase", "across-clause", "within-clause")},
    metric="prob_diff",
    held_out="openings, nouns, prepositions and verbs",
    sources=(
        Reference(
            key="linzen2016assessing",
            authors=("Linzen, Tal", "Dupoux, Emmanuel", "Goldberg, Yoav"),
            title="Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies",
            year=2016,
            arxiv="1611.01368",
        ),
        MARKS_2024,
    ),
)
