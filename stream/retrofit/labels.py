"""Short texts with a label, in sets: what few-shot rows are made of.

Three sources: requests to an assistant, drawn from the forms below; MedQuAD's questions by what they
ask; tldr's examples by their command.  A set is a list of (label, texts).
"""
import re

PLACES = """the office|my flat|the old town|Graz|the station|the airport|Leeds|the lake house|Porto|the
second floor|the clinic|school""".split("|")
TIMES = """tomorrow|at noon|on Friday|next week|tonight|at six|on the 3rd|this weekend|in an hour|before
lunch|early in the morning|next month""".replace("\n", " ").split("|")
PEOPLE = """my sister|Anna|the landlord|Mr Novak|our team|my boss|the new colleague|Omar|the neighbours|
my parents|Dr Weber|the driver""".replace("\n", " ").split("|")
THINGS = """the blue jacket|a charger|the printer|my bike|the desk lamp|two tickets|the router|a tent|
the coffee machine|my old phone|the headphones|a winter coat""".replace("\n", " ").split("|")
SLOTS = {"P": PLACES, "T": TIMES, "W": PEOPLE, "X": THINGS}

# label: forms of it.  {P} place, {T} time, {W} person, {X} thing.
REQUESTS = """
weather: will it rain {T} in {P}|do I need an umbrella {T}|how warm does it get {T}|
  is there snow near {P}|what is the sky like over {P}|tell me how windy it will be {T}
set alarm: wake me {T}|ring a bell for me {T}|I must be up {T}, make some noise|
  get me out of bed {T}|put an alarm on for {T}
play music: put on some jazz|I would like to hear a song by {W}|start my running playlist|
  something quiet to listen to {T}, please|turn up a bit of rock
call someone: ring {W} for me|get {W} on the line|dial {W} {T}|I want to talk to {W} now|phone {P}
send message: text {W} that I am late|write to {W} about {X}|tell {W} I will be at {P} {T}|
  drop {W} a line about {T}|let {W} know by message that {X} arrived
directions: how do I get to {P}|which way is {P} from here|guide me to {P}|is {P} far on foot|
  what is the quickest road to {P}
restaurant booking: a table for four {T}|reserve dinner near {P} {T}|
  we want to eat out with {W} {T}, find us seats|hold a table by the window {T}|
  book lunch for me and {W}
order food: get me a large pizza|two soups delivered to {P}|I am hungry, order noodles {T}|
  bring curry for {W} and me|have some sandwiches sent to {P}
cook: what can I make from leeks and rice|how long does bread stay in the oven|
  steps for a lemon tart|I need a dish for {W} without nuts|which spices go with lentils
flight booking: a seat on the plane to {P} {T}|find me something that flies to {P}|
  I must be in {P} {T}, by air|return ticket by plane for {W}|cheapest way to fly {T}
hotel booking: a double room in {P} {T}|somewhere to sleep near {P}|book two nights for {W}|
  is there a quiet place to stay in {P}|I need a bed {T}
train times: when does the next train leave for {P}|is there a late train {T}|
  from which platform do I go to {P}|how often do trains run to {P}|trains that reach {P} {T}
taxi: send a cab to {P}|I need a ride to {P} {T}|pick up {W} at {P}|get me a driver {T}|
  a car from {P}, please
parking: where can I leave the car near {P}|is there a garage by {P}|how much is it to park {T}|
  spaces free at {P}|may I park in front of {P}
translate: how do you say good evening in French|what does this word mean in Polish|
  put this letter into Spanish for {W}|say thank you in Finnish|I need it in German {T}
spelling: how is rhythm spelled|is it one s or two in occasion|check how to write necessary|
  letters of the word bureau|did I write embarrass right
arithmetic: what is 17 times 23|add up 45, 12 and 8|a fifth of 230|how much is 9 squared|
  take 38 from 114
convert units: how many feet are two metres|12 miles in kilometres|what is 70 fahrenheit in celsius|
  grams in three ounces|turn 5 litres into pints
timer: count down ten minutes|tell me when the eggs are done in six minutes|
  stop me after half an hour|a timer for the tea|how long is left on the clock
reminder: don't let me forget {X}|remind me to see {W} {T}|
  I have to water the plants {T}, tell me then|nudge me about {X} {T}|make sure I remember {P} {T}
shopping list: put milk on the list|we are out of soap, note it|add {X} to what I have to buy|
  what do I still need from the shop|take eggs off my list
calendar: am I free {T}|what is planned for {T}|put a meeting with {W} in {T}|
  move my appointment at {P} to {T}|who do I see {T}
cancel appointment: I can't make it to {P} {T}, call it off|drop my visit with {W}|
  take me off the schedule {T}|cancel what I had with {W} {T}|no haircut {T} after all
news: what happened in the world today|read me the headlines|anything new about the election|
  latest from {P}|what do the papers say
sports results: who won last night|what was the score of the final|how did the team from {P} do|
  is our club still first|tell me how the match ended
joke: make me laugh|say something funny about {W}|do you know a good pun|cheer me up with a joke|
  tell me one about cats
light: it is dark in here, lamps on|dim the bedroom|switch off everything in the hall|
  make the kitchen brighter {T}|lights out {T}
heating: I am freezing, warm it up|set the rooms to 19 degrees {T}|turn the radiator down|
  too hot in {P}, lower it|heat the bath {T}
lost card: my bank card is gone|I left my card at {P}|someone stole my wallet with the card|
  block the card, I can't find it|where do I report a missing card
account balance: how much money do I have|what is left on my account|am I in the red|
  do I have enough for {X}|show my balance
transfer money: send fifty to {W}|pay {W} back for {X}|move a hundred into savings|
  wire the rent to {W} {T}|put money into the account of {W}
exchange rate: how many yen for a pound|what is the dollar worth {T}|is it a good day to buy euros|
  rate from krone to franc|what do I get for 200 dollars in pesos
loan: can I borrow money for {X}|what would a mortgage cost me|
  how high is the interest over five years|I want to finance {X}|lend me ten thousand
fraud: there is a payment that I never made|somebody shops with my account|
  I don't know this charge from {P}|my money went to a stranger|a strange withdrawal {T}
change pin: I want other digits for my card|how do I choose a new pin|my secret number must change|
  I forgot the pin, give me another|set a new code for the card
refund: I want my money back for {X}|{X} came broken, repay me|how do I get a refund|
  when is the money for {X} returned|you charged me twice, give it back
track parcel: where is my package|has {X} been shipped|when will {X} arrive at {P}|
  the parcel is late|follow my delivery
return item: {X} does not fit, I send it back|how do I return {X}|
  where do I take {X} that I don't want|I changed my mind about {X}|may I bring {X} back {T}
opening hours: is {P} open {T}|when do you close|from what time can I come {T}|
  are you there on Sundays|how late can one visit {P}
complaint: I am very unhappy with the service|nobody answered me for days|{W} was rude to me|
  this is the third time that {X} fails|I want to speak to a manager
password reset: I can't log in any more|I forgot my password|the site does not take my login|
  send me a link for a new password|locked out of my account
internet down: the wifi is gone|no connection since {T}|pages do not load in {P}|
  the line drops all the time|the network at {P} is dead
printer problem: the paper is stuck|it prints only blank pages|the toner is empty|
  my print job never comes out|the printer in {P} blinks red
install software: how do I get the program onto my laptop|setup stops at half|
  which version must I download|put the editor on the machine of {W}|
  I need rights to install an app
update: is there a newer version|the phone wants to upgrade|when is the next patch|
  how do I get the latest release|after the update {X} is slow
battery: {X} does not charge|the power lasts an hour at most|how do I save battery|
  it dies at 30 percent|should I change the cell of {X}
doctor appointment: I need to see a doctor {T}|my back hurts, when can I come|is Dr Weber free {T}|
  book a check-up for {W}|may I bring my child {T}
prescription: my pills run out {T}|renew the medicine for {W}|how often do I take the drops|
  can I have the same tablets again|pick up what the doctor wrote
dentist: a tooth hurts|I lost a filling|cleaning of my teeth {T}|my gums bleed|{W} needs braces
insurance claim: my car was hit at {P}|water damage in {P}, who pays|I want to claim for {X}|
  the storm broke the roof|how do I report an accident
holiday request: I would like two weeks off|may I take leave {T}|how many days of vacation are left|
  I am away {T}, please approve|day off for the wedding of {W}
sick note: I have a fever and stay home|can't come to work {T}, I am ill|
  where do I send my doctor's letter|{W} is sick today|I caught the flu
salary: when is pay day|my wage is lower this month|why was tax taken twice|where is my payslip|
  I would like a raise
job opening: are you hiring|I want to apply as a welder|is the post in {P} still free|
  whom do I send my CV|which jobs are there in {P}
library: may I keep the book longer|is the novel on the shelf|how many books may I borrow|
  I owe a fine for a late return|reserve the atlas for {W}
gym: when is the yoga class|I want to end my membership at the gym|is the pool free {T}|
  book a trainer {T}|how much is a month of training
cinema: what is on {T}|two seats for the late show|how long is the film|
  is there a movie for children|any comedy {T}
school: when do classes start|my child is absent {T}|homework for maths|who teaches biology|
  the report of {W} is missing
pet care: the cat does not eat|when is the dog due for a shot|who can feed the rabbit {T}|
  a vet near {P}|my parrot pulls out feathers
gardening: when do I plant tomatoes|the roses have spots|how often does the lawn need water|
  which soil for herbs|when are apple trees cut
waste: when is the rubbish collected|where does old glass go|my bin was not emptied|
  how do I get rid of {X}|is plastic taken {T}
rent a car: I need a van {T}|a small car for the weekend|what does a car cost per day|
  pick up the rental at {P}|I return the hired car {T}
repair: {X} is broken, who mends it|a technician for {X} {T}|the tap drips|
  what does it cost to fix {X}|the window does not close
gift: what could I give {W}|an idea for a birthday|something nice for {W} under twenty|
  wrap {X} as a present|flowers for {W} {T}
photo: take a picture|where are the photos from {P}|make the image brighter|
  send the pictures of {P} to {W}|crop {X} out of the photo
"""

# Head of an example, mark before its label, its end; and mark and end of a pair.
FORMS = [("Text: ", "\nIntent:", "\n\n"), ("Message: ", "\nFolder:", "\n\n"),
         ("Input: ", "\nLabel:", "\n\n"), ("", " =>", "\n"), ("Q: ", "\nCategory:", "\n"),
         ("User: ", "\nTopic:", "\n\n"), ("- ", " |", "\n"), ("Sentence: ", " Class:", "\n")]
MARKS = [(":", "\n"), (" =", "\n"), (" ->", ";"), (" is", "."), (" =", ","), (":", " |")]

ASKED = [("treatment", r"treatments? (?:for|of)"), ("symptoms", r"symptoms of"),
         ("causes", r"causes? "), ("genetic changes", r"genetic changes"),
         ("inheritance", r"inherited"), ("frequency", r"How many people"),
         ("outlook", r"outlook for"), ("diagnosis", r"How to diagnose|diagnosed"),
         ("prevention", r"prevent"), ("risk", r"at risk"), ("definition", r"What is \(are\)"),
         ("research", r"research \(or clinical trials\)"), ("complications", r"complications of")]
TEXTS = 60              # of one label, at most


def requests(random):
    """[(label, texts)] drawn from the forms."""
    found = []
    for line in REQUESTS.strip().replace("|\n  ", "|").split("\n"):
        label, forms = line.split(": ", 1)
        texts = set()
        for _ in range(8 * TEXTS):
            text = forms.split("|")[random.randint(len(forms.split("|")))]
            for slot, values in SLOTS.items():
                text = text.replace("{%s}" % slot, " ".join(
                    values[random.randint(len(values))].split()))
            style = random.rand()
            text = text[0].upper() + text[1:] if style < 0.4 else text
            texts.add(text + ("?" if style < 0.2 else "." if style < 0.3 else ""))
        found.append((label, sorted(texts)))
    return found


def medical(documents):
    groups = {}
    for document in documents:
        question = document["text"].split("\n")[0].replace("Question: ", "")
        if document["source"] == "qa_medquad":
            for label, pattern in ASKED:
                if re.search(pattern, question):
                    groups.setdefault(label, []).append(question)
                    break
    return sorted(groups.items())


def commands(documents):
    found = []
    for document in documents:
        if document["source"] == "docs_tldr":
            name = document["text"].split("\n")[0].strip("# ")
            texts = [line[2:].rstrip(":") for line in document["text"].split("\n")
                     if line.startswith("- ")]
            if len(texts) >= 5 and len(name) < 20:
                found.append((name, texts))
    return found


def sets(qa, docs, random):
    """-> [[(label, texts)]], at most TEXTS of a label, in random order."""
    out = []
    for found in (requests(random), medical(qa), commands(docs)):
        picked = []
        for label, texts in found:
            texts = [text for text in texts if len(text) < 200]
            random.shuffle(texts)
            picked.append((label, texts[:TEXTS]))
        out.append([group for group in picked if len(group[1]) >= 5])
    return [found for found in out if found]
