import pytest

from r1train.data.decontamination import Benchmarked, words_of

QUESTION = "Ada walks 12 steps north and then 7 steps east. How far is she from home?"


def test_ten_words_in_a_row_are_found_however_they_are_written():
    seen = Benchmarked(["What else is there to be asked about a mill that burnt?", QUESTION])
    shared = "ADA walks 12 steps north, and then 7 steps EAST"
    assert seen.met(f"Problem. {shared} (home!)") == {1}
    assert seen.met(f"Problem. {shared.rpartition(' ')[0]} miles east") == set()  # nine
    assert seen.met("") == set()
    assert seen.contaminated(["a b c", QUESTION, QUESTION]) == {1}
    assert list(seen.clean(["a b c", QUESTION.upper()])) == ["a b c"]


def test_words_need_not_stand_at_the_same_place():
    words = [f"w{i}" for i in range(30)]
    seen = Benchmarked([" ".join(words)])
    for start in range(21):
        assert seen.met(" ".join(["x"] * 7 + words[start : start + 10] + ["y"])) == {0}


def test_short_questions_count_where_all_of_them_is_there():
    seen = Benchmarked(["How many days has a week?", "Why?"])
    assert seen.met("Tell me: how many days has a week, and why?") == {0}
    assert seen.met("How many days has a year? Why?") == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ｆｕｌｌ width, x_2", ["full", "width", "x", "2"]),
        ("一个盒子 has 12 球", ["一", "个", "盒", "子", "has", "12", "球"]),
        (r"$\frac{1}{2}$", ["frac", "1", "2"]),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_chinese_without_spaces():
    seen = Benchmarked(["一个盒子里有十二个红球和八个白球"])
    assert seen.met("题目：盒子里有十二个红球和八个") == {0}
    assert seen.met("盒子里有十二个白球和八个") == set()
