"""The share of a chain of thought that is in the language of its question."""

import random
import time
from dataclasses import replace

import pytest

from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError
from r1train.data.problems import ProblemSet
from r1train.rewards import identify
from r1train.rewards.base import Scores
from r1train.rewards.identify import detect, language_code
from r1train.rewards.language import LanguageReward, language_ratio, target_language
from tests.r1train.samples import ONE, sample, wrap

NUMBERS = {
    "en": ["zero", "one", "seven", "twelve", "twenty-one", "twenty-seven", "minus", "wait"],
    "zh": ["零", "一", "七", "十二", "二十一", "二十七", "减", "等于", "等等"],
}
GERMAN = (
    "Zuerst berechnen wir die Summe der beiden Zahlen, und dann teilen wir das Ergebnis durch die "
    "Anzahl der Schüler."
)


@pytest.mark.parametrize(
    ("text", "language", "target", "words"),
    [
        ("five minus three equals two 加 一 等于 七", "en", 5, 9),
        ("five minus three equals two 加 一 等于 七", "zh", 4, 9),
        ("two 我们先计算总和", "en", 1, 4),  # seven characters without a space are three words
        ("我们把 x 代入 y, 得到 n", "zh", 4, 4),  # variables
        ("那么 the sum 是 12", "zh", 2, 4),
        ("那么 $x_1 + \\frac{a}{b}$ 以及 \\(\\text{sum}\\) 还有 `for i in range`", "zh", 4, 4),
        ("so `总和` is it", "en", 3, 4),  # Chinese in code is Chinese
        ("so ```python\n# 先计算总和\nprint(a)\n``` is it", "en", 3, 5),
        ("见 https://example.org/a-page 或 max_len <think> sin2", "zh", 2, 2),
        ("costs $5 and we pay $6", "en", 4, 4),  # which are no formula
        ("thisisasentencewithoutanyspaces 是", "zh", 1, 3),
        ("Ｓｏ ｗｅ 计算", "en", 2, 3),  # full width
        ("we com\u200bpute 计\u200b算", "en", 2, 3),
        ("Итак we мы", "ru", 2, 3),
        ("りんごは 三つ apples", "ja", 3, 4),
        (GERMAN, "de", 19, 19),
        (GERMAN, "en", 0, 19),
        (GERMAN, "zh", 0, 19),
    ],
)
def test_words_of_the_language_over_words(text, language, target, words):
    assert language_ratio(text, language) == target / words


PROOF = (
    "因为 AB=AC，所以 ∠ABC=∠ACB。又因为 BD⊥AC，CE⊥AB，所以 ∠BDC=∠CEB=90°。在 △BDC 和 △CEB 中，"
    "∠DBC=∠ECB，BC=CB，所以 △BDC≌△CEB。"
)


@pytest.mark.parametrize(
    "text",
    [
        "因此 AB=CD 三角形 ABC",
        "GPU 和 CPU 很快",
        "第一步：计算 sin(x) 的导数",
        "设 n 为整数 mod gcd lcm sin cos",
        "速度是 5 km 每小时, 质量 3 kg",
        "代码 x = y + foo_bar; print(x)",
        "for i in range(n):\n    total += i\nreturn total\n于是得到所有整数的总和",
        PROOF,
    ],
)
def test_what_is_written_in_latin_letters_anywhere_is_neutral(text):
    assert language_ratio(text, "zh") == 1


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        ("THE SUM OF TWO AND SIX IS TEN", 0, 8),
        ("THE SUM OF TWO AND SIX IS TEN 所以", 1, 7),  # four stand for "the", "of", "and", "is"
        ("SUM TWO SIX FIVE GIVES TEN 所以", 1, 5),
        ("AB CD EF", 0, 3),
        ("sin cos", 0, 1),
        ("x = y + foo_bar; print(x)", 0, 1),
        ("total = sum = five = count 是", 1, 3),
        ("for example we add\n所以", 1, 5),
        ("if we add two and three:\n所以", 1, 7),
        ("**Answer** 我们", 1, 2),
    ],
)
def test_no_other_language_hides_in_what_looks_like_notation(text, target, words):
    assert language_ratio(text, "zh") == target / words


def test_names_of_points_count_in_a_language_of_their_script():
    assert language_ratio("we see that ABC 是", "en") == 4 / 5


@pytest.mark.parametrize("text", ["", " \n", "3 + 4 = 7", "$x = 2$", "<think>", "……", "\u200b"])
def test_without_a_word_there_is_nothing_to_be_had(text):
    assert language_ratio(text, "en") == language_ratio(text, "zh") == 0


def test_mixed_chains_of_number_words_have_exactly_their_share():
    rng = random.Random(0)
    for length in range(1, 49):
        languages = rng.choices(["en", "zh"], k=length)
        chain = " ".join(rng.choice(NUMBERS[language]) for language in languages)
        for language in ("en", "zh"):
            assert language_ratio(chain, language) == languages.count(language) / length


def test_a_sentence_in_another_language_of_the_script_is_foreign():
    english = "First we compute the sum of the two numbers, and then we divide it by six. "
    assert language_ratio(english + GERMAN, "en") == 16 / 35
    assert language_ratio(english + GERMAN, "de") == 19 / 35
    assert language_ratio(english * 40 + GERMAN, "en") == 640 / 659


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("en", "en"),
        ("English", "en"),
        ("zh-CN", "zh"),
        ("zh_Hans", "zh"),
        ("中文", "zh"),
        ("python", None),
        ("c", None),
        ("", None),
        (3, None),
        (None, None),
    ],
)
def test_names_of_languages(name, code):
    assert language_code(name) == code


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("What is 3 + 4?", "en"),
        ("计算三加四。", "zh"),
        ("日本の首都はどこですか", "ja"),
        ("サンは何メートルですか", "ja"),
        ("사과는 몇 개입니까?", "ko"),
        ("Найдите сумму чисел от единицы до ста.", "ru"),
        ("أوجد مجموع العددين", "ar"),
        ("Wie viele Äpfel hat Anna jetzt?", "de"),
        ("Soit x un nombre entier. Trouver x tel que x+1=3.", "fr"),
        (GERMAN * 100, "de"),
        ("在 △ABC 中，AB=AC，求 ∠ABC", "zh"),
        ("FIND THE SUM OF TWO AND SIX", "en"),
        ("3 + 4 = ?", None),
        ("$x$", None),
    ],
)
def test_the_language_of_a_question(question, language):
    assert detect(question) == language


def test_a_field_of_the_problem_says_more_than_its_question():
    assert target_language(ONE) == "en"
    assert target_language(replace(ONE, metadata={"language": "zh"})) == "zh"
    row = replace(ONE, columns={"language": "Chinese"}, metadata={"language": "en"})
    assert target_language(row) == "zh"
    assert target_language(replace(ONE, columns={"language": "python"})) == "en"


def test_the_reward_of_a_chain():
    reward = LanguageReward(RewardConfig(), ProblemSet([ONE], ()))
    sums, formula = replace(ONE, metadata={"language": "zh"}), replace(ONE, question="1 + 1 = ?")
    samples = [
        sample(ONE, wrap("二", "one plus 一")),
        sample(sums, wrap("2", "one plus 一")),
        sample(ONE, wrap("two", "")),
        sample(ONE, wrap("two", "1 + 1 = 2")),
        sample(ONE, "一 and cut off"),
        sample(formula, wrap("2", "so")),
    ]
    assert reward(samples) == Scores([2 / 3, 1 / 3, 0.0, 0.0, 3 / 4, None])


HOSTILE = {
    "marks": "a" + "\u0301\u0316" * 100_000,
    "fences": "```" * 40_001,
    "openings": "\\[" * 100_000,
    "dollars": "$a" * 100_000,
    "backticks": "`" * 199_999,
    "letters": "a" * 200_000,
    "words": "the sum of two " * 8_000,
    "characters": "我们" * 100_000,
    "both": "a我" * 30_000,
    "hyphens": "ab-" * 70_000,
    "tags": "<a" * 100_000,
    "lines": "if a\n" * 40_000,
    "names": "ABC=" * 40_000 + "我",
    "spaces": ("ab" + " " * 1000) * 200,
    "ligatures": "\ufdfa" * 20_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_takes_long(text):
    language_ratio("the sum of two and two is of course four", "en")  # which loads the library
    start = time.process_time()
    assert 0 <= language_ratio(text, "en") <= 1
    assert time.process_time() - start < 5


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(identify, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'r1kernels\[language\]'"):
        LanguageReward(RewardConfig(), ProblemSet([ONE], ()))
    assert language_ratio("我们 two", "zh") == 0.5  # the script alone decides
