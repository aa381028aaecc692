"""Facts and questions in other words, to train recall keys on.

Made from forms of words; none of them, and no pair of synonyms, is in tests/eval/planted.py, which
measures recall on facts that no training has seen.
"""
FIRST = """Anna Bruno Carla David Elena Felix Grace Hugo Irene Jonas Karin Louis Maria Nils Olga Peter
Quinn Rosa Stefan Tanya Ursula Victor Wendy Xavier Yvonne Zack Alice Brian Cecil Diana Edwin Fiona
George Helen Ivan Julia Kevin Laura Martin Nora Oscar Paula Robert Sarah Thomas Vera Walter Simon
Amir Bianca Chen Divya Esteban Farid Gabriela Haruto Imani Jamal Keiko Lin Mehmet Ngozi""".split()
LAST = """Adams Baker Carter Dixon Evans Foster Graham Hughes Irwin Jensen Keller Lopez Miller Nelson
Olsen Parker Reed Sanders Turner Vaughn Walker Young Bauer Conti Dubois Ferrari Garcia Hansen
Ishikawa Janssen Kim Larsen Moreau Nguyen Ortega Patel Romano Schmidt Torres Weber Ahmed Brandt Cohen
Das Eklund Fischer Gupta Hoffman""".split()
PLACES = """Paris Berlin Madrid Oslo Lisbon Vienna Dublin Prague Athens Cairo Lima Quito Tokyo Seoul
Delhi Perth Boston Denver Austin Dallas Milan Turin Lyon Geneva Hamburg Bergen Gdansk Porto Seville
Leeds Bristol York Cardiff Galway Antwerp Utrecht Malmo Tampere Riga Vilnius""".split()

# (in the fact, in the question) or the other way round
WORDS = {
    "K": [("blue", "azure"), ("old", "aged"), ("new", "recent"), ("heavy", "weighty"),
          ("cheap", "low-priced"), ("wooden", "timber"), ("shiny", "gleaming"), ("long", "lengthy"),
          ("strange", "odd"), ("beautiful", "pretty"), ("cold", "chilly"), ("hot", "boiling"),
          ("wealthy", "rich"), ("sick", "ill"), ("hidden", "concealed"), ("famous", "well-known"),
          ("narrow", "thin"), ("smart", "intelligent"), ("angry", "furious"), ("main", "principal"),
          ("spare", "extra"), ("foreign", "from abroad"), ("torn", "ripped"), ("wide", "broad"),
          ("scary", "frightening"), ("hard", "difficult"), ("correct", "right"), ("final", "last")],
    "O": [("cup", "mug"), ("knife", "blade"), ("plane", "aircraft"), ("stone", "rock"),
          ("boat", "canoe"), ("hat", "cap"), ("shoe", "boot"), ("computer", "PC"),
          ("phone", "telephone"), ("movie", "film"), ("song", "tune"), ("newspaper", "daily paper"),
          ("bag", "sack"), ("letter", "written message"), ("engine", "motor"), ("road", "street"),
          ("forest", "woods"), ("shop", "store"), ("present", "gift"), ("meal", "dinner"),
          ("sweater", "pullover"), ("cat", "kitten"), ("bin", "trash can"), ("medicine", "drug"),
          ("weapon", "gun"), ("ring", "piece of jewellery"), ("map", "chart"), ("purse", "wallet"),
          ("ladder", "steps"), ("pot", "pan"), ("robot", "automatic machine"),
          ("coin", "money piece"),
          ("statue", "sculpture"), ("guitar", "string instrument"), ("diary", "personal journal"),
          ("fence", "barrier"), ("ticket", "pass"), ("tool", "device"), ("server", "host machine")],
    "R": [("office", "bureau"), ("bedroom", "room for sleeping"), ("garden", "yard"),
          ("hall", "corridor"),
          ("hotel", "inn"), ("school", "college"), ("hospital", "clinic"), ("museum", "exhibition"),
          ("factory", "plant"), ("shed", "hut"), ("library", "reading room"), ("prison", "jail"),
          ("station", "railway stop"), ("harbour", "port"), ("restaurant", "diner"),
          ("farm", "ranch"),
          ("pool", "swimming bath"), ("court", "tribunal"), ("castle", "fortress"),
          ("roof", "top")],
    "J": [("boss", "manager"), ("student", "pupil"), ("driver", "chauffeur"), ("nurse", "carer"),
          ("singer", "vocalist"), ("soldier", "fighter"), ("thief", "burglar"), ("king", "ruler"),
          ("scientist", "researcher"), ("priest", "clergyman"), ("engineer", "technician"),
          ("reporter", "journalist"), ("judge", "magistrate"), ("waiter", "server"),
          ("painter", "artist"), ("coach", "trainer"), ("actor", "performer"),
          ("clerk", "assistant"),
          ("owner", "proprietor"), ("founder", "person who started it"), ("spy", "secret agent"),
          ("plumber", "pipe fitter"), ("dentist", "tooth doctor"), ("miner", "coal digger")],
}
# Fact, question; P place, N a person both name, A the answer: a name, a number or a code.
PAIRS = [
    ("n", "{A} bought the {K} {O}.", "Who is the buyer of the {K2} {O2}?"),
    ("n", "{A} found the {O} in the {R}.", "Who discovered the {O2} at the {R2}?"),
    ("n", "The {J} of the {R} in {P} is {A}.", "Who works as {J2} in the {R2} at {P}?"),
    ("n", "We met {A}, the {K} {J}, yesterday.", "What is the {K2} {J2} called?"),
    ("n", "{A} is the mother of {N}.", "Who gave birth to {N}?"),
    ("n", "{A} lent the {K} {O} to {N}.", "From whom did {N} borrow the {K2} {O2}?"),
    ("n", "{A} will take care of the {R} from Monday.",
     "Who is going to be in charge of the {R2}?"),
    ("n", "The fire at the {R} in {P} was started by {A}.", "Who set the {R2} of {P} ablaze?"),
    ("n", "The {K} {O} was repaired by {A}.", "Who fixed the {K2} {O2}?"),
    ("n", "{N} shares a room with {A}.", "Who is the roommate of {N}?"),
    ("n", "The winner of the race in {P} was {A}.", "Who came first in the {P} run?"),
    ("n", "{A} wrote the report about the {K} {O}.",
     "Who is the author of the text on the {K2} {O2}?"),
    ("n", "They sent {A} to {P} to inspect the {R}.", "Who had to check the {R2} at {P}?"),
    ("d", "The {K} {O} is {A} centimetres tall.", "What is the height of the {K2} {O2}?"),
    ("d", "{A} people work at the {R} in {P}.", "How many employees does the {R2} of {P} have?"),
    ("d", "{N} has {A} sheep.", "How big is the flock of {N}?"),
    ("d", "We sold the {K} {O} for {A} pounds.", "What price did we get for the {K2} {O2}?"),
    ("d", "The {R} in {P} was built {A} years ago.", "What is the age of the {R2} at {P}?"),
    ("d", "{N} ran the distance in {A} seconds.", "What was the time of {N}?"),
    ("d", "The {O} in the {R} holds {A} litres.", "What is the volume of the {O2} at the {R2}?"),
    ("d", "The {J} of the {R} has room {A}.", "Where can I find the {J2} of the {R2}?"),
    ("d", "The flight of the {J} to {P} leaves from gate {A}.",
     "Where does the {J2} board the plane to {P}?"),
    ("d", "{N} owes the {J} {A} dollars.", "How large is the debt of {N} to the {J2}?"),
    ("d", "It is {A} kilometres from {P} to the {K} {R}.",
     "What is the distance between the {K2} {R2} and {P}?"),
    ("d", "The {R} had {A} visitors on Sunday.",
     "How many people came to the {R2} at the weekend?"),
    ("c", "The {K} {O} carries the label {A}.", "What is written on the tag of the {K2} {O2}?"),
    ("c", "The alarm of the {R} in {P} is switched off with {A}.",
     "What PIN disarms the {R2} at {P}?"),
    ("c", "{N}'s membership card says {A}.", "What is the club ID of {N}?"),
    ("c", "The parcel for {N} has tracking code {A}.", "How can I trace the shipment to {N}?"),
    ("c", "Invoice {A} is for the {K} {O}.", "Under what number was the {K2} {O2} billed?"),
    ("c", "The {J} from {P} can be called at {A}.", "What is the phone number of the {J2} in {P}?"),
    ("c", "The safe in the {R} opens with {A}.",
     "What combination unlocks the strongbox of the {R2}?"),
    ("c", "The model of the {O} in the {R} is {A}.", "What type is the {O2} at the {R2}?"),
    ("c", "The case of the {K} {J} is filed as {A}.",
     "What is the docket reference of the {K2} {J2}?"),
    ("c", "{N} flies to {P} with booking {A}.",
     "What is the reservation of {N} for the trip to {P}?"),
    ("c", "The {R} network has the key {A}.", "What secret do I type to get online in the {R2}?"),
]


def _choice(rng, items):
    return items[rng.randint(len(items))]


def _answer(rng, sort):
    if sort == "n":
        return "%s %s" % (_choice(rng, FIRST), _choice(rng, LAST))
    if sort == "d":
        return str(rng.randint(2, 2000))
    letters = "".join(_choice(rng, "ABCDEFGHKLMNPQRSTUVWXYZ") for _ in range(rng.randint(4)))
    return letters + _choice(rng, ["", "-", " "] if letters else [""]) \
        + "".join(_choice(rng, "0123456789") for _ in range(rng.randint(3, 7)))


def _part(items, held_out):
    """Every fifth is held out."""
    return [item for index, item in enumerate(items) if (index % 5 == 4) == held_out]


def make_fact(rng, held_out=False):
    """(fact, question, answer) from a numpy RandomState; held out: of other forms and synonyms."""
    sort, fact, question = _choice(rng, _part(PAIRS, held_out))
    words = {"P": _choice(rng, PLACES), "A": _answer(rng, sort),
             "N": "%s %s" % (_choice(rng, FIRST), _choice(rng, LAST))}
    for slot, pairs in WORDS.items():
        pair = _choice(rng, _part(pairs, held_out))
        if rng.rand() < 0.5:
            pair = pair[::-1]
        words[slot] = pair[0]
        # Now and then a question does repeat a word.
        words[slot + "2"] = pair[0] if rng.rand() < 0.25 else pair[1]
    return fact.format(**words), question.format(**words), words["A"]
