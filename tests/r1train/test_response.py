"""The parts of a response: thoughts, and the summary after them."""

import pytest

from r1train.data.response import summary, thoughts


@pytest.mark.parametrize(
    ("response", "thought", "said"),
    [
        ("<think>a</think><answer>b</answer>", "a", "b"),
        ("a</think> b", "a", "b"),
        ("</think>b", "", "b"),
        ("<think></think>", "", ""),
        ("a", "a", "a"),
        ("<think>a", "a", ""),
        ("b <think>a", "b a", ""),
        ("a</think>b <answer>c</answer> d", "a", "c"),
        (
            "</think><answer>b</answer><answer>c</answer>",
            "",
            "<answer>b</answer><answer>c</answer>",
        ),
        ("<think>a</think>b</think>c", "a b", "c"),
        ("a<think>b</think>c", "a b", "c"),
    ],
)
def test_thoughts_and_summary(response, thought, said):
    assert thoughts(response).split() == thought.split()
    assert summary(response) == said


def test_thoughts_that_the_prompt_opens_have_no_summary_until_they_end():
    assert summary("a", prompt="Q <think>\n") == ""
    assert summary("a</think>b", prompt="Q <think>\n") == "b"
