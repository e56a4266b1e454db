"""Demonstrations of files: what is said to which prompt, and of which tokens the loss is."""

import json

import pytest

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.config.sft import DemonstrationsConfig, SFTConfig
from r1train.config.task import TaskConfig
from r1train.data.demonstrations import RecordedDemonstrations, conversations
from r1train.data.problems import Problem, ProblemSet
from r1train.model.presets import mini_tokenizer
from r1train.run.runner import run
from tests.r1train.conftest import TEXTS

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WITHOUT_THOUGHTS = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
NONE = ProblemSet([], ())
SYSTEM = {"role": "system", "content": "s"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def tokenizer():
    return mini_tokenizer(TEXTS)


@pytest.fixture
def load(tmp_path, tokenizer):
    """Demonstrations of rows; all that a section may say is an option."""

    def of(
        *rows, template="plain", chat=CHATML, positions=None, batch_size=2, heldout=NONE, **options
    ):
        path = tmp_path / "demonstrations.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokenizer.chat_template = chat
        dataset = DemonstrationsConfig(path=str(path), **options)
        config = SFTConfig(datasets=(dataset,), batch_size=batch_size)
        task = TaskConfig(
            prompt_template=template, system_prompt="" if template == "chat" else None
        )
        return RecordedDemonstrations(
            config, task, tokenizer, heldout=heldout, positions=positions, seed=0
        )

    of.decode = tokenizer.decode
    return of


def texts(load, demonstration):
    """Prompt, completion, and what of it is learnt."""
    learned = [
        token
        for token, counts in zip(demonstration.completion, demonstration.learned, strict=True)
        if counts
    ]
    return tuple(map(load.decode, (demonstration.prompt, demonstration.completion, learned)))


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"prompt": "2 + 2?", "completion": "4"}, {}),
        ({"question": "2 + 2?", "completion": "4<eos>"}, {}),
        ({"q": [user("2 + 2?")], "a": [assistant("4")]},
         {"prompt_field": "q", "completion_field": "a"}),
        ({"messages": [user("2 + 2?"), assistant("4")]}, {}),
        ({"turns": [SYSTEM, user("2 + 2?"), assistant("4")]}, {"messages_field": "turns"}),
        ({"prompt": "2 + 2?", "completion": "4", "question": None, "messages": None}, {}),
        ({"messages": [user("2 + 2?"), assistant("4")], "prompt": None, "completion": None}, {}),
        ({"prompt": "2 + 2?", "completion": "4<eos>\n"}, {}),
    ],
)  # fmt: skip
def test_a_prompt_and_its_completion(load, row, options):
    (one,) = load(row, **options).batch(0)[:1]
    assert texts(load, one) == ("User: 2 + 2? Assistant:", "4<eos>", "4<eos>")


def test_the_chat_template_renders_prompts_alone(load):
    """What it would drop of the assistant's text is what is to be learnt."""
    row = {"messages": [user("q"), assistant("<think>t</think>5")]}
    (one,) = load(row, template="chat", chat=WITHOUT_THOUGHTS, batch_size=1).batch(0)
    assert texts(load, one)[:2] == ("<|user|>q<eos><|assistant|>", "<think>t</think>5<eos>")


def test_a_prompt_that_opens_the_thoughts_is_not_followed_by_another_tag(load):
    row = {"prompt": "q", "completion": "<think>\nt</think>5"}
    (one,) = load(row, template="{question}<think>\n", batch_size=1).batch(0)
    assert texts(load, one)[:2] == ("q<think>\n", "t</think>5<eos>")


def test_one_turn_or_all_of_them_are_learnt(load):
    row = {"messages": [SYSTEM, user("a"), assistant("1"), user("b"), assistant("2")]}
    (one,) = load(row, template="chat", batch_size=1).batch(0)
    before = "<|system|>s<eos><|user|>a<eos><|assistant|>"
    between = "<|user|>b<eos><|assistant|>"
    assert texts(load, one) == (f"{before}1<eos>{between}", "2<eos>", "2<eos>")
    (one,) = load(row, template="chat", batch_size=1, learned_turns="all").batch(0)
    assert texts(load, one) == (before, f"1<eos>{between}2<eos>", "1<eos>2<eos>")


def test_nothing_is_learnt_after_the_end_of_a_turn(load):
    """Of what was written by a chat template, which may put a newline behind the end, neither."""
    chat = CHATML.replace("<eos>", "<eos>\n")
    row = {"messages": [user("a"), assistant("1<eos>\n"), user("b"), assistant("2<eos>\n")]}
    (one,) = load(row, template="chat", chat=chat, batch_size=1, learned_turns="all").batch(0)
    between = "\n<|user|>b<eos>\n<|assistant|>"
    assert texts(load, one)[1:] == (f"1<eos>{between}2<eos>", "1<eos>2<eos>")


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({"prompt": "q"}, {}, 'no "completion"; its keys are "prompt".*completion_field'),
        ({"prompt": "q", "completion": 4}, {}, "the completion is 4: expected text"),
        ({"prompt": "q", "completion": [user("4")]}, {}, "the completion is .*of the assistant"),
        ({"prompt": "q", "completion": " "}, {}, "the assistant says nothing"),
        ({"prompt": "", "completion": "4"}, {}, "the question is empty"),
        ({"messages": [user("q")]}, {}, r"the prompt is \[\]"),
        ({"messages": [user("q"), user("q")]}, {}, "the last message is the user's"),
        ({"messages": [assistant("0"), user("q"), assistant("4")]},
         {"template": "chat", "learned_turns": "all"},
         "the assistant speaks before the user.*learned_turns = "),
        ({"messages": [SYSTEM, assistant("0"), user("q"), assistant("4")]},
         {"template": "chat", "learned_turns": "all"}, "the assistant speaks before the user"),
        ({"messages": [SYSTEM, assistant("4")]}, {}, "the last message is the system's"),
        ({"prompt": "q", "completion": "4<eos> 5"}, {}, "the assistant goes on after <eos>"),
        ({"messages": "q"}, {}, '"messages" is "q": expected messages'),
        ({"messages": [user("a"), assistant("1"), user("b"), assistant("2")]}, {},
         "a conversation of several turns needs task.prompt_template = 'chat'"),
        ({"messages": [user("a"), assistant("<think>1</think>"), user("b"), assistant("2")]},
         {"template": "chat", "chat": WITHOUT_THOUGHTS, "learned_turns": "all"},
         "the chat template does not repeat the assistant's earlier turns"),
        ({"prompt": "q", "completion": "4 " * 30}, {"positions": 40},
         r"it has \d+ tokens, and the model 40 positions"),
    ],
)  # fmt: skip
def test_what_is_no_demonstration_is_an_error_with_its_line(load, caplog, row, options, reason):
    good = {"prompt": "q", "completion": "a"}
    with pytest.raises(ConfigError, match=rf"demonstrations\.jsonl, line 2: {reason}"):
        load(good, row, **options)
    kept = load(good, row, on_bad_row="skip", **options)
    assert len(kept) == 1
    assert "line 2: 1 of 2 rows are skipped" in caplog.text


def test_an_epoch_has_every_demonstration_once_and_steps_keep_nothing(load):
    rows = [{"prompt": "q", "completion": str(i)} for i in range(5)]
    demonstrations = load(*rows)
    drawn = [d.where for step in range(5) for d in demonstrations.batch(step)]
    assert len(set(drawn[:5])) == len(set(drawn[5:])) == 5
    assert [d.where for d in load(*rows).batch(3)] == drawn[6:8]


def test_what_is_held_out_is_not_learnt(load, caplog):
    """The same question with a system message or without, and at any turn that is learnt."""
    asked = (("system", "s"), ("user", "b"))
    heldout = ProblemSet(
        [Problem("a", 0, "What is  2 + 2?", "4"), Problem("a", 1, "b", "2", messages=asked)], ()
    )
    rows = [
        {"prompt": "c", "completion": "4"},
        {"prompt": "What is 2 + 2?", "completion": "4"},
        {"messages": [SYSTEM, user("What is 2 + 2?"), assistant("4")]},
        {"messages": [user("a"), assistant("1"), user("b"), assistant("2")]},
        {"messages": [user("b"), assistant("2"), user("a"), assistant("1")]},
    ]
    options = {"template": "chat", "heldout": heldout}
    assert len(load(*rows, learned_turns="all", **options)) == 1
    assert "lines 2, 3, 4, 5: questions that are held out are left out" in caplog.text
    assert len(load(*rows, **options)) == 2  # of the last row, only what is not held out is learnt
    with pytest.raises(ConfigError, match=r"jsonl: all demonstrations are of held-out questions"):
        load(*rows[1:4], **options)


def test_conversations_are_the_demonstrations_that_would_be_taken(tmp_path, tokenizer, caplog):
    heldout = ProblemSet([Problem("a", 0, "held", "4")], ())
    path = tmp_path / "general.jsonl"
    rows = [{"prompt": "held", "completion": "4"}, {"prompt": "b", "completion": "5<eos>"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset, task = DemonstrationsConfig(path=str(path)), TaskConfig(prompt_template="plain")
    found = conversations(dataset, task, tokenizer, heldout=heldout, positions=None)
    assert list(found) == [(("user", "b"), ("assistant", "5"))]
    assert "questions that are held out are left out" in caplog.text


def test_files_are_mixed_by_weight(tmp_path, tokenizer):
    for name, count in (("a", 4), ("b", 40)):
        line = json.dumps({"prompt": name, "completion": "1"})
        (tmp_path / f"{name}.jsonl").write_text(f"{line}\n" * count)

    def size(*weights):
        datasets = tuple(
            DemonstrationsConfig(path=str(tmp_path / f"{name}.jsonl"), weight=weight)
            for name, weight in zip("ab", weights, strict=True)
        )
        task = TaskConfig(prompt_template="plain")
        return len(
            RecordedDemonstrations(
                SFTConfig(datasets=datasets), task, tokenizer, heldout=NONE, positions=None, seed=0
            )
        )

    assert size(None, None) == 44
    assert size(1, 2) == 12


def test_a_run_learns_from_a_file(config, tmp_path):
    path = tmp_path / "demonstrations.jsonl"
    answer = "<think>sum</think><answer>7</answer>"
    path.write_text(json.dumps({"prompt": "What is 3 + 4?", "completion": answer}) + "\n")
    run(config('stages=["sft"]', f'sft.datasets=[{{path="{path}"}}]', "sft.max_steps=8"))
    lines = (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    losses = [r["loss"] for line in lines if "loss" in (r := json.loads(line))]
    assert losses[-1] < losses[0] / 2


def test_a_run_does_not_learn_from_what_it_holds_out(config, tmp_path, caplog):
    """Whatever part of that is evaluated."""
    path, demonstrations = tmp_path / "task.jsonl", tmp_path / "demonstrations.jsonl"
    rows = [{"prompt": f"What is 0 + {i}?", "answer": i, "completion": str(i)} for i in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    demonstrations.write_text(text)
    run(
        config(
            'stages=["sft"]',
            f'task.datasets=[{{path="{path}"}}]',
            "task.train_size=16",
            "task.heldout_size=4",
            f'sft.datasets=[{{path="{demonstrations}"}}]',
            "sft.max_steps=1",
            "eval.limit=1",
        )
    )
    (warning,) = [text for text in caplog.messages if "held out" in text]
    assert warning.startswith(f"{demonstrations}, lines ")
    assert warning.count(",") == 4  # four rows


def test_a_system_prompt_needs_the_chat_template():
    datasets = (DemonstrationsConfig(path="a.jsonl", system_prompt="s"),)
    with pytest.raises(ConfigError, match="a system_prompt needs"):
        Config(sft=SFTConfig(datasets=datasets))
