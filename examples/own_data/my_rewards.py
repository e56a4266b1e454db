"""A reward of your own, beside the built-in ones in train.toml. Run this file to try it."""

import re


def closeness(completions, answer, **columns):
    """1 for the right number, less the further away; None where no number is answered."""
    return [near(text, int(right)) for text, right in zip(completions, answer, strict=True)]


def near(completion, right):
    match = re.search(r"<answer>(\d{1,9})</answer>", completion)
    return 1 / (1 + abs(int(match[1]) - right)) if match else None


if __name__ == "__main__":
    tries = ["<answer>225</answer>", "<answer>224</answer>", "15 squared is 225"]
    print(closeness(completions=tries, answer=["225"] * 3))
