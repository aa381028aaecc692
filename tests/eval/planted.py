"""Facts to plant in streams, each with a question in other words.

A fact is a sentence with one exact answer: a name, a number, a code.  A question repeats nothing
but what tells the fact from others, in three degrees: `named` questions repeat a person's or a
place's name, `half` ones one word of two that describe a thing, `none` ones no word ("the crimson
automobile": "the red car").  The training of recall keys (stream/retrofit/key.py) has facts of its
own; no form of words and no pair of synonyms here is there.  The adapter's lexicon is made from
WordNet alone (stream/retrofit/lexicon.py), which, as a dictionary does, has 67 of the 90 pairs.
"""
import random

FIRST = """
Marta Tomasz Ingrid Rashid Leonie Bertil Fumiko Oksana Desmond Paloma Aurelio Nadira Cormac
Yusuf Henrike Solveig Kwame Anneke Ludovic Saskia Zoltan Mireille Eamon Priya Gunnar Odalys
Tiberiu Wanjiru Lars Chiara Dagmar Emeka Freya Hamid Iolanda Jarek Kerstin Lubna Moritz
Nerys""".split()
LAST = """
Lindqvist Abernathy Castellano Dvorak Eriksen Fairbanks Gutierrez Halloran Ivanenko
Jankowski Kowalczyk Lefebvre Mbeki Novotny Okonkwo Petrakis Quigley Rosenthal Szabo
Takahashi Underhill Vasquez Wetherby Xanthopoulos Yilmaz Zielinski Ashworth Bancroft
Cavendish Drummond Espinoza Fitzgerald Grimaldi Hathaway Ibsen Jorgensen Kaminski Lockhart
Montague Nakamura""".split()
PLACES = [a + b for a in """Alder Brack Cold Dun Elms Farrow Glen Harts Inver Jorven Kestrel Lark
Mar Nether Oak Pendle Quarr Ravens Stone Thorn""".split()
          for b in "mere water ridge holt worth dale stead moor bury field".split()]

# (in the fact, in the question)
LOOKS = [("crimson", "red"), ("tiny", "very small"), ("enormous", "huge"),
         ("ancient", "very old"), ("broken", "damaged"), ("costly", "expensive"),
         ("spotless", "clean"), ("filthy", "dirty"), ("noisy", "loud"), ("silent", "quiet"),
         ("vacant", "empty"), ("soaked", "wet"), ("golden", "yellow"), ("scarce", "rare"),
         ("circular", "round"), ("gloomy", "dark"), ("speedy", "fast"), ("sluggish", "slow"),
         ("fragile", "easily broken"), ("sturdy", "strong")]
THINGS = [("automobile", "car"), ("sofa", "couch"), ("lorry", "truck"), ("bicycle", "bike"),
          ("rug", "carpet"), ("spectacles", "glasses"), ("wardrobe", "closet"),
          ("kettle", "water boiler"), ("painting", "picture"), ("vessel", "ship"),
          ("overcoat", "jacket"), ("dwelling", "house"), ("photograph", "snapshot"),
          ("timepiece", "watch"), ("parcel", "package"), ("lantern", "lamp"),
          ("tractor", "farm vehicle"), ("violin", "fiddle"), ("puppy", "young dog"),
          ("jewel", "gem"), ("manuscript", "handwritten book"),
          ("telescope", "instrument for watching stars"), ("refrigerator", "fridge"),
          ("television", "TV set"), ("suitcase", "luggage"), ("cellphone", "mobile phone"),
          ("yacht", "sailing boat"), ("stallion", "horse"), ("trousers", "pants"),
          ("necklace", "chain")]
ROOMS = [("attic", "loft"), ("cellar", "basement"), ("infirmary", "sick room"),
         ("canteen", "cafeteria"), ("workshop", "place where things are repaired"),
         ("garage", "parking place"), ("lavatory", "toilet"), ("kitchen", "cooking area"),
         ("laboratory", "lab"), ("auditorium", "lecture hall"), ("warehouse", "storage building"),
         ("foyer", "entrance hall"), ("chapel", "small church"),
         ("greenhouse", "glass house for plants"), ("gymnasium", "sports hall"),
         ("archive", "records room"), ("nursery", "children's room"), ("bakery", "bread shop"),
         ("observatory", "star tower"), ("stable", "horse barn")]
JOBS = [("physician", "doctor"), ("attorney", "lawyer"), ("janitor", "cleaner"), ("chef", "cook"),
        ("teacher", "instructor"), ("cop", "police officer"), ("author", "writer"),
        ("barber", "hairdresser"), ("merchant", "trader"), ("pilot", "aviator"),
        ("carpenter", "woodworker"), ("accountant", "bookkeeper"), ("farmer", "grower"),
        ("sailor", "seaman"), ("tailor", "dressmaker"), ("guard", "watchman"),
        ("jeweller", "goldsmith"), ("gardener", "groundskeeper"), ("mechanic", "repairman"),
        ("butcher", "meat seller")]

# Slots: L look, T thing, R room, J job, P place, N the person of the question, A the answer; a
# digit 2 stands for the word of the question.
NAMES = [
    ("The {L} {T} belongs to {A}.", "Who owns the {L2} {T2}?"),
    ("{A} was hired as the new {J} in {P}.", "Who got the job of {J2} at {P}?"),
    ("The {L} {T} in the {R} was a present from {A}.",
     "Who gave us the {L2} {T2} that is in the {R2}?"),
    ("The {J} who looks after the {R} is called {A}.",
     "What is the name of the {J2} responsible for the {R2}?"),
    ("{N} got married to {A} last spring.", "Who is the spouse of {N}?"),
    ("The {L} {T} was stolen by {A}.", "Who was the thief of the {L2} {T2}?"),
    ("It was {A} who designed the {R} in {P}.", "Who was the architect of the {R2} at {P}?"),
]
NUMBERS = [
    ("The {L} {T} cost us {A} dollars.", "How much money was paid for the {L2} {T2}?"),
    ("There are {A} chairs in the {R} at {P}.",
     "How many people can sit down in the {R2} of {P}?"),
    ("{N} turned {A} this week.", "How old is {N}?"),
    ("The {J} from {P} earns {A} euros each month.",
     "What is the salary of the {J2} who lives at {P}?"),
    ("It takes {A} minutes to walk from the {R} to the {L} {T}.",
     "How long is the way on foot between the {R2} and the {L2} {T2}?"),
    ("The {T} we keep in the {R} weighs {A} kilos.", "How heavy is the {T2} stored in the {R2}?"),
    ("{N} lives at number {A} on the main street.", "What is the house address of {N}?"),
]
CODES = [
    ("The door of the {R} in {P} opens with {A}.", "What is the entry code for the {R2} at {P}?"),
    ("{N}'s locker combination is {A}.", "Which digits unlock the cabinet of {N}?"),
    ("The {L} {T} has the serial number {A}.", "What identifier is engraved on the {L2} {T2}?"),
    ("The wifi password in the {R} of {P} is {A}.",
     "How do I log in to the wireless network of the {R2} in {P}?"),
    ("{N}'s train ticket is booked under {A}.", "What is the rail reservation reference of {N}?"),
    ("The licence plate of the {J} from {P} is {A}.",
     "What is the vehicle registration of the {J2} who comes from {P}?"),
]
KINDS = {"names": NAMES, "numbers": NUMBERS, "codes": CODES}


def make_code(rng):
    letters = "".join(rng.choice("BCDFGHKLMNPRSTVXZ") for _ in range(rng.choice([0, 2, 3])))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.choice([4, 5])))
    return letters + ("-" if letters else "") + digits


def make_answer(kind, rng, used):
    while True:
        if kind == "names":
            answer = "%s %s" % (rng.choice(FIRST), rng.choice(LAST))
        elif kind == "numbers":
            answer = str(rng.randint(17, 983))
        else:
            answer = make_code(rng)
        if kind == "numbers" or answer not in used:
            used.add(answer)
            return answer


def make_words(rng, half):
    """What fills the slots; half: the question repeats one of the fact's words."""
    words = {}
    for slot, pairs in (("L", LOOKS), ("T", THINGS), ("R", ROOMS), ("J", JOBS)):
        words[slot], words[slot + "2"] = rng.choice(pairs)
    if half:
        words["L2"], words["J2"] = words["L"], words["J"]
    words["P"] = rng.choice(PLACES)
    words["N"] = "%s %s" % (rng.choice(FIRST), rng.choice(LAST))
    return words


def make_facts(count, seed=1):
    """`count` facts of all kinds in turn: {kind, degree, text, question, answer}.  No question fits
    two of them."""
    rng, used, seen, out = random.Random(seed), set(), set(), []
    while len(out) < count:
        kind = list(KINDS)[len(out) % len(KINDS)]
        fact, question = rng.choice(KINDS[kind])
        named = "{N}" in fact or "{P}" in question
        half = not named and rng.random() < 0.5
        words = make_words(rng, half)
        asked = question.format(**words)
        if asked in seen or words["N"] in used:
            continue
        seen.add(asked)
        if "{N}" in fact:
            used.add(words["N"])
        words["A"] = make_answer(kind, rng, used)
        out.append({"kind": kind, "degree": "named" if named else "half" if half else "none",
                    "text": fact.format(**words), "question": asked, "answer": words["A"]})
    return out
