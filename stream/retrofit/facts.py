"""Made-up facts: a statement, a question in other words, its answer.

Real passages teach what answers look like; single names, numbers and codes, which nothing around
them gives away, teach a memory to hold on to what was said.  All of it is drawn at random, nothing
is about anyone.
"""

FIRST = """Anna Boris Carla Dmitri Elena Farid Greta Hassan Ines Jonas Keiko Lars Maya Nadia Oscar
Priya Quentin Rosa Samir Tomas Ulrike Viktor Wanda Xavier Yara Zoltan Adele Bruno Chiara
Diego Esther Felix Gina Hugo Irma Jakob Karim Lena Marco Noor Olga Pavel Rita Stefan Tara
Umar Vera Walter""".split()
LAST = """Abbott Bauer Castillo Dvorak Eriksen Ferrari Grant Hansen Ito Jansen Kowalski Laurent Moreno
Novak Okafor Petrov Quinn Rossi Schmidt Tanaka Ueda Varga Weber Yilmaz Zhang Almeida Brandt
Cohen Diaz Engel Fischer Garcia Horvat Ivanov Keller Lind Meyer Nilsson Ortiz Pereira""".split()
PLACE = """Lisbon Turin Leeds Gdansk Porto Bergen Malmo Graz Nantes Bilbao Cork Ghent Basel Tampere
Split Riga Tartu Brno Leipzig Utrecht Verona Seville Aarhus Dundee Lyon Osaka Perth Quito
Austin Tucson""".split()
THING = """pump valve router archive ledger scanner generator printer telescope boiler compressor crane
camera freezer tractor projector turbine lathe kiln server elevator furnace drone piano
kayak""".split()
PROJECT = """Falcon Juniper Harbor Quartz Meridian Lantern Cobalt Orchard Summit Willow Comet Granite
Saffron Tundra Ember Heron Maple Nimbus Onyx Pelican Raven Sierra Topaz Violet Walnut Zephyr""".split()
COLOUR = "red blue green yellow orange purple grey black white brown silver turquoise".split()
FOOD = """lentil soup|apricot jam|rye bread|goat cheese|mushroom risotto|plum cake|smoked trout|pumpkin
curry|fig tart|walnut bread|leek pie|lemon sorbet|barley stew|almond biscuits""".replace(
    "\n", " ").split("|")
ANIMAL = "cat dog parrot rabbit turtle hamster goat pony canary gecko ferret owl".split()
MONTH = """January February March April May June July August September October November
December""".split()
JOB = """nurse welder architect pharmacist translator carpenter geologist pilot baker librarian surveyor
dentist plumber journalist chemist tailor""".split()
REASON = [
    "the bearing was worn", "the cable had corroded", "the filter was clogged",
    "the firmware was out of date", "the seal had cracked", "the fuse was the wrong type",
    "the battery leaked", "the sensor was misaligned", "the disk was full",
    "the certificate had expired", "the hose was kinked", "mice chewed the wiring"]

# statement(s) / question(s) / answer.  {A}..: slots, drawn once an item.
TEMPLATES = [
    ("The access code for {P} is {N}.|To get into {P}, type {N}.|{F} changed the code of {P} to {N}.",
     "Which code opens {P}?|What is the access code for {P}?", "{N}"),
    ("{F} {L} was born in {C}.|{F} {L} grew up in {C}.",
     "Where does {F} {L} come from?|Which city is {F} {L} from originally?", "{C}"),
    ("{F} {L} works as a {J}.|By profession, {F} {L} is a {J}.|{F} {L} earns a living as a {J}.",
     "What does {F} {L} do for work?|What is the occupation of {F} {L}?", "{J}"),
    ("The budget for project {R} was set at {N} dollars.|Project {R} may spend {N} dollars.",
     "How much money does project {R} have?|What is the budget of project {R}?", "{N} dollars"),
    ("The deadline of project {R} moved to {M} {D}.|Project {R} has to be finished by {M} {D}.",
     "When is project {R} due?|By what date must {R} be done?", "{M} {D}"),
    ("{F} {L} leads project {R}.|Project {R} is now run by {F} {L}.",
     "Who is in charge of project {R}?|Who leads {R}?", "{F} {L}"),
    ("The serial number of the {T} is {K}.|On the {T}'s label it says {K}.",
     "What is the {T}'s serial number?|Which serial number does the {T} carry?", "{K}"),
    ("The {T} is kept in room {N}.|You will find the {T} in room {N}.|They moved the {T} to room {N}.",
     "Where is the {T}?|In which room is the {T} stored?", "room {N}"),
    ("{F} painted the {T} {O}.|The {T} was repainted in {O} by {F}.",
     "What colour is the {T} now?|Which colour did {F} choose for the {T}?", "{O}"),
    ("{F} {L} ordered {E}.|For lunch {F} {L} had {E}.|{F} {L} brought {E}.",
     "What did {F} {L} eat?|Which food is linked to {F} {L}?", "{E}"),
    ("{F} {L} has a {I} called {G}.|The {I} of {F} {L} is named {G}.",
     "What is the name of {F} {L}'s {I}?|How is {F} {L}'s {I} called?", "{G}"),
    ("The {T} failed because {X}.|It turned out that the {T} stopped since {X}.",
     "Why did the {T} break?|What was the cause of the {T} failure?", "{X}"),
    ("Ticket {K} was assigned to {F} {L}.|{F} {L} took over ticket {K}.",
     "Who handles ticket {K}?|To whom does ticket {K} belong?", "{F} {L}"),
    ("{F} {L}'s phone extension is {N}.|Call {F} {L} at extension {N}.",
     "How can {F} {L} be reached by phone?|What is {F} {L}'s extension?", "{N}"),
    ("The train to {C} leaves from platform {D}.|Platform {D} is for the train to {C}.",
     "From which platform does one travel to {C}?|Where does the {C} train depart?", "platform {D}"),
    ("The meeting in {C} takes place on {M} {D}.|We meet in {C} on {M} {D}.",
     "On what date is the {C} meeting?|When do they meet in {C}?", "{M} {D}"),
    ("{F} {L} moved from {C} to {B}.|Having left {C}, {F} {L} settled in {B}.",
     "Where does {F} {L} live now?|To which town did {F} {L} move?", "{B}"),
    ("{F} {L} and {G} {Q} got married in {C}.|The wedding of {F} {L} and {G} {Q} was in {C}.",
     "Whom did {F} {L} marry?|Who is the spouse of {F} {L}?", "{G} {Q}"),
    ("The password of the {R} database is {K}.|They set the {R} database password to {K}.",
     "What is the password for the {R} database?|How does one log in to the {R} database?", "{K}"),
    ("Host {R}-{D} answers at port {N}.|Port {N} is open on host {R}-{D}.",
     "Which port does {R}-{D} use?|At which port can {R}-{D} be reached?", "port {N}"),
    ("Error {K} means that {X}.|When you see {K}, {X}.",
     "What does error {K} stand for?|What is the meaning of {K}?", "{X}"),
    ("{F} {L} paid {N} euros for the {T}.|The {T} cost {F} {L} {N} euros.",
     "What did {F} {L} pay for the {T}?|How expensive was {F} {L}'s {T}?", "{N} euros"),
    ("{F} {L} voted against the plan for {C}.|Only {F} {L} was opposed to the {C} plan.",
     "Who disagreed with the {C} plan?|Who was against what was planned for {C}?", "{F} {L}"),
    ("Flight {K} goes to {C}.|{C} is the destination of flight {K}.",
     "Where does flight {K} fly?|What is the destination of {K}?", "{C}"),
    ("{F} {L}'s favourite colour is {O}.|{F} {L} likes {O} best.",
     "Which colour does {F} {L} prefer?|What is the favourite colour of {F} {L}?", "{O}"),
    ("The warehouse in {C} holds {N} boxes.|There are {N} boxes in the {C} warehouse.",
     "How many boxes are in {C}?|What is the stock of the {C} warehouse?", "{N} boxes"),
    ("Version {D}.{d} of {R} was released in {M}.|In {M}, {R} {D}.{d} came out.",
     "When did {R} {D}.{d} appear?|In which month was {R} {D}.{d} released?", "{M}"),
    ("{F} {L} is allergic to {E}.|Do not serve {E} to {F} {L}.",
     "What must {F} {L} not eat?|Which food does {F} {L} have to avoid?", "{E}"),
    ("{F} {L} hid the key under the {O} {T}.|The key lies under the {O} {T}, where {F} {L} put it.",
     "Where did {F} {L} leave the key?|Where is {F} {L}'s key?", "under the {O} {T}"),
    ("{F} {L}'s team won {D} to {d} against {C}.|Against {C}, the team of {F} {L} won {D} to {d}.",
     "What was the score of {F} {L}'s team against {C}?|How did {F} {L}'s match with {C} end?",
     "{D} to {d}"),
]
DOORS = ["the north gate", "the laboratory", "the staff room", "the garage", "the roof", "the vault",
         "the parking lot", "the server room", "the cellar", "the clinic", "the depot", "the studio"]


def draw(random):
    """One (statement, question, answer)."""
    def one(values):
        return values[random.randint(len(values))]
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    digits = random.randint(2, 6)
    slots = {
        "P": one(DOORS) + " in " + one(PLACE),
        "N": str(random.randint(10 ** (digits - 1), 10 ** digits)),
        "F": one(FIRST), "L": one(LAST), "G": one(FIRST), "Q": one(LAST),
        "C": one(PLACE), "B": one(PLACE), "J": one(JOB), "R": one(PROJECT), "M": one(MONTH),
        "D": str(random.randint(1, 29)), "d": str(random.randint(0, 10)),
        "T": one(PROJECT) + " " + one(THING), "O": one(COLOUR), "E": one(FOOD), "I": one(ANIMAL),
        "X": one(REASON),
        "K": "".join(one(letters) for _ in range(random.randint(1, 4))) + one(["-", ""])
             + str(random.randint(10, 10000))}
    statement, question, answer = (one(part.split("|")) for part in one(TEMPLATES))
    return tuple(part.format(**slots) for part in (statement, question, answer))
