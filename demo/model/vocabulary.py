"""The words of the demo's language. One word is one token; a word's id is its place in WORDS."""

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<doc>", "q", ":", "?", ".", "they", "as", "same")

NAMES = tuple(
    """
    alice bob carol david emma frank grace henry irene jack karen liam maria nathan olivia peter quinn rachel samuel
    tina ursula victor wendy xavier yvonne zachary aaron beth caleb diana edgar fiona george hannah isaac julia
    kevin laura martin nora oscar paula rupert sarah thomas uma vincent walter yara zoe adrian bianca conrad daphne
    elias freya gavin helga igor jasmine klaus leila magnus nina otto priya ralph selma tariq ulrich vera wilma amir
    brenda cyrus dora eric felix greta hugo ingrid joel kira lars mona niels opal pablo rita sven tessa
    """.split()
)

# 24 values for each relation, and no value under two relations.
VALUES: dict[str, tuple[str, ...]] = {
    relation: tuple(values.split())
    for relation, values in {
        "likes": """mango apple banana cherry grape lemon peach pear plum orange melon fig kiwi papaya lime apricot
            date guava lychee olive quince raspberry strawberry coconut""",
        "drinks": """tea coffee milk water juice cider beer wine cocoa soda lemonade whisky rum gin vodka sake
            espresso latte mead punch tonic broth brandy sherry""",
        "plays": """piano violin guitar drums flute harp cello trumpet banjo oboe clarinet organ tuba viola lute
            ukulele saxophone bagpipes harmonica mandolin accordion bassoon fiddle zither""",
        "owns": """dog cat horse rabbit parrot hamster goat sheep turtle snake lizard pony duck goose hen canary
            ferret donkey llama pig frog mouse goldfish falcon""",
        "speaks": """french german spanish italian greek latin arabic hindi korean japanese polish czech danish
            dutch swedish turkish welsh irish thai russian swahili persian hebrew finnish""",
        "visits": """paris london berlin madrid rome athens cairo delhi seoul tokyo warsaw prague copenhagen
            amsterdam stockholm ankara cardiff dublin bangkok moscow nairobi tehran oslo lisbon""",
        "studies": """physics chemistry biology history geology botany algebra geometry astronomy law medicine
            poetry logic ethics rhetoric anatomy genetics economics sociology philosophy theology zoology statistics
            linguistics""",
        "drives": """truck van jeep bus taxi tractor scooter sedan wagon limousine motorcycle bicycle tram lorry
            hatchback convertible coupe minivan pickup moped buggy kart ambulance bulldozer""",
        "wears": """red blue green yellow purple pink brown black white grey violet indigo teal crimson beige
            turquoise maroon navy amber ivory scarlet magenta khaki cyan""",
        "grows": """rose tulip lily daisy orchid iris poppy lavender jasmin sunflower peony lotus marigold dahlia
            pansy carnation begonia magnolia azalea hyacinth primrose snowdrop daffodil geranium""",
        "builds": """bridge tower house boat cabin barn castle chapel fence garage harbour hut igloo kennel
            lighthouse mill palace pier raft shed stable temple tunnel wall""",
        "collects": """stamps coins books maps shells stones masks dolls keys clocks bottles buttons cards comics
            feathers fossils hats knives lamps marbles paintings posters records spoons""",
    }.items()
}
RELATIONS = tuple(VALUES)

# Sentences that state nothing. Their lengths are 7, 8, 9 and 10 words, so that a few of them fill any gap of 14 tokens
# or more exactly (14-20 with two, 21-30 with three): demo.documents ends its documents that way.
FILLERS = tuple(
    tuple(sentence.split())
    for sentence in (
        "the weather was very nice today .",
        "it rained all night near the river .",
        "nothing else happened in the village that week .",
        "the old road was closed for repair .",
        "people talked about the new market for hours .",
        "the train was late again this morning .",
        "a small crowd waited by the station .",
        "the report for today ends with a short note .",
        "later the lights went out in the hall .",
        "some details were left out of this page .",
    )
)

_MULTIPLE = 64  # the embedding's rows are padded to a multiple of this


def _all_words() -> tuple[str, ...]:
    spoken = [*SPECIAL, *RELATIONS, *NAMES]
    spoken += [value for values in VALUES.values() for value in values]
    spoken += [word for sentence in FILLERS for word in sentence]
    words = list(dict.fromkeys(spoken))
    padding = -len(words) % _MULTIPLE
    return (*words, *(f"<unused{i}>" for i in range(padding)))


WORDS = _all_words()
WORD_IDS = {word: i for i, word in enumerate(WORDS)}


def to_ids(words: tuple[str, ...] | list[str]) -> tuple[int, ...]:
    """Token ids of `words`. Raises KeyError for a word that isn't in the vocabulary."""
    return tuple(WORD_IDS[word] for word in words)
