"""The words of the grammars: each becomes one token of the tokenizer. No word is a name, a city and a noun at once."""


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _split(
    "Mary Anna Alice Emma Laura Sarah Susan Linda Karen Nancy Lisa Betty Helen Sandra Donna Carol Ruth Sharon "
    "Michelle Kimberly Deborah Jessica Cynthia Angela Melissa Brenda Amy Rebecca Kathleen Julia"
)
MEN = _split(
    "John Tom James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Donald "
    "Steven Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan"
)
NAMES = WOMEN + MEN
GENDER = dict.fromkeys(WOMEN, "female") | dict.fromkeys(MEN, "male")

PLACES = _split(
    "store park school station garden market museum library hospital restaurant beach office church cafe theater farm"
)
OBJECTS = _split("drink book ball ring letter key basket flower coin map kite lamp necklace ticket pencil bone")
EVENTS = _split("war siege strike drought voyage trial famine dispute reign journey project campaign")

NOUNS = {
    "boy": "boys", "girl": "girls", "doctor": "doctors", "teacher": "teachers", "farmer": "farmers",
    "pilot": "pilots", "singer": "singers", "driver": "drivers", "guard": "guards", "lawyer": "lawyers",
    "author": "authors", "dancer": "dancers", "soldier": "soldiers", "sailor": "sailors", "painter": "painters",
    "student": "students", "dog": "dogs", "cat": "cats", "horse": "horses", "bird": "birds",
    "king": "kings", "judge": "judges", "clerk": "clerks", "baker": "bakers",
}  # fmt: skip
"""Singular: plural."""
VERBS = {
    "runs": "run", "sleeps": "sleep", "smiles": "smile", "waits": "wait", "laughs": "laugh", "sings": "sing",
    "walks": "walk", "works": "work", "is": "are", "was": "were", "has": "have", "seems": "seem",
}  # fmt: skip
"""Third person singular: plural."""
AFTER = {
    "is": "happy tired ready old", "was": "happy tired late young", "has": "friends money time hope",
    "seems": "happy angry tired calm",
}  # fmt: skip
"""What follows a verb; all others are followed by an adverb."""
ADVERBS = _split("quickly slowly again today often here")
SEES = {"sees": "see", "likes": "like", "knows": "know", "follows": "follow", "helps": "help", "admires": "admire"}
NEAR = _split("near behind beside with above below")

STATES = {
    "Alabama": ("Montgomery", "Birmingham", "Mobile"),
    "Alaska": ("Juneau", "Anchorage", "Fairbanks"),
    "Arizona": ("Phoenix", "Tucson", "Mesa"),
    "California": ("Sacramento", "Oakland", "Fresno"),
    "Colorado": ("Denver", "Boulder", "Aurora"),
    "Connecticut": ("Hartford", "Bridgeport", "Stamford"),
    "Delaware": ("Dover", "Wilmington", "Newark"),
    "Florida": ("Tallahassee", "Miami", "Tampa"),
    "Georgia": ("Atlanta", "Savannah", "Macon"),
    "Idaho": ("Boise", "Nampa", "Meridian"),
    "Illinois": ("Springfield", "Chicago", "Peoria"),
    "Indiana": ("Indianapolis", "Gary", "Evansville"),
    "Kansas": ("Topeka", "Wichita", "Lawrence"),
    "Kentucky": ("Frankfort", "Louisville", "Lexington"),
    "Maryland": ("Annapolis", "Baltimore", "Bethesda"),
    "Massachusetts": ("Boston", "Worcester", "Cambridge"),
    "Michigan": ("Lansing", "Detroit", "Flint"),
    "Mississippi": ("Jackson", "Biloxi", "Tupelo"),
    "Montana": ("Helena", "Billings", "Missoula"),
    "Nebraska": ("Lincoln", "Omaha", "Bellevue"),
    "Ohio": ("Columbus", "Cleveland", "Toledo"),
    "Oregon": ("Salem", "Eugene", "Portland"),
    "Pennsylvania": ("Harrisburg", "Pittsburgh", "Philadelphia"),
    "Tennessee": ("Nashville", "Memphis", "Knoxville"),
    "Texas": ("Austin", "Dallas", "Houston"),
    "Virginia": ("Richmond", "Norfolk", "Roanoke"),
    "Washington": ("Olympia", "Seattle", "Tacoma"),
    "Wisconsin": ("Madison", "Milwaukee", "Kenosha"),
    "Wyoming": ("Cheyenne", "Casper", "Laramie"),
    "Hawaii": ("Honolulu", "Hilo", "Kailua"),
}
"""State: (its capital, and two other cities)."""
CITIES = {city: state for state, (_, *cities) in STATES.items() for city in cities}
"""City that is no capital: its state."""

COMMON = _split("""
    red blue green black white small large long short new hot cold high low deep light dark soft hard round
    river stone tree field road house door table chair paper glass water fire bread sugar salt gold silver iron wood
    cloud rain snow wind storm night morning winter summer spring mountain valley island lake sea ship train bridge
    tower wall roof floor window street town village nation people army law peace trade labor land union public
    one two three four five six seven eight nine ten hundred thousand year month week hour minute number letter
    red music color voice word story question answer reason power force order system plan result effect cause
    hand head foot eye heart mind body blood bone child mother father brother sister friend enemy leader worker
    open close give take bring carry hold build break cut draw read write speak listen think believe remember forget
    before after always never under over between against without within across along around toward into from
    """)
"""Common words for random sequences."""

FILLERS = tuple(
    dict.fromkeys((*NAMES, *PLACES, *OBJECTS, *EVENTS, *NOUNS, *NOUNS.values(), *ADVERBS, *STATES, *CITIES, *COMMON))
)
"""What random sequences are made of."""
