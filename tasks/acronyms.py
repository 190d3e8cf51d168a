"""Acronyms: the third letter of a three-letter acronym.

"The Chief Executive Officer (CE" goes on with "O", the first letter of the third word (Garcia-Carrasco et al. 2024). In
the corrupted prompt other words, with other letters, stand in the place of those that option ``corruption`` names: the
``last`` word, whose letter is the distractor, or ``all`` three. The acronym's first two letters are the same in both
prompts, as in the source.
"""

import random

from circuitlab import Prompting
from circuitlab.data.example import Example
from circuitlab.data.published import PublishedCircuit
from circuitlab.data.splits import words_of
from circuitlab.data.task import Task
from circuitlab.references import Reference

WORDS = (
    "Access", "Action", "Advanced", "Agency", "American", "Area", "Army", "Art", "Asian", "Atomic",
    "Bank", "Basic", "Big", "Board", "Body", "British", "Building", "Business",
    "Capital", "Card", "Central", "Chief", "City", "Civil", "College", "Community", "Control", "Council",
    "Data", "Day", "Death", "Defense", "Design", "Development", "Digital", "Director", "Double",
    "Early", "Earth", "East", "Economic", "Education", "Electric", "Energy", "Engine", "European", "Event",
    "Family", "Federal", "Film", "Final", "Fire", "First", "Food", "Force", "Foreign", "Free", "Fund",
    "Game", "General", "German", "Global", "Gold", "Good", "Government", "Grand", "Green", "Group",
    "Hall", "Health", "High", "Historical", "Home", "Hospital", "House", "Human",
    "Image", "Income", "Index", "Indian", "Industry", "Information", "Institute", "Insurance", "Internal", "Island",
    "Labor", "Land", "Language", "Large", "Law", "League", "Learning", "Level", "Library", "Light", "Line", "Local",
    "Machine", "Main", "Management", "Market", "Master", "Media", "Medical", "Memory", "Military", "Model", "Music",
    "National", "Natural", "Network", "New", "News", "North", "Nuclear", "Number",
    "Office", "Officer", "Oil", "Online", "Open", "Operation", "Order", "Organization", "Over",
    "Paper", "Park", "Party", "People", "Personal", "Plan", "Police", "Policy", "Power", "Press", "Program", "Public",
    "Radio", "Rapid", "Real", "Record", "Red", "Regional", "Research", "Resource", "River", "Road", "Rock", "Royal",
    "Safety", "School", "Science", "Security", "Service", "Social", "Society", "South", "Space", "State", "System",
    "Team", "Technical", "Technology", "Test", "Time", "Total", "Town", "Trade", "Training", "Transport", "Trust",
    "Unit", "United", "Universal", "University", "Upper", "Urban", "User",
    "Valley", "Value", "Vehicle", "Video", "Virtual", "Vision", "Voice",
    "War", "Water", "Web", "West", "Western", "White", "Wild", "Women", "Wood", "Work", "World", "Worker",
)  # fmt: skip

GARCIA_CARRASCO_2024 = Reference(
    key="garciacarrasco2024acronyms",
    authors=("García-Carrasco, Jorge", "Maté, Alejandro", "Trujillo, Juan"),
    title="How does GPT-2 Predict Acronyms? Extracting and Understanding a Circuit via Mechanistic Interpretability",
    year=2024,
    arxiv="2405.04156",
)


def draw(rng: random.Random, split: str = "any", corruption: str = "last") -> Example:
    """Draws one pair: three words and their acronym but for the last letter, and its corruption.

    Args:
        rng: Where every choice comes from.
        split: Whose words: ``discovery``, ``held_out`` or ``any``.
        corruption: ``last`` or ``all``, see the module's text.

    Returns:
        A pair with the spans ``word1``, ``word2``, ``word3``, ``bracket``, ``letter1`` and ``letter2``.
    """
    words = words_of(WORDS, split)
    first, second, third = (rng.choice(words) for _ in range(3))
    fields = {
        "word1": first,
        "word2": second,
        "word3": third,
        "bracket": "(",
        "letter1": first[0],
        "letter2": second[0],
    }
    last = rng.choice([word for word in words if word[0] != third[0]])
    corrupt = {"word3": last}
    if corruption == "all":
        corrupt |= {
            f"word{i}": rng.choice([w for w in words if w[0] != old[0]]) for i, old in ((1, first), (2, second))
        }
    return Example.from_template(
        "The {word1} {word2} {word3} {bracket}{letter1}{letter2}",
        fields,
        corrupt=corrupt,
        answer=third[0],
        distractor=last[0],
    )


TASK = Task(
    name="acronyms",
    version="1.0.0",
    summary="Of a three-letter acronym of the three words before it, give the last letter.",
    draw=draw,
    options={"corruption": ("last", "all")},
    metric="logit_diff",
    held_out="words",
    prompting=Prompting(separator=")\n"),
    sources=(GARCIA_CARRASCO_2024,),
    published={
        "gpt2": PublishedCircuit(
            source=GARCIA_CARRASCO_2024,
            classes={
                "previous token": ("a1.h0", "a2.h2", "a4.h11"),
                "carries positions and letters": ("a5.h8",),
                "letter mover": ("a8.h11", "a9.h9", "a10.h10", "a11.h4"),
            },
        )
    },
)
