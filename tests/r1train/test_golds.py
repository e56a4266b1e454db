"""Reference answers of data sets, as they are written and as they are compared."""

import pytest

from r1train.data.golds import final_answer, listed_answer
from r1train.verify import verify


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("72", "72"),
        (" 72\n", "72"),
        ("72.", "72"),
        ("$72$", "72"),
        ("$72$.", "72"),
        ("$$72$$", "72"),
        (r"\(72\)", "72"),
        (r"\[72\]", "72"),
        ("**72**", "72"),
        ("**72.**", "72"),
        ("`72`", "72"),
        ('"Paris"', "Paris"),
        ("She sold 48/2 = 24.\n#### 72", "72"),
        ("#### 1,234", "1234"),
        ("#### -1,234.50", "-1234.50"),
        (r"Thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{7} is 7, so \boxed{ 7 }", "7"),
        ("<think>6 * 12</think><answer>72</answer>", "72"),
        # What is no mark stays.
        ("1,234", "1,234"),
        ("$3$ and $4$", "$3$ and $4$"),
        ("2*3*4", "2*3*4"),
        ("wait...", "wait..."),
        ("$18", "$18"),
        ("*", "*"),
        ("3.5", "3.5"),
        (r"\{1, 2\}", r"\{1, 2\}"),
    ],
)
def test_a_final_answer(written, compared):
    assert final_answer(written) == compared
    assert final_answer(compared) == compared


def test_an_exact_answer_is_only_stripped():
    assert final_answer(" **72**. ", "exact") == "**72**."


@pytest.mark.parametrize("written", [".", "...", "\x07", "$$", "**"])
def test_an_exact_answer_may_be_any_characters(written):
    assert final_answer(written, "exact") == written
    assert verify(written, written, answer_type="exact") == 1


@pytest.mark.parametrize(
    ("written", "answer_type", "reason"),
    [
        (" ", "exact", "empty"),
        ("72 ####", "auto", "nothing follows"),
        (r"\boxed{1} or \boxed{2}", "auto", "several boxes"),
        (r"\boxed{1", "auto", "not closed"),
        ("a</answer>", "auto", "tag"),
        ("<answer>", "exact", "tag"),
        ("so " * 400, "math", "1199 characters"),
        ("Paris", "choice", "expected a letter"),
        ("many words", "math", "cannot be read as mathematics"),
    ],
)
def test_a_gold_that_no_answer_can_equal(written, answer_type, reason):
    with pytest.raises(ValueError, match=reason):
        final_answer(written, answer_type)


def test_texts_may_be_long_and_choices_have_brackets():
    assert len(final_answer("so " * 400, "text")) == 1199
    assert final_answer("(B)", "choice") == "(B)"


def test_lists():
    assert listed_answer(["2", "$x$"], "set") == "{2, x}"
    assert listed_answer(["1", ["2", "3"], True], "ordered") == "(1, (2, 3), true)"
    for values, reason in (([], "empty"), (["1, 2"], "comma"), ([None], "text or numbers")):
        with pytest.raises(ValueError, match=reason):
            listed_answer(values, "set")
