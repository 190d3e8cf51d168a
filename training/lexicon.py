"""The words that the training text is made of.

Names, adjectives and nouns of the tasks are all here, so that the model knows them; which of their
combinations the text must not hold is said in :mod:`training.kept_out`.
"""

from circuitlab.tasks import gendered_pronouns, html_tag_closing, name_throw

MALE_NAMES = gendered_pronouns.MALE_NAMES
FEMALE_NAMES = gendered_pronouns.FEMALE_NAMES
NAMES = MALE_NAMES + FEMALE_NAMES

DEGREES = (*gendered_pronouns.DEGREES, "a", "a rather", "a truly", "quite a", "a most")
TRAITS = (
    *gendered_pronouns.ADJECTIVES,
    "warm", "quiet", "gentle", "strong", "careful", "patient", "polite", "famous", "busy", "lucky",
    "proud", "calm",
)  # fmt: skip
PEOPLE = (
    *gendered_pronouns.PEOPLE,
    "neighbour", "cousin", "guest", "helper", "leader", "guard", "judge", "reader", "speaker",
    "worker", "gardener", "captain",
)  # fmt: skip

MOODS = ("tired", "happy", "hungry", "sad", "late", "sick", "cold", "angry", "afraid", "ready")
PLACES = (
    "park", "school", "market", "garden", "river", "forest", "house", "shop", "station", "beach",
    "kitchen", "bridge", "lake", "library", "tower", "field",
)  # fmt: skip
THINGS = (
    *name_throw.OBJECTS,
    "book", "apple", "lamp", "cup", "shoe", "key", "box", "letter", "ring", "toy", "map", "bag",
    "cake", "flower", "shell", "pen",
)  # fmt: skip
THROWS = (
    name_throw.VERB, "passed", "kicked", "tossed", "rolled", "handed", "gave", "sent", "showed",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
SIZES = ("big", "small", "old", "new", "heavy", "light", "soft", "dark", "round", "empty")
HABITS = (
    "likes to read", "likes to sing", "works all day", "never gives up", "wants to help", "can swim well",
    "knows many songs", "lives near the {place}", "often walks to the {place}", "has a {size} {thing}",
    "makes good bread", "tells long stories", "always has time", "is never late",
)  # fmt: skip
ACTS = (
    "went to the {place}", "found a {thing} in the {place}", "lost a {size} {thing}",
    "sat down near the {place}", "looked for the {thing}", "came home from the {place}",
    "bought a {colour} {thing}", "forgot the {thing}", "ran to the {place}", "opened the {size} box",
)  # fmt: skip
OUTCOMES = (
    "was very {mood}", "went home", "did not stay long", "felt {mood}", "wanted to rest",
    "smiled", "laughed", "sang a song", "had a {thing} in the bag", "was not {mood} at all",
    "put the {thing} on the table", "waited near the {place}",
)  # fmt: skip

CONTAINER_TAGS = (*html_tag_closing.CONTAINERS, "header", "footer", "nav", "body")
_ANYWHERE = tuple(tag for tag in html_tag_closing.INNERMOST if tag not in html_tag_closing.PARENTS)
INLINE_TAGS = (*_ANYWHERE, *html_tag_closing.CLOSED, "label", "pre")
GROUPED_TAGS = ("ul", "ol", "li", "table", "tr", "th", "td")
PAGE_TAGS = ("html", "head", "title")
VOID_TAGS = (*html_tag_closing.VOID, "wbr")
TAGS = CONTAINER_TAGS + INLINE_TAGS + GROUPED_TAGS + PAGE_TAGS
ATTRIBUTES = (*html_tag_closing.ATTRIBUTES, "href", "name", "lang")
VALUES = (*html_tag_closing.VALUES, "right", "last", "dark", "page", "green", "intro", "data", "main")

TEXT_OPENERS = (*html_tag_closing.DETERMINERS, "The", "A", "An", "My", "No", "List", "Model", "Title")
TEXT_ADJECTIVES = (*html_tag_closing.ADJECTIVES, *SIZES)
TEXT_NOUNS = (*html_tag_closing.NOUNS, "list", "picture", "table", "word", *PLACES, *THINGS)
TEXT_TAILS = (
    *html_tag_closing.TAILS, "of today", "by hand", "from here", "with care", "once again", "near the end",
    "in the {place}", "of the {place}",
)  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
