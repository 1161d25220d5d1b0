"""The tags of MagnaTagATune: their names, the fifty most frequent, and what players meant by them.

Players of a game typed these words, so that one thing has many names ("female vocal", "woman singing"), some are
misspelt, some deny ("no vocals"), and clips carry both a tag and its denial.
"""

from __future__ import annotations

# The columns of annotations_final.csv, in order (Law et al., "Evaluation of algorithms using games", ISMIR 2009).
ALL_TAGS = tuple("""
no voice|singer|duet|plucking|hard rock|world|bongos|harpsichord|female singing|clasical|sitar|chorus|female opera|
male vocal|vocals|clarinet|heavy|silence|beats|men|woodwind|funky|no strings|chimes|foreign|no piano|horns|classical|
female|no voices|soft rock|eerie|spacey|jazz|guitar|quiet|no beat|banjo|electric|solo|violins|folk|female voice|wind|
happy|ambient|new age|synth|funk|no singing|middle eastern|trumpet|percussion|drum|airy|voice|repetitive|birds|space|
strings|bass|harpsicord|medieval|male voice|girl|keyboard|acoustic|loud|classic|string|drums|electronic|not classical|
chanting|no violin|not rock|no guitar|organ|no vocal|talking|choral|weird|opera|soprano|fast|acoustic guitar|
electric guitar|male singer|man singing|classical guitar|country|violin|electro|reggae|tribal|dark|male opera|
no vocals|irish|electronica|horn|operatic|arabic|lol|low|instrumental|trance|chant|strange|drone|synthesizer|
heavy metal|modern|disco|bells|man|deep|fast beat|industrial|hard|harp|no flute|jungle|pop|lute|female vocal|oboe|
mellow|orchestral|viola|light|echo|piano|celtic|male vocals|orchestra|eastern|old|flutes|punk|spanish|sad|sax|slow|
male|blues|vocal|indian|no singer|scary|india|woman|woman singing|rock|dance|piano solo|guitars|no drums|jazzy|
singing|cello|calm|female vocals|voices|different|techno|clapping|house|monks|flute|not opera|not english|oriental|
beat|upbeat|soft|noise|choir|female singer|rap|metal|hip hop|quick|water|baroque|women|fiddle|english
""".replace("\n", "").split("|"))

# The fifty most frequent, most frequent first, as published with the split that everybody compares on
# (jordipons/musicnn-training, output_labels_mtt.txt).
TOP_50 = tuple("""
guitar|classical|slow|techno|strings|drums|electronic|rock|fast|piano|ambient|beat|violin|vocal|synth|female|indian|
opera|male|singing|vocals|no vocals|harpsichord|loud|quiet|flute|woman|male vocal|no vocal|pop|soft|sitar|solo|man|
classic|choir|voice|new age|dance|male voice|female vocal|beats|harp|cello|no voice|weird|country|metal|female voice|
choral
""".replace("\n", "").split("|"))

# group -> the thing as captions name it -> the tags that mean it.
MEANINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "genre": {
        "classical": ("classical", "clasical", "classic"),
        "baroque": ("baroque",),
        "medieval": ("medieval",),
        "opera": ("opera", "operatic", "female opera", "male opera"),
        "rock": ("rock",),
        "hard rock": ("hard rock",),
        "soft rock": ("soft rock",),
        "metal": ("metal", "heavy metal"),
        "punk": ("punk",),
        "pop": ("pop",),
        "techno": ("techno",),
        "trance": ("trance",),
        "house": ("house",),
        "disco": ("disco",),
        "dance": ("dance",),
        "electronic": ("electronic", "electronica", "electro"),
        "industrial": ("industrial",),
        "jungle": ("jungle",),
        "hip hop": ("hip hop",),
        "rap": ("rap",),
        "ambient": ("ambient",),
        "new age": ("new age",),
        "jazz": ("jazz", "jazzy"),
        "blues": ("blues",),
        "funk": ("funk", "funky"),
        "reggae": ("reggae",),
        "country": ("country",),
        "folk": ("folk",),
        "celtic": ("celtic",),
        "irish": ("irish",),
        "spanish": ("spanish",),
        "indian": ("indian", "india"),
        "arabic": ("arabic",),
        "middle eastern": ("middle eastern",),
        "eastern": ("eastern", "oriental"),
        "tribal": ("tribal",),
        "world": ("world",),
    },
    "mood": {
        "happy": ("happy", "upbeat"),
        "sad": ("sad",),
        "calm": ("calm",),
        "mellow": ("mellow",),
        "dark": ("dark",),
        "eerie": ("eerie", "scary"),
        "weird": ("weird", "strange"),
        "spacey": ("spacey", "space"),
        "airy": ("airy",),
        "light": ("light",),
        "heavy": ("heavy", "hard"),
        "deep": ("deep", "low"),
        "repetitive": ("repetitive",),
        "acoustic": ("acoustic",),
        "modern": ("modern",),
        "old": ("old",),
    },
    "tempo": {"slow": ("slow",), "fast": ("fast", "quick", "fast beat")},
    "loudness": {"quiet": ("quiet",), "soft": ("soft",), "loud": ("loud",)},
    "instrument": {
        "piano": ("piano", "piano solo"),
        "harpsichord": ("harpsichord", "harpsicord"),
        "organ": ("organ",),
        "keyboard": ("keyboard",),
        "synthesizer": ("synth", "synthesizer"),
        "guitar": ("guitar", "guitars"),
        "acoustic guitar": ("acoustic guitar",),
        "electric guitar": ("electric guitar", "electric"),
        "classical guitar": ("classical guitar",),
        "banjo": ("banjo",),
        "lute": ("lute",),
        "sitar": ("sitar",),
        "harp": ("harp",),
        "plucked strings": ("plucking",),
        "strings": ("strings", "string"),
        "violin": ("violin", "violins"),
        "viola": ("viola",),
        "cello": ("cello",),
        "fiddle": ("fiddle",),
        "orchestra": ("orchestra", "orchestral"),
        "flute": ("flute", "flutes"),
        "clarinet": ("clarinet",),
        "oboe": ("oboe",),
        "woodwind": ("woodwind",),
        "wind instruments": ("wind",),
        "saxophone": ("sax",),
        "trumpet": ("trumpet",),
        "horns": ("horns", "horn"),
        "bass": ("bass",),
        "drums": ("drums", "drum"),
        "percussion": ("percussion",),
        "bongos": ("bongos",),
        "bells": ("bells",),
        "chimes": ("chimes",),
        "a steady beat": ("beat", "beats"),
        "hand claps": ("clapping",),
    },
    "sound": {
        "bird song": ("birds",),
        "the sound of water": ("water",),
        "noise": ("noise",),
        "echo": ("echo",),
        "a drone": ("drone",),
    },
    "voice": {
        "female": ("female", "female vocal", "female vocals", "female voice", "female singer", "female singing",
                   "woman", "woman singing", "women", "girl", "female opera", "soprano"),
        "male": ("male", "male vocal", "male vocals", "male voice", "male singer", "man", "man singing", "men",
                 "male opera", "monks"),
        "any": ("vocal", "vocals", "voice", "voices", "singing", "singer"),
        "choir": ("choir", "choral", "chorus"),
        "chant": ("chant", "chanting", "monks"),
        "speech": ("talking",),
    },
    "ensemble": {"solo": ("solo", "piano solo"), "duet": ("duet",)},
}

# What a denial denies: group and thing.
DENIALS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("no voice", "no voices", "no vocal", "no vocals", "no singing", "no singer", "instrumental"),
                    ("voice", "any")),
    "no strings": ("instrument", "strings"),
    "no violin": ("instrument", "violin"),
    "no piano": ("instrument", "piano"),
    "no guitar": ("instrument", "guitar"),
    "no flute": ("instrument", "flute"),
    "no drums": ("instrument", "drums"),
    "no beat": ("instrument", "a steady beat"),
    "not classical": ("genre", "classical"),
    "not rock": ("genre", "rock"),
    "not opera": ("genre", "opera"),
}

# Say nothing that a listener could draw or a model could learn, or speak of the language of the words.
UNSPOKEN = frozenset({"lol", "different", "silence", "foreign", "english", "not english"})
# Things that exclude each other: players disagreed, and neither is said.
EXCLUSIVE = ((("tempo", "slow"), ("tempo", "fast")), (("loudness", "quiet"), ("loudness", "loud")),
             (("loudness", "soft"), ("loudness", "loud")), (("mood", "happy"), ("mood", "sad")),
             (("ensemble", "solo"), ("ensemble", "duet")))
# Denying the one denies the others.
IMPLIED = {
    ("instrument", "guitar"): ("acoustic guitar", "electric guitar", "classical guitar"),
    ("instrument", "strings"): ("violin", "viola", "cello", "fiddle"),
    ("instrument", "drums"): ("bongos",),
    ("genre", "rock"): ("hard rock", "soft rock"),
}
