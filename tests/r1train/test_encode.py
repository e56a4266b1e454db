from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from r1train.data.encode import decode_completions
from r1train.data.prompts import TAGS
from r1train.rewards.accuracy import extract_answer
from r1train.rewards.format import format_reward

WORDS = ["<pad>", "<eos>", "<bos>", "<|im_end|>", "<|tool|>", *TAGS, "so", "4", "[UNK]"]
IDS = {word: i for i, word in enumerate(WORDS)}


def tokenizer(*special):
    """One whose tags are special tokens, or not, and which has others that end a turn."""
    model = Tokenizer(WordLevel(IDS, unk_token="[UNK]"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="[UNK]",
        additional_special_tokens=["<|im_end|>", "<|tool|>", *special],
    )


def decode(tokens, *special):
    (text,) = decode_completions(tokenizer(*special), [[IDS[token] for token in tokens.split()]])
    return text


ANSWER = "<think> so </think> <answer> 4 </answer>"


def test_tags_that_are_special_tokens_stay():
    for special in (TAGS, ()):
        text = decode(f"{ANSWER} <eos>", *special)
        assert format_reward(text) == 1
        assert extract_answer(text) == "4"


def test_marks_of_the_beginning_and_the_end_go():
    assert decode("<bos> so <eos> <pad> <pad>", *TAGS) == "so"
    assert format_reward(decode(f"{ANSWER} <|im_end|>", *TAGS)) == 1  # what the model stopped at
    assert format_reward(decode(ANSWER, *TAGS)) == 1  # cut off behind the last tag


def test_other_special_tokens_are_text():
    assert "<|tool|>" in decode("so <|tool|> 4 <eos>", *TAGS)
    assert format_reward(decode(f"<|tool|> {ANSWER} <eos>", *TAGS)) == 0


def test_an_empty_completion():
    assert decode_completions(tokenizer(*TAGS), [[], [IDS["<eos>"]]]) == ["", ""]
