"""Write the small sample data set: invented sentences for three sentence tasks.

    python data/sample/make_sample.py [--out DIR]

Nine tab-separated files are written (beside this script unless --out is given), and two runs give the same bytes:

    ids-sst-{train,dev,test-student}.csv   1600/400/400 reviews, sentiment 0 (very bad) .. 4 (very good)
    quora-{train,dev,test-student}.csv     1800/400/400 question pairs, is_duplicate 0.0 or 1.0
    sts-{train,dev,test-student}.csv       1200/400/400 sentence pairs, similarity 0.0 .. 5.0

The test-student files have no label column. How a label comes to be:

* sentiment: each judgement ("the plot is anything but dull") has a score that follows from the level of its
  adjective and from the form that holds it (plain, stronger, softer, turned round). Joining two judgements weighs
  them ("although A, B" is mostly B), the total is cut into five classes, and 12 % of the rows then move to a
  neighbouring class, as human raters would disagree.
* is_duplicate: 1 if two wordings come from one question with the same filling and the same condition. Otherwise
  0: another thing asked about, another question, a condition added, a direction swapped. Then 4 % are flipped.
* similarity: 5 minus a fixed price for every part of the event that is changed, dropped or reworded; 0 to 1 for
  two unrelated events. Gaussian noise (sd 0.4) is added and the result rounded to 0.2.

The training split leaves out the last sixth of each table of five or more entries, so that the dev and test splits
hold words, wordings and questions that training never showed.
"""

import argparse
import csv
import hashlib
import random
import re
from pathlib import Path


def words(text):
    """Split 'a | b | c' into a list, however the text is wrapped."""
    return [" ".join(w.split()) for w in text.split("|")]


def groups(text):
    """Split 'a | b // c | d' into a list of lists."""
    return [words(part) for part in text.split("//")]


def by_level(text):
    """Four lists for the levels 2 (wonderful), 1, -1 and -2 (terrible)."""
    return dict(zip((2, 1, -1, -2), groups(text), strict=True))


# Reviews: adjectives and verb phrases by level.
ADJECTIVES = by_level("""dazzling | superb | magnificent | breathtaking | exquisite | masterful | unforgettable |
    flawless | brilliant | stunning | luminous | glorious | wonderful | electrifying | sublime | irresistible |
    spellbinding | heartbreakingly good // pleasant | engaging | likeable | amusing | charming | warm | witty | solid |
    lively | clever | tender | absorbing | thoughtful | funny | graceful | enjoyable | sweet | sharp // flat | thin |
    predictable | slow | uneven | bland | clumsy | muddled | dull | forgettable | stiff | shallow | tired | contrived |
    overlong | sluggish | listless | corny // atrocious | unbearable | insufferable | dreadful | appalling | wretched |
    abysmal | idiotic | repellent | excruciating | ghastly | hideous | loathsome | disastrous | unwatchable | horrible |
    vile | abominable""")
MIDDLING = words("""conventional | ordinary | average | unremarkable | middling | passable | serviceable | routine |
    so-so | familiar""")
FOOD_ADJECTIVES = by_level("""superb | magnificent | exquisite | flawless | wonderful | sublime | unforgettable |
    outstanding | heavenly // pleasant | tasty | charming | warm | solid | fresh | well seasoned | welcoming | enjoyable
    | generous // bland | tired | stale | clumsy | lukewarm | soggy | careless | overpriced | drab | stingy // inedible
    | revolting | dreadful | appalling | disgusting | abysmal | atrocious | horrible | foul""")
VERB_PHRASES = by_level("""is a triumph | leaves you breathless | is a masterpiece in miniature | stays with you for
    weeks | earns every tear it asks for | ranks with the best work of the decade | turns small moments into pure gold |
    is a joy from the first minute to the last // holds your interest | has its heart in the right place | earns a good
    few laughs | does more than enough to justify the ticket | finds some fine comic rhythms | gets better as it goes
    along | is a modest pleasure | has real feeling underneath // runs out of ideas early | wanders in circles | never
    finds its feet | borrows more than it invents | feels like homework | takes an age to get going | loses its nerve
    near the end | plays like a first draft // is a disaster | insults the patience of anyone watching | is two hours I
    will never get back | is a crime against good taste | sinks without a trace of talent | makes root canal work look
    attractive | should have been buried in a drawer | drove half the room to the exit""")
FOOD_PHRASES = by_level("""is worth crossing the city for | made us cheer out loud | is the best I have eaten in years |
    left us speechless // is worth a second visit | does the simple things well | won us over by dessert | leaves you
    content // runs on past glory | arrives late and tired | is not worth the wait | promises more than it gives // made
    two of us ill | should be closed by the authorities | is an insult at any price | went straight in the bin""")
PLOTS = words("""a brilliant surgeon who loses everything | a dreadful winter in a mining town | a charming swindler and
    his bored accomplice | a dull clerk who falls for a wonderful singer | the worst teacher in a very good school | two
    brothers who hate each other | a murder at a happy wedding | a sweet old lady with a terrible secret | a pilot
    afraid of flying | an ugly divorce seen through the eyes of the dog | a beautiful spy with an awful memory | the
    quiet life of a lighthouse keeper | a poet who cannot stand applause | a failed boxer and his clever daughter""")
BACKGROUNDS = words("""shot over three winters in the far north | adapted from a stage play from the fifties | made for
    less than the price of a used car | the third in a series | put together by a crew of first-timers | eleven years in
    the making | set almost wholly in one apartment | told backwards from the final scene | filmed in black and white |
    known abroad under another title | rewritten twice before anyone saw it""")
LEADS = words("""in the end, | on a second viewing, | as far as I am concerned, | for what it is worth, | all told, | to
    my surprise, | after all the talk, | taken as a whole, | once the lights came up, | make of it what you will, | to
    be fair,""")
PEOPLE = words("""Halloran | Okafor | Lindqvist | Marchetti | Devi | Castellan | Yamane | Brandt | Quiroga | Petrova |
    Whitlock | Adeyemi | Novak | Sorensen | Baptiste""")
GENRES = words("""thriller | comedy | western | melodrama | road movie | ghost story | war picture | romance |
    documentary | heist picture | musical | family drama | crime story""")
PLACES = [  # things judged, parts of them, adjectives, verb phrases, how often
    (words("""the film | this movie | the whole thing | this {g} | {p}'s new {g} | {p}'s latest | the second half | the
        first hour | this remake | the sequel | the long version | the {g} we saw on Friday"""),
     words("""the script | the pacing | the score | the camerawork | the dialogue | the ending | the plot |
        the editing | the direction | the romance | the villain | the narration | {p} | the supporting cast
        | the lead performance | the humour | the opening act | {p}'s performance | the friendship | the chase"""),
     ADJECTIVES, VERB_PHRASES, 0.80),
    (words("the novel | this book | {p}'s memoir | this story collection | {p}'s new novel | the translation"),
     words("the prose | the plot | the heroine | the last chapter | the dialogue | the opening | the family history"),
     ADJECTIVES, VERB_PHRASES, 0.12),
    (words("the restaurant | this place | the little bistro on the corner | the tasting menu | our dinner at {p}'s"),
     words("the soup | the service | the fish | the dessert | the bread | the lunch menu | the duck | the house wine"),
     FOOD_ADJECTIVES, FOOD_PHRASES, 0.08),
]
PLAIN = words("""{s} is {w} | {s} is {w} | I found {s} {w} | {s} feels {w} | {s} is {w} from start to finish | {s} turns
    out to be {w} | there is something {w} about {s} | we all thought {s} was {w}""")
STRONGER = words("""{s} is really {w} | {s} is deeply {w} | {s} is about as {w} as they come | {s} is so very {w} | I
    found {s} extremely {w} | {s} is remarkably {w}""")
SOFTER = words("""{s} is mildly {w} | {s} is fairly {w} | {s} is {w} in parts | {s} is now and then {w} | I suppose {s}
    is {w}, more or less""")
TURNED = words("""{s} is not {w} | {s} is anything but {w} | {s} is never {w} | there is nothing {w} about {s} | {s}
    could hardly be called {w} | nobody could call {s} {w} | {s} is far from {w} | I did not find {s} {w} at all | not
    for one minute is {s} {w}""")
TURNED_GOOD = words("""{s} could have been {w} with more care | {s} tries so hard to be {w} and never gets there | {s}
    would be {w} at half the length | whoever called {s} {w} must have seen another version | {s} fails to be {w} | {s}
    thinks it is {w} and is wrong | I wanted {s} to be {w} and went home sad""")
TURNED_BAD = words("""{s} could so easily have been {w}, and is not | {s} avoids everything {w} | {s} refuses to become
    {w} | it would be unfair to call {s} {w} | {s} manages not to be {w} | those who call {s} {w} are wrong | I feared
    {s} would be {w} and went home happy""")
JOINS = [  # form, weight of A, weight of B, whether the signs agree
    ("{a}, and {b}", 0.65, 0.65, True), ("{a} and {b}", 0.65, 0.65, True), ("{a}; {b}", 0.65, 0.65, True),
    ("not only is it true that {a}, but {b} as well", 0.65, 0.65, True), ("{a}, while {b}", 0.6, 0.6, True),
    ("{a}, but {b}", 0.3, 0.9, False), ("although {a}, {b}", 0.3, 0.9, False), ("{b}, though {a}", 0.3, 0.9, False),
    ("while it is true that {a}, {b}", 0.3, 0.9, False), ("{b}, and it hardly matters that {a}", 0.1, 1.1, False),
    ("people keep saying that {a}; in truth {b}", 0.0, 1.1, False), ("{a}, {b}: call it a draw", 0.0, 0.0, False),
    ("I had been told that {a}, yet {b}", 0.0, 1.1, False), ("{b}; so much for the claim that {a}", 0.0, 1.1, False),
    ("{a} and at the same time {b}, who knows", 0.0, 0.0, False), ("{b}, despite claims that {a}", 0.0, 1.1, False),
    ("for all those who say that {a}, as many will say that {b}", 0.0, 0.0, False)]
SHORT = [  # form, factor
    ("simply {w}", 1.1), ("{w}, no more and no less", 1.0), ("{w} and {v}", 1.2), ("not {w} in the least", -0.9),
    ("never {w}", -0.8), ("utterly {w}", 1.3), ("{w}? hardly", -0.9), ("anything but {w}", -1.1), ("a {w} {g}", 1.0),
    ("a {w} {g} about {x}", 1.0), ("a {w}, {v} {g}", 1.1), ("neither {w} nor {v}", -1.0), ("less than {w}", -0.8)]
PADDINGS = words("""this {g} is about {x}; | this {g} is about {x}, and | {k}, this is {p}'s {g}, and |
    {p} gives us {x}: | like every {g} by {p}, this is about {x}; | {k}, it tells of {x}; | one more {g} about {x}:""")
NEUTRAL = words("""{s} follows {x} and runs for {n} minutes | {s}, {k}, tells of {x} | {s} is {m}, no better and no
    worse than the rest | {s} opens in the spring with {x} | {s} is a {m} {g} about {x} | it is hard to feel strongly
    about {s} either way | {s} does what it says on the tin | I have seen better than {s} and I have seen worse | {s}
    was finished in a hurry and comes out on Friday | some will like {s} and some will not | half of {s} works and the
    other half does not""")
SENTIMENT_SHARES = [0.13, 0.25, 0.21, 0.26, 0.15]

# Question pairs: fillings // wordings of one question // wordings of the next ... The first four take CONDITIONS.
FAMILIES = [
    groups("""Japanese | chess | calligraphy | statistics | the guitar | public speaking | knitting | photography |
        algebra | the piano | touch typing | Korean | watercolour painting | juggling | Python | Arabic | the violin //
        How can I learn {x} quickly? | What is the fastest way to pick up {x}? | Which approach takes the least time if
        I want to be good at {x}? | I want to master {x} as soon as possible; where do I start? | Is there a shortcut to
        becoming skilled in {x}? // How long does it take to learn {x}? | How many months do people usually need to get
        good at {x}? | When can a new student of {x} expect to be competent? | What is a realistic number of hours for
        studying {x}? | How much time goes into learning {x}? // Why should I learn {x}? | What are the benefits of
        studying {x}? | Is there any good reason to take up {x}? | What would I gain from knowing {x}? | What makes {x}
        worth the effort of learning? // What are the best books to learn {x} from? | Which textbook would you recommend
        for studying {x}? | What should I read if I want to get better at {x}? | Can someone suggest good reading
        material on {x}? | Is there a decent written guide to {x}? // How can I earn money with {x}? | Is it possible to
        make a living from {x}? | What are some ways of turning {x} into an income? | Can knowing {x} pay the bills? |
        How do people get paid for {x}?"""),
    groups("""Lisbon | Seoul | Toronto | Nairobi | Prague | Mumbai | Chicago | Lima | Oslo | Bangkok | Cairo | Melbourne
        | Denver | Kyoto | Hyderabad | Glasgow | Montreal | Athens // What is the best time to visit {x}? | When should
        I travel to {x}? | Which month is ideal for a trip to {x}? | In what season is {x} at its most pleasant for
        tourists? | What part of the year do you recommend for a holiday in {x}? // How expensive is it to live in {x}?
        | What is the cost of living in {x}? | How much money does a person need each month in {x}? | Is {x} a costly
        place to make a home? | What would I spend on rent and food in {x}? // Is {x} a safe city? | Should tourists
        worry about crime in {x}? | How dangerous is {x}? | Can I walk around {x} at night without being robbed? | What
        is the risk of getting mugged in {x}? // What are the best things to see in {x}? | Which sights should nobody
        miss in {x}? | What is worth doing on a first day in {x}? | Where should a visitor go in {x}? | What are the
        main attractions of {x}?"""),
    groups("""brown rice | mushrooms | salmon | lentils | tofu | eggs | chicken soup | spinach | sweet potatoes | black
        beans | cheese | fresh pasta | pumpkin | oats // How do I cook {x}? | What is the right way to prepare {x}? |
        Can you share a simple recipe for {x}? | How should {x} be made at home? | What do I do with {x} on the stove?
        // Is eating {x} good for you? | What are the health benefits of {x}? | How nutritious are meals made with {x}?
        | Does {x} belong in a healthy diet? | Will my body thank me for eating {x}? // How long can I keep {x} in the
        fridge? | When does refrigerated {x} go bad? | After how many days should I throw {x} away? | What is the shelf
        life of chilled {x}? | Until when is stored {x} safe to eat? // Can {x} be frozen? | Is it all right to put {x}
        in the freezer? | Does {x} survive being stored below zero? | Will freezing ruin {x}?"""),
    groups("""back pain | acne | hair loss | insomnia | a sore throat | migraines | hiccups | dandruff | heartburn |
        anxiety | dry skin | a stiff neck | snoring // How do I get rid of {x}? | What is the best treatment for {x}? |
        What can I do to cure {x}? | Is there something that makes {x} go away? | Which remedy works against {x}? //
        What causes {x}? | Why do people get {x}? | What are the reasons behind {x}? | Where does {x} come from? | What
        triggers {x}? // How can {x} be prevented? | What can I do to avoid getting {x}? | Is there a way to keep {x}
        from starting in the first place? | Which habits lower the chance of {x}? // When should I see a doctor about
        {x}? | At what point does {x} need medical attention? | How bad must {x} be before I go to a clinic? | Is {x}
        ever serious enough for a hospital visit?"""),
    groups("""Instagram | Gmail | Facebook | Snapchat | WhatsApp | Twitter | Skype | Dropbox | LinkedIn | Spotify |
        Quora | Netflix | Tinder // How do I delete my {x} account? | How can I close {x} for good? | What are the steps
        for leaving {x} permanently? | I no longer want {x}; how do I remove my profile? | Is there a way to erase my
        {x} account completely? // How can I recover my {x} password? | I forgot my {x} login, what can I do? | How do I
        get back into {x} after losing the password? | What should I do when I am locked out of {x}? | Is there a way to
        reset my {x} credentials? // How do I change my {x} username? | Can I pick a different name on {x}? | What is
        the way to rename myself on {x}? | Where in {x} do I edit what I am called? // How do I stop {x} from sending me
        notifications? | How can I switch off alerts from {x}? | What setting keeps {x} quiet? | {x} keeps buzzing my
        phone; how do I silence it? | Is it possible to mute every message from {x}?"""),
    groups("""black holes | earthquakes | rainbows | vaccines | tides | prime numbers | electric motors | glaciers |
        lasers | comets | batteries | satellites | tornadoes // How do {x} work? | Can you explain {x} in simple terms?
        | What is an easy explanation of {x}? | What is the principle behind {x}? | How would you describe {x} to a ten
        year old? // Who discovered {x}? | Which scientist was the first to describe {x}? | To whom do we owe our
        knowledge of {x}? | Whose work first told us about {x}? // Why are {x} important? | What difference do {x} make
        to our lives? | What would be lost in a world without {x}? | For what reason do {x} matter? // What are some
        common myths about {x}? | What do most people get wrong about {x}? | Which popular beliefs about {x} are false?
        | What misconceptions exist about {x}?"""),
]
DIRECTED = groups("""What is the cheapest way to get from {x} to {y}? | How can I travel from {x} to {y} on a small
    budget? | Which route takes me to {y} from {x} for the least money? // Why did he leave {x} for {y}? | What made him
    move to {y} from {x}? | What was his reason for giving up {x} and going to {y}? // Is {x} a better place to live
    than {y}? | Should I choose {x} over {y} as a home? | Does {x} beat {y} for daily life?""")
EVEN = groups("""What is the difference between {x} and {y}? | How does {x} differ from {y}? | In what ways are {x} and
    {y} unlike? // How far is {x} from {y}? | What is the distance between {x} and {y}? | How many kilometres separate
    {x} and {y}? // What do {x} and {y} have in common? | In what ways is {x} similar to {y}? | What is shared by {x}
    and {y}?""")
CONDITIONS = groups("""if I have very little money | on a tight budget | when cash is short // if I am over sixty | as a
    retired person | at an advanced age // if I only have weekends free | with a full-time job | when I am busy all week
    // as a student | while I am still at university // for someone with poor eyesight | if I can barely see // without
    the internet | when I am offline // with small children | as a parent of toddlers // when I live alone | as a person
    without a family // in a great hurry | if there is hardly any time""")
OPENERS = words("""Just curious: | Serious question: | Can anyone tell me: | Quick question: | A friend wants to know: |
    Hi all. | I wonder:""")
SMALL_CHANGES = [("How can I", "How do I"), ("What is", "What's"), ("the best", "a good"), ("Which", "What"),
                 ("How do I", "How can I"), ("How should", "How would"), ("Can", "Could")]
CITIES = FAMILIES[1][0]

# Similar sentences: agents // details // wordings of an action with {a}, {o}, {d} // its objects // the next action ...
# A "/" separates synonyms. CHANGES lists the parts of an event that may be exchanged.
TOPICS = [
    groups("""a man/a guy | a woman/a lady | a cook/a chef | an old man/an elderly man | a young girl/a little girl | a
        waiter/a server // in the kitchen/inside a kitchen | outdoors/in the open air | at a restaurant/in a diner |
        late at night/after midnight // {a} is slicing {o} {d} | {a} cuts {o} into thin pieces {d} | {o} is being sliced
        by {a} {d} // an onion | a tomato | a carrot | a loaf of bread | a cucumber | a potato // {a} is frying {o} {d}
        | {a} cooks {o} in a pan of hot oil {d} | {o} is being fried by {a} {d} // an egg | some fish | a piece of meat
        | a pancake | some shrimp // {a} is washing {o} {d} | {a} cleans {o} with soap and water {d} | {o} is being
        cleaned by {a} {d} // a plate | a large pot | a glass | a wooden spoon | the floor // {a} is pouring {o} into a
        bowl {d} | {a} fills a bowl with {o} {d} | {o} is poured into a dish by {a} {d} // milk | soup | olive oil |
        flour | orange juice"""),
    groups("""a dog/a hound | a cat/a kitten | a monkey/an ape | a brown horse/a horse with a brown coat | a fox/a red
        fox | a bird/a small bird // in the snow/on snowy ground | in a garden/in a yard | near a lake/beside the water
        | on a farm/around a farmhouse // {a} is chasing {o} {d} | {a} runs after {o} {d} | {o} is being chased by {a}
        {d} // a ball | a rabbit | a squirrel | a bicycle | a goose | a mouse // {a} jumps over {o} {d} | {a} leaps
        across {o} {d} | {a} is clearing {o} with one jump {d} // a fence | a log | a stream | a low wall | a puddle //
        {a} is sleeping on {o} {d} | {a} lies fast asleep on {o} {d} | {a} takes a nap on {o} {d} // a sofa | a blanket
        | a pile of hay | a rug | an old coat // {a} is eating {o} {d} | {a} chews on {o} {d} | {o} is being eaten by
        {a} {d} // an apple | some grass | a biscuit | a carrot | a cob of corn"""),
    groups("""a man/a guy | a woman/a lady | a player/an athlete | a boy in red/a boy wearing a red shirt | a girl/a
        young girl | a coach/a trainer // on the beach/by the sea | in a park/in a public garden | in the rain/in wet
        weather | in a stadium/in a sports arena // {a} is kicking {o} {d} | {a} strikes {o} with one foot {d} | {o} is
        kicked by {a} {d} // a football | a stone | a plastic bottle | a target | a punching bag // {a} is riding {o}
        {d} | {a} travels on {o} {d} | {o} is being ridden by {a} {d} // a bicycle | a horse | a skateboard | a scooter
        | a camel | a motorbike // {a} is climbing {o} {d} | {a} makes the way up {o} {d} | {o} is being climbed by {a}
        {d} // a rock face | a rope | a ladder | a steep hill | a tall tree // {a} throws {o} into the air {d} | {a}
        tosses {o} upwards {d} | {o} is thrown up by {a} {d} // a basketball | a hat | a frisbee | a coin | a stick"""),
    groups("""the prime minister/the head of government | the opposition leader/the leader of the opposition | the
        king/the monarch | the finance minister/the minister of finance | union leaders/the heads of the unions |
        lawmakers/members of parliament // on Monday/at the start of the week | in a radio interview/on the radio |
        during a visit to Berlin/while visiting Berlin | after a long debate/following hours of debate // {a} rejected
        {o} {d} | {a} said no to {o} {d} | {o} was turned down by {a} {d} // a plan to raise taxes | an offer of peace
        talks | a new trade deal | a call for early elections | a ban on smoking // {a} welcomed {o} {d} | {a} spoke in
        favour of {o} {d} | {o} was praised by {a} {d} // a drop in unemployment | the court ruling | a plan to build
        two airports | the release of three prisoners | a new climate law // {a} signed {o} {d} | {a} put their name to
        {o} {d} | {o} was signed by {a} {d} // a defence treaty | a border agreement | a bill on school funding | an
        order to free hostages | a loan of two billion dollars // {a} warned about {o} {d} | {a} expressed fears over
        {o} {d} | a warning over {o} came from {a} {d} // rising food prices | cyber attacks | a shortage of nurses | a
        second wave of strikes | violence at the border"""),
    groups("""a bomb/an explosive device | a flood/floodwater | a fire/a blaze | a strong earthquake/a powerful
        quake | a storm/a violent gale // in northern Pakistan/in the north of Pakistan | near the capital/close to
        the capital | on Sunday morning/early on Sunday | in southern Chile/in the south of Chile // {a} destroyed
        {o} {d} | {a} left {o} in ruins {d} | {o} was wiped out by {a} {d} // a market | a historic bridge | a
        primary school | a fishing village | a hotel | an old mill // {a} killed {o} {d} | {o} lost their lives
        because of {a} {d} | {o} died in {a} {d} // nine people | at least thirty soldiers | a family of five | two
        firefighters | dozens of farm workers // {a} forced {o} to leave their homes {d} | {o} had to flee from {a}
        {d} | {o} were driven out by {a} {d} // thousands of villagers | two hundred tourists | hospital patients |
        elderly residents | mining families"""),
]
CHANGES = [["detail"], ["detail"], ["agent"], ["agent"], ["object"], ["action"], ["action"], ["agent", "detail"],
           ["object", "detail"], ["agent", "action"]]


class Picker:
    """Random choices for one split; with unseen=False the last sixth of every table of 5 or more is left out."""

    def __init__(self, seed, unseen):
        self.rng, self.unseen = random.Random(seed), unseen

    def pick(self, table, but=None):
        if not self.unseen and len(table) >= 5:
            table = table[:len(table) - max(1, len(table) // 6)]
        return self.rng.choice([entry for entry in table if entry != but])

    def chance(self, share):
        return self.rng.random() < share


def polish(text):
    """Tidy spaces, turn 'a' into 'an' before a vowel, start sentences with a capital and close the last one."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", " ".join(text.split()))
    text = re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)
    return text if text[-1] in ".?!" else text + "."


def fill(p, form, /, **given):
    """Fill the free slots of a review form: person, genre, plot, background, middling word, minutes."""
    free = {"p": p.pick(PEOPLE), "g": p.pick(GENRES), "x": p.pick(PLOTS), "k": p.pick(BACKGROUNDS),
            "m": p.pick(MIDDLING), "n": p.rng.randrange(70, 190)}
    return form.format(**(free | given))


def judgement(p, place, cast):
    """One clause that judges something, and its score."""
    things, parts, adjectives, phrases, _ = place
    subject = fill(p, p.pick(things if p.chance(0.45) else parts), **cast)
    level = p.rng.choice([-2, -1, -1, 1, 1, 2])
    sign, mild = (1 if level > 0 else -1), abs(level) == 1
    kind = p.rng.random()
    if kind < 0.25:
        return f"{subject} {p.pick(phrases[level])}", level
    if kind < 0.45:
        form, score = p.pick(PLAIN), level
    elif kind < 0.55 and mild:
        form, score = p.pick(STRONGER), 1.5 * sign
    elif kind < 0.63 and mild:
        form, score = p.pick(SOFTER), 0.5 * sign
    elif kind < 0.83:
        form, score = p.pick(TURNED), -(0.9 if mild else 0.7) * sign
    else:
        form, score = p.pick(TURNED_GOOD if sign > 0 else TURNED_BAD), -sign
    return form.format(s=subject, w=p.pick(adjectives[level])), score


def joined(p, place, cast):
    """Two judgements in one sentence, weighed by the form that joins them."""
    form, weight_a, weight_b, agree = p.pick(JOINS)
    (a, score_a), (b, score_b) = judgement(p, place, cast), judgement(p, place, cast)
    while ((score_a > 0) == (score_b > 0)) != agree:
        b, score_b = judgement(p, place, cast)
    return form.format(a=a, b=b), weight_a * score_a + weight_b * score_b


def review(p):
    """A review and its score: a fragment, a neutral remark, or one to four judgements with some padding."""
    place = p.rng.choices(PLACES, [entry[-1] for entry in PLACES])[0]
    cast, kind = {"p": p.pick(PEOPLE), "g": p.pick(GENRES)}, p.rng.random()
    if kind < 0.10:
        level = p.rng.choice([-2, -1, 1, 2])
        form, factor = p.pick(SHORT)
        w = p.pick(ADJECTIVES[level])
        text, score = fill(p, form, w=w, v=p.pick(ADJECTIVES[level], but=w)), level * factor
        return polish(text), max(-1.0, min(1.0, score)) if factor < 0 else score
    if kind < 0.15:
        return polish(fill(p, p.pick(NEUTRAL), s=fill(p, p.pick(place[0]), **cast), **cast)), 0.0
    text, score = judgement(p, place, cast) if kind < 0.42 else joined(p, place, cast)
    if p.chance(0.15):
        text = f"{p.pick(LEADS)} {text}"
    if kind > 0.80:
        more, extra = judgement(p, place, cast) if kind < 0.93 else joined(p, place, cast)
        text, score = f"{text}. {more}", 0.6 * (score + extra)
    elif place is PLACES[0] and p.chance(0.35):
        text = f"{fill(p, p.pick(PADDINGS), **cast)} {text}"
    return polish(text), score


def make_sentiment(p, count, seen):
    """Reviews drawn until every class has its share, then the label noise."""
    wanted = [round(share * count) for share in SENTIMENT_SHARES]
    rows = []
    while len(rows) < count:
        text, score = review(p)
        label = sum(score > cut for cut in (-1.25, -0.35, 0.35, 1.25))
        if wanted[label] and text.lower() not in seen and len(text.split()) <= 48:
            wanted[label] -= 1
            seen.add(text.lower())
            if p.chance(0.12):
                label = p.rng.choice([near for near in (label - 1, label + 1) if 0 <= near <= 4])
            rows.append([text, label])
    p.rng.shuffle(rows)
    return rows


def question(p, form, condition="", **slots):
    """A wording with its slots filled, perhaps with a condition before the question mark and an opener."""
    text = form.format(**slots)
    if condition:
        text = f"{text[:-1]} {condition}?"
    return polish(f"{p.pick(OPENERS)} {text}" if p.chance(0.07) else text)


def small_change(p, form):
    """The same wording with one little word exchanged, where the table knows one."""
    changes = [change for change in SMALL_CHANGES if re.search(rf"\b{change[0]}\b", form)]
    old, new = p.rng.choice(changes or [("", "")])
    return re.sub(rf"\b{old}\b", new, form, count=1) if old else form


def two_cities(p, duplicate):
    """Questions about two cities: an exchange of the two changes a DIRECTED question and leaves an EVEN one."""
    x = p.pick(CITIES)
    y = p.pick(CITIES, but=x)
    swapped = p.chance(0.75)
    table = (EVEN if duplicate else DIRECTED) if swapped else p.rng.choice([EVEN, DIRECTED])
    one, *others = p.rng.sample(p.pick(table), 2 if duplicate and not swapped else 3)
    two = p.rng.choice(others + [one] * swapped)
    if swapped:
        return question(p, one, x=x, y=y), question(p, two, x=y, y=x)
    third = y
    while not duplicate and third in (x, y):
        third = p.pick(CITIES)
    return question(p, one, x=x, y=y), question(p, two, x=x, y=third)


def question_pair(p, duplicate):
    """Two questions that ask the same, or two that do not."""
    if p.chance(0.07):
        return two_cities(p, duplicate)
    family = p.pick(FAMILIES)
    (fillings, *intents), conditional = family, family in FAMILIES[:4]
    x, intent = p.pick(fillings), p.pick(intents)
    one = two = p.pick(intent)
    condition = second_condition = p.pick(CONDITIONS) if conditional and p.chance(0.22) else [""]
    first, second_x, kind = question(p, one, p.pick(condition), x=x), x, p.rng.random()
    if duplicate:
        two = small_change(p, one) if kind < 0.25 else p.pick(intent, but=one)
    elif kind < 0.30:    # the same question about something else
        two = one if kind < 0.13 else small_change(p, one) if kind < 0.18 else p.pick(intent, but=one)
        second_x = p.pick(fillings, but=x)
    elif kind < (0.72 if conditional else 0.85):    # another question about the same thing
        two = p.pick(p.pick(intents, but=intent))
    elif kind < 0.85:    # a condition added or exchanged
        two = one if p.chance(0.5) else p.pick(intent, but=one)
        second_condition = p.pick(CONDITIONS, but=condition)
    else:    # something else altogether
        other = p.pick(FAMILIES, but=family)
        two, second_x, second_condition = p.pick(p.pick(other[1:])), p.pick(other[0]), [""]
    return first, question(p, two, p.pick(second_condition), x=second_x)


def is_new(one, two, seen):
    """Whether the two sentences differ and are met for the first time; remembers them."""
    pair = frozenset((one.lower(), two.lower()))
    fresh = len(pair) == 2 and pair not in seen
    seen.add(pair)
    return fresh


def make_questions(p, count, seen):
    """Question pairs, 38.5 % of them duplicates before the label noise."""
    rows = []
    while len(rows) < count:
        duplicate = len(rows) < round(0.385 * count)
        one, two = p.rng.sample(question_pair(p, duplicate), 2)
        if is_new(one, two, seen):
            rows.append([one, two, float(duplicate != p.chance(0.04))])
    p.rng.shuffle(rows)
    return rows


def event(p, topic):
    """One thing that happens: who, what (wordings), to what, and where or when."""
    agents, details, *actions = topic
    turn = 2 * p.pick(range(len(actions) // 2))
    return {"agent": p.pick(agents), "action": actions[turn], "objects": actions[turn + 1],
            "object": p.pick(actions[turn + 1]), "detail": p.pick(details) if p.chance(0.75) else ""}


def tell(p, happening, wording):
    """An event in words; every '/' group gives one of its synonyms."""
    agent, detail = (p.rng.choice(happening[part].split("/")) for part in ("agent", "detail"))
    return polish(wording.format(a=agent, o=happening["object"], d=detail))


def event_pair(p):
    """Two sentences and their similarity before noise."""
    topic = p.pick(TOPICS)
    one, other = event(p, topic), event(p, topic)
    wording = p.pick(one["action"])
    first, kind = tell(p, one, wording), p.rng.random()
    if kind < 0.20:
        other = event(p, p.pick(TOPICS, but=topic))
        return first, tell(p, other, p.pick(other["action"])), p.rng.choice([0.0, 0.2, 0.4, 0.6, 0.8])
    two = dict(one)
    if kind > 0.42:    # change what differs in another event of the topic; the price depends on the part
        for part in p.rng.choice(CHANGES):
            two[part] = "" if part == "detail" and p.chance(0.4) else other[part]
            if part == "action":
                two["object"] = other["object"]
            elif part == "object":
                two["object"] = p.pick(one["objects"], but=one["object"])
    if two["action"] != one["action"]:
        wording, price = p.pick(two["action"]), 3.2
    else:
        price = 2.1 if two["object"] != one["object"] else 0.0
        if p.chance(0.7):
            wording, price = p.pick(one["action"], but=wording), price + 0.2
    price += 1.5 if two["agent"] != one["agent"] else 0.0
    if two["detail"] != one["detail"]:
        price += 1.4 if one["detail"] and two["detail"] else 0.8
    return first, tell(p, two, wording), max(5.0 - price, 0.8)


def make_similar(p, count, seen):
    """Sentence pairs with a noisy similarity."""
    rows = []
    while len(rows) < count:
        one, two, score = event_pair(p)
        if is_new(one, two, seen):
            noisy = round((score + p.rng.gauss(0, 0.4)) / 0.2) * 0.2
            rows.append([one, two, round(min(5.0, max(0.0, noisy)), 1)])
    return rows


TASKS = [  # file name, columns, maker, rows in train, dev and test-student
    ("ids-sst", ["sentence", "sentiment"], make_sentiment, (1600, 400, 400)),
    ("quora", ["sentence1", "sentence2", "is_duplicate"], make_questions, (1800, 400, 400)),
    ("sts", ["sentence1", "sentence2", "similarity"], make_similar, (1200, 400, 400)),
]


def main():
    parser = argparse.ArgumentParser(description="Write the sample data set.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for number, (name, columns, make, counts) in enumerate(TASKS):
        seen = set()    # shared by the three splits of a task, so that no row comes twice
        for turn, (split, count) in enumerate(zip(("train", "dev", "test-student"), counts, strict=True)):
            rows = make(Picker(1000 + 10 * number + turn, unseen=split != "train"), count, seen)
            shown = len(columns) - (split == "test-student")
            with open(out / f"{name}-{split}.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="\t", lineterminator="\n")
                writer.writerow(["", "id", *columns[:shown]])
                for index, row in enumerate(rows):
                    key = hashlib.sha256("\t".join([name, *row[:-1]]).encode()).hexdigest()[:25]
                    writer.writerow([index, key, *row[:shown]])


if __name__ == "__main__":
    main()
