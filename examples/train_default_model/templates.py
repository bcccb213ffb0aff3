# SPDX-License-Identifier: Apache-2.0
"""Everyday English: sentences drawn from templates, as people write them.

A template is text with slots: ``{name}`` is filled from the list of that name, or by the function
of that name. Numbers, dates and money are read by `spoken_text`, as those of a user are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from vllm.unison.frontend.spoken_text import spoken_text


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split(",")]


FIRST_NAMES = _words("""
    Alice Anna Arthur Ben Carol Charlie Clara Daniel David Emily Emma Eric Ethan Fiona Frank
    Fred George Grace Hannah Harry Helen Henry Ian Isabel Jack James Jane Jenny Joe John Julia
    Karen Kate Kevin Laura Leo Liam Linda Lucy Luke Maria Mark Martin Mary Matthew Max Michael
    Mia Nina Noah Oliver Olivia Oscar Paul Peter Rachel Robert Rose Ruth Ryan Sam Sarah Simon
    Sophie Stephen Susan Thomas Tim Tom Victor Victoria Walter William Zoe
""")
LAST_NAMES = _words("""
    Adams Allen Anderson Bailey Baker Bell Bennett Brooks Brown Campbell Carter Clark Collins
    Cook Cooper Cox Davis Edwards Evans Foster Garcia Gray Green Hall Harris Hill Howard Hughes
    Jackson Johnson Jones Kelly King Lee Lewis Lopez Martin Miller Mitchell Moore Morgan Morris
    Murphy Nelson Parker Patel Phillips Price Reed Richardson Roberts Robinson Rogers Ross
    Russell Scott Smith Stewart Taylor Thompson Turner Walker Ward Watson White Williams Wilson
    Wood Wright Young
""")
CITIES = _words("""
    London Leeds Manchester Liverpool Bristol Oxford Cambridge York Edinburgh Glasgow Dublin
    Paris Berlin Vienna Rome Madrid Lisbon Athens Prague Moscow Oslo Stockholm Helsinki Geneva
    Chicago Boston Dallas Denver Seattle Houston Miami Atlanta Detroit Portland Phoenix Toronto
    Montreal Vancouver Sydney Melbourne Tokyo Delhi Cairo Nairobi Lima Baltimore Cleveland
    Philadelphia Newcastle Brighton Exeter Norwich Cardiff Belfast Hamburg Munich Milan Naples
""")
COUNTRIES = _words("""
    France Germany Italy Spain Portugal Greece Norway Sweden Denmark Finland Poland Ireland
    Scotland England Wales Canada Mexico Brazil Argentina Chile Peru India China Japan Korea
    Australia Egypt Kenya Nigeria Morocco Turkey Russia Iceland Switzerland Austria Belgium
""")
MONTHS = _words("""
    January February March April May June July August September October November December
""")
DAYS = _words("""
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""")
PERSONS = _phrases("""
    my brother, my sister, my mother, my father, my wife, my husband, my friend, my neighbor, my
    boss, the teacher, the doctor, the driver, the manager, the lawyer, the nurse, the cook, the
    farmer, the engineer, the mayor, the police officer, the old man, the young woman, a
    stranger, somebody, the children, everyone, nobody, our guests, the students, my parents,
    the players, the workers, your cousin, his uncle, her aunt, the captain, the president, the
    singer, the writer, the twins
""")
THINGS = _words("""
    door window book letter car house table chair key phone computer lamp picture bag box bottle
    cup plate knife spoon shirt coat hat shoe ring watch clock bicycle boat ticket newspaper
    report message garden kitchen bridge tower church school office hospital station airport
    hotel restaurant shop market library museum theater park river lake mountain forest beach
    island road street corner machine engine camera radio piano guitar violin drum cake sandwich
    apple orange banana potato tomato carrot onion cheese egg soup pizza salad dog cat horse cow
    sheep bird fish rabbit mouse elephant lion tiger bear wolf fox snake frog spider flower tree
    leaf stone candle mirror blanket pillow carpet curtain ladder hammer nail rope basket
    envelope stamp wallet umbrella pencil dictionary calendar password battery screen printer
    keyboard file folder photograph song story movie game puzzle problem question answer plan
    idea mistake contract bill price gift party meeting lesson exam holiday journey weather
""")
FOODS = _phrases("""
    coffee, tea, water, milk, orange juice, bread and butter, rice, pasta, chicken, fish and
    chips, soup, a sandwich, an apple, chocolate, ice cream, cheese, an omelette, salad,
    strawberries, mushrooms, roast beef, pancakes, honey, noodles, a glass of wine, a cold beer,
    vegetables, toast, cereal
""")
ADJECTIVES = _words("""
    big small old new young good bad long short high low hot cold warm cool fast slow easy hard
    heavy light dark bright clean dirty dry wet full empty open closed early late cheap
    expensive rich poor strong weak happy sad angry quiet loud beautiful ugly strange famous
    dangerous safe important possible simple difficult useful broken wooden golden silver purple
    yellow orange green blue red white black brown gray pink round square narrow wide deep thick
    thin sharp soft smooth rough sweet bitter sour fresh tired hungry thirsty busy free ready
    sure wrong right certain favorite ancient modern foreign local public private serious funny
    clever stupid brave honest lazy polite careful nervous curious generous lonely jealous proud
    gentle enormous tiny
""")
VERBS_PAST = _words("""
    bought sold found lost opened closed painted cleaned broke fixed carried dropped moved
    pushed pulled lifted watched saw heard noticed remembered forgot wanted needed liked loved
    hated borrowed returned stole hid kept built designed drew described photographed examined
    tested measured counted ordered delivered received sent brought took left touched held
    washed burned buried wrapped unwrapped decorated admired ignored chose copied printed
    mentioned
""")
VERBS_BASE = _words("""
    buy sell find open close paint clean break fix carry drop move push pull lift watch see hear
    remember forget want need like love borrow return hide keep build design draw describe
    examine test measure count order deliver receive send bring take leave touch hold wash burn
    wrap decorate admire ignore choose copy print mention check change replace repair explain
""")
ADVERBS = _words("""
    quickly slowly carefully quietly loudly suddenly finally probably certainly usually often
    sometimes rarely never always already still almost hardly really completely perfectly badly
    happily sadly angrily politely immediately eventually recently obviously unfortunately
    luckily
""")
PLACES = _phrases("""
    at home, at work, at school, in the kitchen, in the garden, in the city, in the country, on
    the road, on the train, on the bus, at the station, at the airport, by the sea, near the
    river, in the forest, on the mountain, under the bridge, behind the house, in front of the
    church, next to the bank, across the street, around the corner, in the middle of the night,
    on the second floor, upstairs, downstairs, outside, at the end of the street, between the
    two houses, at the hospital, in the car
""")
TIMES = _phrases("""
    today, tomorrow, yesterday, tonight, this morning, this afternoon, this evening, last night,
    last week, last month, last year, next week, next month, next year, every day, every
    morning, every summer, in the morning, in the evening, at night, at noon, at midnight, right
    now, a long time ago, two days ago, an hour ago, in a few minutes, in half an hour, before
    breakfast, after lunch, after dinner, during the war, in the winter, in the spring, on the
    weekend, soon
""")
WEATHER = _words("""
    sunny cloudy rainy windy foggy stormy freezing humid mild chilly icy snowy
""")
SUBJECTS = _words("""
    mathematics history geography physics chemistry biology music art English
""")
SPORTS = _words("""
    football tennis basketball hockey golf chess cricket rugby volleyball baseball
""")
ACRONYM_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNITS = _words("""
    miles kilometers meters feet inches pounds kilograms grams liters gallons degrees percent
    minutes seconds hours days weeks months years times pages people dollars euros points votes
""")

TEMPLATES = """
The train to {city} leaves at {clock}.
The next train to {city} leaves from platform {small}.
The bus from {city} to {city} takes {small} hours.
My flight to {city} was delayed by {small} hours.
The plane from {country} lands at {clock}.
How do I get to {city} from here?
Is this the right train for {city}?
When does the {adjective} {thing} open?
What time does the {thing} close on {day}?
The meeting starts at {clock} on {day}.
We will meet {place} at {clock}.
Let's meet {place} on {day}.
I was born on {date}, {year}.
She was born in {city} in {year}.
The war ended in {year}.
The party is on {day}, {date}.
It happened on the {ordinal} of {month}.
Today is {day}, {date}.
The {thing} costs {money}.
I paid {money} for this {thing}.
That will be {money}, please.
Can you lend me {money} until {day}?
The {thing} is {small} {unit} long.
It is {small} {unit} from {city} to {city}.
The temperature is {small} degrees {time}.
About {big} people live in {city}.
The population of {country} is {big}.
Prices rose by {small} percent in {month}.
My phone number is {phone}.
Our room number is {number}.
Chapter {small} begins on page {number}.
Turn left at the {thing}, then go straight for {small} {unit}.
Turn on the light {place}, please.
Turn off the {thing} before you leave.
Please open the {adjective} {thing}.
Please close the {thing} and lock the {thing}.
Please {verb} the {thing} {time}.
Don't {verb} the {adjective} {thing}!
Never {verb} a {adjective} {thing} {place}.
Could you please {verb} my {thing}?
Would you like {food} or {food}?
I would like {food} and {food}, please.
We had {food} for breakfast.
Do you want some {food}?
I don't like {food} very much.
{person} {past} the {thing}.
{person} {past} a {adjective} {thing} {place}.
{person} {past} the {adjective} {thing} {time}.
{person} {adverb} {past} the {thing} {place}.
{time}, {person} {past} the {adjective} {thing}.
{adverb}, {person} {past} the {thing}.
{name} {past} the {thing} that {person} {past}.
{name} and {name} {past} a {thing} {place}.
{name} said that {person} {past} the {thing}.
When {person} {past} the {thing}, {name} was {place}.
If you {verb} the {thing}, {person} will {verb} it.
{person} will {verb} the {thing} {time}.
{person} can't {verb} the {thing} without a {thing}.
I think {person} should {verb} the {adjective} {thing}.
I have never seen such a {adjective} {thing}.
There is a {adjective} {thing} {place}.
There are {small} {adjective} things {place}.
Where is the {thing}?
Where did you {verb} the {adjective} {thing}?
Why did {person} {verb} the {thing}?
Who {past} my {thing}?
Whose {thing} is this?
What happened to the {adjective} {thing}?
Did you {verb} the {thing} {time}?
Have you seen my {adjective} {thing}?
Is the {thing} {place}?
Are you {adjective} {time}?
How much is the {adjective} {thing}?
How many {unit} are there in the {thing}?
How old is {person}?
What is your {adjective} {thing} called?
Hello, my name is {name} {surname}.
Good morning, {title} {surname}.
Good evening, {name}, how are you?
Thank you very much, {name}.
Excuse me, is {title} {surname} {place}?
{title} {surname} will see you {time}.
{title} {surname} teaches {subject} {place}.
{name} {surname} lives in {city}.
{name} plays {sport} every {day}.
{name} is from {country}, but she lives in {city}.
My friend {name} comes from {country}.
I want to visit {country} {time}.
We spent our holiday in {country}.
The capital of the country is {city}.
The weather in {city} is {weather} {time}.
It will be {weather} and {adjective} {time}.
It was a {weather} day in {month}.
The {thing} is {adjective} and the {thing} is {adjective}.
This {thing} is more {adjective} than that {thing}.
The {adjective} {thing} is not as {adjective} as it looks.
{person} looks {adjective} {time}.
{person} was too {adjective} to {verb} the {thing}.
I am {adverb} {adjective} {time}.
She is {small} years old.
He scored {small} points in {small} minutes.
The score was {small} to {small}.
Call me at {clock}.
Wake me up at {clock} {time}.
Set an alarm for {clock}.
Set a timer for {small} minutes.
Remind me to {verb} the {thing} {time}.
Play some {adjective} music.
Send a message to {name}.
Add {food} to my shopping list.
Read me the {thing} from {person}.
Open the file called {noun}.
Search for {adjective} {noun} and {noun}.
Delete the {adjective} {noun}.
The word {noun} has {small} letters.
He works for the {acronym}.
The {acronym} published a {adjective} report {time}.
My computer has a new {acronym} drive.
The {noun} and the {noun} are {adjective}.
Every {noun} needs a {adjective} {noun}.
Some {noun}, a {noun}, and a {noun}.
{noun}, {noun}, {noun}, and {noun}.
The {noun} of the {noun} was {adjective}.
A {noun} is not a {noun}.
I can't tell a {noun} from a {noun}.
{name} asked about the {noun}.
{name}'s {noun} is {adjective}, isn't it?
Wait! The {thing} is {adjective}!
No, {person} didn't {verb} it.
Yes, I {past} it {time}.
Well, {person} {past} it; nobody {past} the {thing}.
I'm sorry, I can't {verb} that.
You're right, it's {adjective}.
They've {past} the {thing} again.
We'd like to {verb} the {noun}.
He'll {verb} it {time}, won't he?
It's {clock} now.
It is nearly {clock}.
{small} plus {small} is {number}.
{small} times {small} makes {number}.
{ordinal} place went to {name} {surname}.
This is the {ordinal} time that {person} {past} the {thing}.
""".strip().splitlines()

_SLOT = re.compile(r"\{(\w+)\}")


def _clock(rng: random.Random) -> str:
    hour, minute = rng.randint(1, 12), rng.choice([0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55])
    style = rng.random()
    if style < 0.25:
        words = _words("one two three four five six seven eight nine ten eleven twelve")
        relation = rng.choice(
            ["half past", "a quarter past", "a quarter to", "ten to", "five past"]
        )
        return f"{relation} {words[hour - 1]}"
    if style < 0.4:
        return f"{hour} o'clock"
    written = f"{hour}:{rng.randint(1, 59) if minute == 0 else minute:02d}"
    return written + rng.choice(["", "", " am", " pm"])


def _money(rng: random.Random) -> str:
    sign = rng.choice("$$$£€")
    whole = rng.choice([rng.randint(2, 20), rng.randint(2, 99), rng.randint(100, 2000)])
    cents = (
        f".{rng.choice([25, 50, 75, 99, 10, 40]):02d}" if whole < 100 and rng.random() < 0.4 else ""
    )
    return f"{sign}{whole}{cents}"


def _phone(rng: random.Random) -> str:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return " ".join(rng.choice(words) for _ in range(rng.randint(4, 7)))


def _ordinal(rng: random.Random) -> str:
    number = rng.randint(1, 60)
    last = number % 10 if number // 10 != 1 else 0
    return f"{number}{({1: 'st', 2: 'nd', 3: 'rd'}).get(last, 'th')}"


def _acronym(rng: random.Random) -> str:
    return "".join(rng.choice(ACRONYM_LETTERS) for _ in range(rng.randint(2, 4)))


@lru_cache(maxsize=20000)
def _read(written: str) -> str:
    """What is said for a figure, with its first letter as it stands inside a sentence."""
    spoken = spoken_text(f"in {written}")
    return spoken.removeprefix("in ")


Slot = Callable[[random.Random], str]


def _one_of(choices: Sequence[str]) -> Slot:
    return lambda rng: rng.choice(choices)


def slots(nouns: Sequence[str]) -> dict[str, Slot]:
    """What fills each slot.

    Args:
        nouns: a large list, for the slot of that name.
    """
    return {
        "name": _one_of(FIRST_NAMES),
        "surname": _one_of(LAST_NAMES),
        "title": _one_of(["mister", "misses", "doctor", "Miss", "Professor", "Captain"]),
        "city": _one_of(CITIES),
        "country": _one_of(COUNTRIES),
        "month": _one_of(MONTHS),
        "day": _one_of(DAYS),
        "date": lambda rng: _read(f"{rng.choice(MONTHS)} {rng.randint(1, 28)}"),
        "year": lambda rng: _read(str(rng.randint(1700, 2040))),
        "person": lambda rng: rng.choice([*PERSONS, "I", "we", "they", "you", *FIRST_NAMES]),
        "thing": _one_of(THINGS),
        "food": _one_of(FOODS),
        "adjective": _one_of(ADJECTIVES),
        "adverb": _one_of(ADVERBS),
        "verb": _one_of(VERBS_BASE),
        "past": _one_of(VERBS_PAST),
        "place": _one_of(PLACES),
        "time": _one_of(TIMES),
        "weather": _one_of(WEATHER),
        "subject": _one_of(SUBJECTS),
        "sport": _one_of(SPORTS),
        "unit": _one_of(UNITS),
        "small": lambda rng: _read(str(rng.randint(2, rng.choice([12, 99])))),
        "number": lambda rng: _read(str(rng.randint(10, rng.choice([100, 999])))),
        "big": lambda rng: _read(f"{rng.randint(2, 900)},000"),
        "clock": lambda rng: _read(_clock(rng)),
        "money": lambda rng: _read(_money(rng)),
        "phone": _phone,
        "ordinal": lambda rng: _read(_ordinal(rng)),
        "acronym": _acronym,
        "noun": _one_of(nouns),
    }


def everyday_sentences(seed: int, nouns: Sequence[str]) -> Iterator[str]:
    """Endless sentences, capitalized.

    Args:
        seed: same seed, same sentences.
        nouns: see `slots`.
    """
    rng = random.Random(seed)
    fillers = slots(nouns)
    while True:
        sentence = _SLOT.sub(lambda match: fillers[match[1]](rng), rng.choice(TEMPLATES))
        sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)
        yield sentence[0].upper() + sentence[1:]
