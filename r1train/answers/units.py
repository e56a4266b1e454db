"""Units: one spelling each, so that those of a reference and an answer can agree or not.

Agreement is of the unit, without conversion: 5 km is not 5000 m.
"""

from __future__ import annotations

import re
from collections import Counter

Unit = tuple[tuple[str, int], ...]
"""Names and their exponents, sorted: (("m", 1), ("s", -2))."""

_SPELLINGS = """
m: meter metre
km: kilometer kilometre
cm: centimeter centimetre
mm: millimeter millimetre
um: μm µm micrometer micrometre micron
nm: nanometer nanometre
in: inch
ft: foot feet
yd: yard
mi: mile
g: gram gramme gm
kg: kilogram kilogramme kilo
mg: milligram
oz: ounce
t: ton tonne
s: second sec
ms: millisecond
us: μs µs microsecond
ns: nanosecond
min: minute
h: hour hr
d: day
week: wk
month: mo
year: yr
l: L liter litre
ml: mL milliliter millilitre
cl: cL centiliter centilitre
gal: gallon
A: amp ampere
V: volt
W: watt
kW: kilowatt
MW: megawatt
mW: milliwatt
kWh: kilowatthour
J: joule
kJ: kilojoule
cal: calorie
kcal: kilocalorie
eV: electronvolt
N: newton
kN: kilonewton
Pa: pascal
kPa: kilopascal
atm: atmosphere
bar: bars
Hz: hertz
kHz: kilohertz
MHz: megahertz
GHz: gigahertz
C: coulomb
F: farad
T: tesla
ohm: Ω Ω
K: kelvin
mol: mole
M: molar
rad: radian
°: degree deg
°C: celsius
°F: fahrenheit
bit: bits
byte: bytes
kB: kilobyte KB
MB: megabyte
GB: gigabyte
mph: mph
kph: kmh
rpm: rpm
dollar: $ USD usd US$ buck
cent: ¢
euro: € EUR eur
pound: £ GBP gbp lb lbs
yen: ¥ JPY
rupee: ₹ INR
unit: units
"""
# Words after a number that change it, deny it or offer another: with one of these it is no unit.
_NOT_UNIT_WORDS = """
or and not no nor never neither either both is isnt are was be if unless else except
without wrong incorrect false true right correct invalid maybe perhaps possibly probably
almost about approximately around roughly nearly more less greater fewer than most least
over under above below plus minus times divided multiplied by squared cubed
factorial power root half halves third thirds quarter quarters fourth fourths fifth fifths
sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth
hundredths thousandth thousandths hundred thousand million billion trillion mil mio mn bn
dozen dozens score grand lakh crore couple double triple mod modulo remainder negative
positive to from through until into with vs versus instead rather but then only zero one
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
ish equals equal off
"""
_NOT_UNITS = frozenset(_NOT_UNIT_WORDS.split())
_IRREGULAR = {"feet": "foot", "people": "person", "children": "child", "men": "man"}
_KNOWN: dict[str, str] = {}
for _line in _SPELLINGS.split("\n"):
    if _line:
        _name, _, _others = _line.partition(": ")
        for _spelling in (_name, *_others.split()):
            _KNOWN[_spelling] = _name
_PIECE = re.compile(
    r"\s*(/|per\b|\*|·|\(|\)|\^\s*\{?\s*(-?\d)\s*\}?|°\s*[CF](?![A-Za-z])|[^\W\d_]+|[°$€£¥₹¢])\s*"
)
_MOST_WORDS = 3
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Words that multiply the number before them, as powers of ten."""


def is_known(word: str) -> bool:
    """Whether the word is a unit or its symbol, so that it may follow a number at once: 5km."""
    return _lookup(word) is not None


def read_unit(text: str) -> Unit | None:
    """The unit that `text` is; None where it is none.

    What is counted is a unit as well ("18 golf balls"), unless a word of it denies the number or
    changes it ("18 or so", "5 thousand").
    """
    exponents: Counter[str] = Counter()
    words: list[str] = []
    position, sign, power, last = 0, 1, 1, ""
    while position < len(text):
        piece = _PIECE.match(text, position)
        if piece is None:
            return None
        position = piece.end()
        token = piece.group(1).strip()
        if token in ("/", "per"):
            if not last and sign == 1 and not exponents and token == "per":
                return None
            sign, last = -1, ""
        elif token in ("*", "·", "(", ")"):
            last = ""
        elif token.startswith("^"):
            if not last:
                return None
            exponents[last] += sign * (int(piece.group(2)) - 1)
            last = ""
        elif token.lower() in ("square", "sq", "cubic", "cu"):
            power = 2 if token.lower() in ("square", "sq") else 3
        elif token.lower() == "each" and words:
            pass
        elif token.lower() in ("squared", "cubed") and last in _KNOWN.values():
            exponents[last] += sign * (1 if token.lower() == "squared" else 2)
        elif token.lower() in _NOT_UNITS and token not in ("in", "min"):
            return None
        else:
            known = _lookup(token)
            if known is None and len(token) < 3:
                return None
            last = known or _singular(token.lower())
            words.append(token)
            exponents[last] += sign * power
            power = 1
    if not words or len(words) > _MOST_WORDS or power != 1:
        return None
    return tuple(sorted((name, count) for name, count in exponents.items() if count))


def _lookup(word: str) -> str | None:
    word = "".join(word.split())
    lower = word.lower()
    for spelling in (word, lower, _singular(lower)):
        if spelling in _KNOWN:
            return _KNOWN[spelling]
    return None


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if len(word) > 2 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word
