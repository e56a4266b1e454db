"""Words behind a number: whether they only say what is counted, or change or deny the number.

No list of English verbs is kept: what an answer counts must be a noun in the plural, by its form,
and no word of it may be one of those below. So a word that nobody thought of is refused.
"""

from __future__ import annotations

import re

# Also with -s, -es, -d and -ed.
_DENYING_WORDS = """
or and not no nor never neither either both is isnt are arent was wasnt be if unless else except
without wrong incorrect invalid false untrue true right correct maybe perhaps possible impossible
probable about almost approximate around rough near more less few many much most least some any
over under above below plus minus time divide multiply multiplie by square cube power root
multiple product sum total difference quotient exponent factorial logarithm log inverse reciprocal
negate negative positive invert reverse flip swap change increase decrease reduce round truncate add
subtract sub double triple treble quadruple quintuple thrice twice once halve half halves third
quarter percent percentage permille ppm ppb bps basis decimal octal hex hexadecimal binary ternary
base mod modulo remainder kilo mega giga tera peta exa zetta yotta milli micro nano pico femto
atto centi deci deca deka hecto dozen score gross pair couple brace trio duo lakh crore grand myriad
mil mill mio mn bn lot load zero one two three four five six seven eight nine ten eleven twelve
thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty twentie thirty thirtie forty
fortie fifty fiftie sixty sixtie seventy seventie eighty eightie ninety ninetie hundred thousand
first second fold nope nah nay none nothing null nil unknown undefined unsure doubt guess suppose
assume think believe estimate mistake error lie joke nonsense answer alternative otherwise
instead rather but then only likely unlikely wait hmm uh um er oops sorry correction actual mean
equal seem appear look become remain exceed fail lack need give make differ vary varie depend say
ha have do did does done has had it this that these those he she they we you i me us as at to from
through until into with vs versus so such too very just ish off up down out yes yeah ok okay sure
deny denie contradict cancel remove replace reject always sometime beside afterward upward downward
nevertheless nonetheless alas per infinity infinite nan
other another approximation contradiction falsehood denial opposite complement exponential fewer
extra additional further
"""
_DENYING = frozenset(_DENYING_WORDS.split())
_DENYING_FORMS = re.compile(
    r".*illi(?:on|ard)|.*tuple|.*plicate|googol.*|.*(?:[^aeo]|ie)th|.*fold|.*teen"
    r"|(?:kilo|mega|giga|tera|peta|milli|micro|nano|pico|centi|hecto).+"
    r"|.*(?:ly|less|wise|ible|able|ish|n't)|[ivxlcdm]+|.*[^e]ed|.*(.)\1\1.*"
)
_PLAIN_WORDS = """
red bed shed sled mix vegetable table cable fish dish family lily jelly baby belly ring king wing
string spring swing evening morning wedding cloth tooth month moth path bath bees toes
microphone microscope microwave megaphone centipede millipede petal
"""
_PLAIN = frozenset(_PLAIN_WORDS.split())
_PLURALS = frozenset(
    ["people", "children", "men", "women", "mice", "geese", "teeth", "sheep", "fish"]
)
_NOT_PLURAL = re.compile(r".*(?:ss|us|is)")


def denies(word: str) -> bool:
    """Whether the word may change the number before it, deny it or offer another."""
    lower = word.lower()
    stems = (lower, *(lower.removesuffix(end) for end in ("s", "es", "d", "ed")))
    if any(stem in _PLAIN for stem in stems):
        return False
    denying = any(stem in _DENYING or _DENYING_FORMS.fullmatch(stem) for stem in stems)
    return denying or lower.endswith("ing")


def counts_things(words: list[str]) -> bool:
    """Whether they are a noun in the plural with words before it, or with "of" and one behind."""
    if not all(word.islower() or word.istitle() for word in words):
        return False
    if any(len(word) < 3 and word != "of" for word in words):
        return False
    head = words[-1]
    if "of" in words:
        place = words.index("of")
        if place == 0 or place == len(words) - 1 or "of" in words[place + 1 :]:
            return False
        head = words[place - 1]
    head = head.lower()
    return head in _PLURALS or (
        len(head) > 3 and head[-1] == "s" and not _NOT_PLURAL.fullmatch(head)
    )
