"""Units: one spelling each, so that those of a reference and an answer can agree or not.

Agreement is of the unit, without conversion: 5 km is not 5000 m. Case counts in symbols: mg is not
Mg.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from r1train.answers.words import counts_things, denies


@dataclass(frozen=True)
class Unit:
    powers: tuple[tuple[str, int], ...]
    """Names and their exponents, sorted: (("m", 1), ("s", -2))."""
    ignorable: bool = field(default=True, compare=False)
    """Whether an answer may have it where its reference has none: every word is a known unit, or
    they count things, as red apples do."""


# A name, its symbols as they are written, and after the bar its words, in any case.
_SPELLINGS = """
in: | in inch
ft: | ft foot feet
yd: | yd yard
mi: | mi mile
um: μm | micron
m: 米 | metre
g: gm 克 | gramme
kg: Kg KG 公斤 千克 | kgs kilogramme
km: Km KM 公里 千米 | kms
cm: 厘米 | cms
oz: | oz ounce
lb: | lb lbs
t: | ton tonne
s: 秒 | sec secs
min: 分钟 | min mins minute
h: 小时 | hr hrs hour
d: 天 | day
week: | wk wks week
month: | mo month
year: 年 岁 | yr yrs year
L: l | litre
gal: | gal gallon
A: | amp
C: | coulomb
kcal: Cal Kcal
kHz: KHz khz
MHz: Mhz
GHz: Ghz ghz
Hz: | hz
kB: KB
Å: | angstrom
G: | gauss
atm: | atm atmosphere
bar: | bar bars
mmHg: | mmhg
M: | molar
rad: | rad radian
°: 度 | deg degree
°C: | celsius
°F: | fahrenheit
B: | byte
bit: b
ohm: Ω Ω | ohm
mph: | mph
kph: | kph kmh
rpm: | rpm
dollar: $ US$ | usd dollar buck
cent: ¢ | cent
euro: € | eur euro
gbp: £ | gbp
pound: | pound
yen: ¥ | jpy yen
rupee: ₹ | inr rupee
yuan: 元 | yuan cny rmb
unit: 个 | unit
person: 人 | person
am: AM
pm: PM
"""
_PREFIXES = {
    "p": "pico", "n": "nano", "u": "micro", "μ": "micro", "m": "milli", "c": "centi",
    "d": "deci", "h": "hecto", "k": "kilo", "M": "mega", "G": "giga", "T": "tera", "P": "peta",
}  # fmt: skip
_PREFIXED = {
    "m": "meter", "g": "gram", "s": "second", "A": "ampere", "K": "kelvin", "mol": "mole",
    "cd": "candela", "Hz": "hertz", "N": "newton", "Pa": "pascal", "J": "joule", "W": "watt",
    "C": "coulomb", "V": "volt", "F": "farad", "ohm": "ohm", "Ω": "ohm", "S": "siemens",
    "Wb": "weber", "T": "tesla", "H": "henry", "lm": "lumen", "lx": "lux", "Bq": "becquerel",
    "Gy": "gray", "Sv": "sievert", "L": "liter", "eV": "electronvolt", "Wh": "watthour",
    "cal": "calorie", "bit": "bit", "b": "bit", "B": "byte", "M": "molar", "t": "tonne",
    "dB": "decibel", "l": "liter",
}  # fmt: skip
_ALIKE = {"b": "bit", "Ω": "ohm", "l": "L"}
_TAKEN_BY = {
    "m": "pnuμmcdhkMGTP", "g": "pnuμmkMGTP", "L": "pnuμmcdhkM", "l": "pnuμmcdhk", "Pa": "mhkMGT",
    "b": "kMGTP", "bit": "kMGTP", "B": "kMGTP", "t": "kMGT", "dB": "", "mol": "pnuμmkM",
    "cd": "mkM", "lm": "mkM", "lx": "mkM",
}  # fmt: skip
_SELDOM = {"cd", "lm", "lx", "hm", "dm", "pm", "am", "ps", "ks", "pg", "kt", "mt"}  # 2cd is c·d
_COMPOUND = {
    "mph": {"mi": 1, "h": -1},
    "kph": {"km": 1, "h": -1},
    **{f"{k}bps": {f"{k}bit": 1, "s": -1} for k in "kMGT"},
    **{f"{k}Bps": {f"{k}B": 1, "s": -1} for k in "kMGT"},
}
_NUMERALS = {"M", "G", "B", "T"}  # which stand for a million, giga, a billion and a trillion, too
_MONEY = {"dollar", "cent", "euro", "gbp", "pound", "yen", "rupee", "yuan"}
CURRENCIES = frozenset(["USD", "EUR", "GBP", "JPY", "INR"])


def _tables() -> tuple[dict[str, str], dict[str, str]]:
    symbols: dict[str, str] = {name: name for name in _COMPOUND if name[1:] in ("bps", "Bps")}
    words: dict[str, str] = {}
    for line in _SPELLINGS.strip().split("\n"):
        name, _, spellings = line.partition(": ")
        written, _, spoken = spellings.partition("|")
        if len(name) < 3 or not name.islower():
            symbols[name] = name
        symbols.update(dict.fromkeys(written.split(), name))
        words.update(dict.fromkeys(spoken.split(), name))
    for symbol, word in _PREFIXED.items():
        name = _ALIKE.get(symbol, symbol)
        symbols.setdefault(symbol, name)
        words.setdefault(word, name)
        for prefix, prefix_word in _PREFIXES.items():
            if prefix not in _TAKEN_BY.get(symbol, "pnuμmkMGTP"):
                continue
            prefixed = ("u" if prefix == "μ" else prefix) + name
            known = symbols.setdefault(prefix + symbol, prefixed)
            for spelling in (word, {"meter": "metre", "liter": "litre"}.get(word, word)):
                words.setdefault(prefix_word + spelling, known)
    return symbols, words


_SYMBOLS, _WORDS = _tables()
_PIECE = re.compile(
    r"\s*(/|per\b|\*|·|\(|\)|\^\s*\{?\s*(-?\d)\s*\}?|°\s*[CF](?![A-Za-z])|US\$"
    r"|degrees?\s+(?:[CF]\b|[Cc]elsius\b|[Ff]ahrenheit\b)|[^\W\d_]+|[°$€£¥₹¢])\s*"
)
_MOST_WORDS = 3
_AFTER_UNITS = {"each", "apiece", "long", "wide", "tall", "high", "deep", "old"}
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Words that multiply the number before them, as powers of ten."""


def is_known(word: str) -> bool:
    """Whether the word is a unit or its symbol, so that it may follow a number at once: 5km."""
    return _lookup(word) is not None


def is_common(word: str) -> bool:
    """Whether letters that stand right behind a number are a unit and no product."""
    return is_known(word) and word not in _SELDOM


def agree(left: Unit, right: Unit) -> bool:
    """Whether they are the same unit. "pound" is of money or of mass, but £ is not lb."""
    return any(_pounds(left, name) == _pounds(right, name) for name in ("lb", "gbp"))


def read_unit(text: str) -> Unit | None:
    """The unit that `text` is; None where it is none.

    What is counted is a unit as well ("18 golf balls"), unless a word of it denies the number or
    changes it ("18 or so", "5 thousand").
    """
    exponents: Counter[str] = Counter()
    words: list[str] = []
    part: list[str] = []  # the words since the last stroke or "per"
    position, sign, power, last, ignorable = 0, 1, 1, "", True
    while position < len(text):
        piece = _PIECE.match(text, position)
        if piece is None:
            return None
        position = piece.end()
        token = piece.group(1).strip()
        lower = token.lower()
        if token in ("/", "per"):
            if not last and sign == 1 and not exponents and token == "per":
                return None
            ignorable = ignorable and (not part or sign < 0 or _counts(part))
            sign, last, part = -1, "", []
        elif token in ("*", "·", "(", ")"):
            last = ""
        elif token.startswith("^"):
            if not last:
                return None
            exponents[last] += sign * (int(piece.group(2)) - 1)
            last = ""
        elif lower in ("square", "sq", "cubic", "cu"):
            power = 2 if lower in ("square", "sq") else 3
        elif lower in _AFTER_UNITS and words:
            pass
        elif lower in ("squared", "cubed") and last in _SYMBOLS.values():
            exponents[last] += sign * (1 if lower == "squared" else 2)
        else:
            known = _lookup(token)
            if known is None and (power != 1 or denies(token)):
                return None
            last = known or _name(token)
            words.append(token)
            part.append(token)
            for name, count in _COMPOUND.get(last, {last: 1}).items():
                exponents[name] += sign * power * count
            power = 1
    if not words or len(words) > _MOST_WORDS or power != 1:
        return None
    ignorable = ignorable and (not part or sign < 0 or _counts(part))
    powers = tuple(sorted((name, count) for name, count in exponents.items() if count))
    alone = len(powers) == 1 and powers[0][0] in _NUMERALS and len(words[0]) == 1
    return Unit(powers, ignorable and not alone)


def _counts(words: list[str]) -> bool:
    """Whether these are units, or a noun in the plural with what is said of it."""
    names = [_lookup(word) for word in words]
    if all(names):
        return len(words) == 1 or not _MONEY.intersection(names) or min(map(len, words)) > 1  # $5 M
    return counts_things(words)


def _pounds(unit: Unit, name: str) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name if n == "pound" else n, count) for n, count in unit.powers))


def _lookup(word: str) -> str | None:
    word = "".join(word.split())
    if word in _SYMBOLS:
        return _SYMBOLS[word]
    if degrees := re.fullmatch(r"(?:°|degrees?)([CFcf]).*", word):
        return f"°{degrees[1].upper()}"
    if word.islower() or word.istitle() or word.isupper():
        lower = word.lower()
        for spelling in (lower, singular(lower) if len(lower) > 3 else lower):
            if spelling in _WORDS:
                return _WORDS[spelling]
    return None


def _name(word: str) -> str:
    """An unknown unit's: in lower case where its case says nothing."""
    plain = len(word) >= 4 and (word.islower() or word.istitle() or word.isupper())
    name = singular(word.lower())
    return name if word.islower() or (plain and name not in _SYMBOLS) else word  # no MMOL is mmol


_IRREGULAR = {"feet": "foot", "people": "person", "children": "child", "men": "man"}
_IRREGULAR |= {"women": "woman", "mice": "mouse", "geese": "goose", "teeth": "tooth"}


def singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if len(word) > 2 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word
