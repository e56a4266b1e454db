import time

import pytest

from r1train.suite.extraction import RULES, extract


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Answer: C", "C"),
        ("**Answer: C**", "C"),
        ("**Answer:** C", "C"),
        ("ANSWER: (C)", "C"),
        ("Answer: $C$", "C"),
        (r"Answer: \boxed{C}", "C"),
        ("Answer: C) Paris", "C"),
        ("Answer: C (Paris)", "C"),
        ("The answer is (J).", "J"),
        ("Therefore, the answer is **B**.", "B"),
        ("答案：D", "D"),
        ("答案是D。", "D"),
        ("答案选D。", "D"),
        ("答案选择D", "D"),
        ("Answer: A\nNo, that is wrong.\nAnswer: B", "B"),
        ("C", "C"),
        ("Answer: A or B", None),
        ("Answer: not A", None),
        ("Answer: Cat", None),
        ("The answer is a dog", None),
        ("A, B and C are wrong", None),
        ("", None),
    ],
)
def test_letters(said, found):
    assert extract(["letter"], said) == found


@pytest.mark.parametrize(
    ("rules", "said", "found"),
    [
        (["boxed"], r"so \boxed{1}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (["boxed"], r"so \boxed{1} and \boxed{2", "1"),
        (["boxed"], "so 2", None),
        (["boxed", "answer_is"], "The answer is $2.5$. Good.", "2.5"),
        (["hashes"], "2 + 2 = 4\n#### 4\nDone.", "4"),
        (["number"], "It costs $1,234.50 in all.", "1,234.50"),
        (["number"], "From 3 to -7.", "-7"),
        (["answer"], "Answer: x\nAnswer: Ida Holm", "Ida Holm"),
        (["json"], 'First {"answer": "A"}, then {"reasoning": "{b}", "answer": "C"}.', "C"),
        (["json"], '{"reasoning": "two\nlines", "answer": "C"}', "C"),
        (["json_letter"], '```json\n{"answer": "c"}\n```', "C"),
        (["code"], "```python\nold\n```\n```python\nprint(1)\n```", "print(1)"),
        (["code"], "```cpp\nint main() {}\n```", None),
    ],
)
def test_rules(rules, said, found):
    assert extract(rules, said) == found


def test_what_is_longer_than_an_answer_is_none():
    assert extract(["letter"], "Answer: A) " + "red " * 100) == "A"
    assert extract(["letter"], "Answer: A) " + "red " * 3000) is None
    assert extract(["answer"], "Answer: " + "red " * 3000) is None


def test_the_chain_of_thought_answers_nothing():
    said = "<think>Maybe \\boxed{1}.</think>It is \\boxed{2}."
    assert extract(["boxed"], said) == "2"
    assert extract(["boxed"], "<think>So \\boxed{1}.") is None
    assert extract(["boxed"], "So \\boxed{1}.", prompt="Q <think>\n") is None
    assert extract(["boxed"], "So 1.</think>\\boxed{1}", prompt="Q <think>\n") == "1"


def test_an_answer_block_needs_no_other_mark():
    said = "<think>a</think> <answer> 42 </answer>"
    assert extract(["boxed"], said) == "42"
    assert extract(["boxed"], "<answer>it is \\boxed{7}</answer>") == "7"
    assert extract(["letter"], "<answer>C</answer>") == "C"
    assert extract(["boxed"], "<answer>1</answer><answer>2</answer>") is None


@pytest.mark.parametrize(
    "piece",
    [
        *("answer ", "answer" + " " * 200, "Answer: ", "the answer is ", "\\boxed{", "\\boxed{}"),
        *("<answer>", "<answer></answer>", "</think>", "####", "```python\n", '{"answer":', "{"),
        *("1,", "$", "**", "A or ", "答案：", "(", "\n"),
        *(";", ".", "。", "\\, ", "\\ ", "\\", "a. ", "ab!", "⁴", "Answer: " + ";" * 9000 + "\n"),
    ],
)
def test_no_text_takes_long(piece):
    text = piece * (100_000 // len(piece))
    began = time.process_time()
    for rule in RULES:
        extract([rule], text)
    assert time.process_time() - began < 5
