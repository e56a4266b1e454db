"""JSONL files as people have them: their encodings, fields and answers, and what is refused."""

import json

import pytest

from r1train.config.schema import ConfigError
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.problems import FileProblems, load_problems
from r1train.data.sources.jsonl import MAX_LINE_BYTES
from r1train.rewards.verifiers import Verifier

GOOD = '{"prompt": "q", "answer": 1}\n'


@pytest.fixture
def write(tmp_path):
    def to_file(content, name="problems.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def lines(count, start=0):
    rows = [{"prompt": f"What is half of {i}?", "answer": i / 2} for i in range(start, count)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(path, seed=0, template="plain", train_size=None, heldout_size=None, **options):
    dataset = DatasetConfig(path=str(path), **options)
    task = TaskConfig((dataset,), train_size, heldout_size, template)
    return load_problems(task, seed)


def read(path, **options):
    """Every problem of a file, in its order."""
    dataset = DatasetConfig(path=str(path), **options)
    problems = FileProblems(str(path), TaskConfig((dataset,), prompt_template="plain"), 0)
    return [problems[number] for number in problems.index().numbers]


def test_only_a_line_feed_ends_a_line(write):
    text = '{"prompt": "a\u2028b\u2029c\u0085d\x0b\x0c", "answer": "x\u2028y"}'
    path = write(text.replace("\x0b\x0c", "") + "\r\n" + GOOD)
    first, second = read(path)
    assert (first.question, first.answer) == ("a\u2028b\u2029c\u0085d", "x\u2028y")
    assert (first.index, second.index) == (0, 1)


def test_a_byte_order_mark_and_blank_lines_are_read_past(write):
    path = write(b"\xef\xbb\xbf" + GOOD.encode() + b"\n  \n" + GOOD.encode().rstrip())
    assert [problem.index for problem in read(path)] == [0, 3]


@pytest.mark.parametrize(
    ("literal", "answer"),
    [
        ("1e-7", "1e-7"),
        ("1.50", "1.50"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("-0.0", "-0.0"),
        ("true", "true"),
        ('"1e-07"', "1e-07"),
        ('"**72**"', "72"),
        ('"so 72\\n#### 72"', "72"),
    ],
)
def test_an_answer_keeps_the_digits_of_the_file(write, literal, answer):
    (entry,) = read(write(f'{{"prompt": "q", "answer": {literal}}}'))
    assert entry.answer == answer


def test_a_line_says_how_its_answer_is_compared(write):
    path = write(
        '{"prompt": "a", "answer": [1, 2.50], "answer_type": "set"}\n'
        '{"prompt": "b", "answer": ["x", [1, 2]]}\n'
    )
    first, second = read(path, answer_type="ordered")
    assert (first.answer, first.answer_type) == ("{1, 2.50}", "set")
    assert (second.answer, second.answer_type) == ("(x, (1, 2))", "ordered")
    train, heldout = load(path, answer_type="ordered")
    assert {problem.answer_type for problem in (*train, *heldout)} == {"set", "ordered"}


def test_fields_have_the_names_that_the_config_gives_them(write):
    assert read(write(GOOD.replace("prompt", "question")))[0].question == "q"
    path = write('{"problem": "q", "reward_model": {"ground_truth": 5}}')
    (entry,) = read(path, prompt_field="problem", answer_field="reward_model.ground_truth")
    assert (entry.question, entry.answer) == ("q", "5")
    both = write('{"prompt": "p", "question": "q", "answer": 1}')
    assert read(both, prompt_field="question")[0].question == "q"
    with pytest.raises(ConfigError, match="both there: say which with prompt_field"):
        read(both)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "expected one JSON object a line.*-c '.'"),
        ("[", r"expected one JSON object a line.*-c '\.\[\]'"),
        ('{"prompt": "a" "answer"}', "not JSON: .* at column 16"),
        ("[" * 100_000, "its JSON is nested too deeply"),
        ("[]", "expected an object"),
        ('{"prompt": "a"}', 'no "answer"; its keys are "prompt".*answer_field'),
        ('{"quest": "a", "answer": 1}', 'no "prompt"; its keys are "quest", "answer"'),
        ('{"prompt": "a", "answer": null}', "the answer is null"),
        ('{"prompt": "a", "answer": " "}', "the answer is empty"),
        (
            '{"prompt": "a", "answer": {"a": 1}}',
            "the answer is .*: expected text, a number or a list",
        ),
        (
            '{"prompt": "a", "answer": [1, 2]}',
            r'the answer is the list \[1, 2\]: add "answer_type": "set"',
        ),
        ('{"prompt": "a", "answer": NaN}', "the answer is NaN, which no answer can be equal to"),
        ('{"prompt": "a", "answer": "\\ud800"}', r"\\ud800 is half of a surrogate"),
        ('{"prompt": "\\ud800", "answer": 1}', r"\\ud800 is half of a surrogate"),
        ('{"prompt": "a", "answer": "####"}', "nothing follows the answer"),
        (
            '{"prompt": "a", "answer": 1, "answer_type": "maths"}',
            '"answer_type" is "maths": expected one of auto',
        ),
        (
            '{"prompt": "a", "answer": 1, "answer_type": []}',
            '"answer_type" is .*expected one of auto',
        ),
        ('{"prompt": "  ", "answer": 1}', "the question is empty"),
        ('{"prompt": null, "answer": 1}', "the prompt is null: expected text, or a list"),
        ('{"prompt": 5, "answer": 1}', "the prompt is 5: expected text"),
        ('{"prompt": [], "answer": 1}', r"the prompt is \[\]"),
        (
            '{"prompt": ["a"], "answer": 1}',
            'a message of the prompt is "a": expected {"role": "user"',
        ),
        (
            '{"prompt": [{"role": "assistant", "content": "a"}], "answer": 1}',
            "the last message is the assistant's",
        ),
    ],
)
def test_what_is_no_problem_is_an_error_with_its_line(write, line, reason):
    path = write(f"{GOOD}{line}\n{GOOD}{line}\n")
    expected = rf"problems\.jsonl, line 2: {reason}.* \(1 more cannot be used either: .*line 4\)"
    with pytest.raises(ConfigError, match=expected):
        load(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD.encode("utf-16"), "UTF-16: convert it.*iconv"),
        (GOOD.encode("utf-16-le"), "UTF-16"),
        (GOOD.encode() + '{"prompt": "é'.encode("latin1"), "line 2: byte 41 of .*0xe9.*iconv"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"PAR1\x15", "not a Parquet file, or damaged"),
        (b"\n\n", "empty, or all of it is blank"),
        (b"", "empty, or all of it is blank"),
        (b"x" * (MAX_LINE_BYTES + 1), "longer than 16 MiB"),
    ],
)
def test_files_of_another_kind(write, content, reason):
    with pytest.raises(ConfigError, match=rf"problems\.jsonl.*{reason}"):
        load(write(content))


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"task\.datasets\[0\]\.path = '.*absent.jsonl': no such file or folder: put",
    ):
        load(tmp_path / "absent.jsonl")


def test_a_file_is_used_whole_without_any_size(write):
    train, heldout = load(write(lines(10)))
    assert (len(train), len(heldout)) == (8, 2)  # a fifth
    assert len({problem.question for problem in (*train, *heldout)}) == 10
    train, heldout = load(write(lines(2000)))
    assert (len(train), len(heldout)) == (1744, 256)
    train, _ = load(write(lines(10)), train_size=3, heldout_size=1)
    assert len(train) == 3
    with pytest.raises(ConfigError, match=r"12 distinct problems are needed.*10 were found"):
        load(write(lines(10)), train_size=11, heldout_size=1)
    train, heldout = load(write(GOOD))
    assert (len(train), len(heldout)) == (0, 1)
    with pytest.raises(ConfigError, match=r"none of its 1 distinct problems is left.*heldout_size"):
        train.require_all()


def test_held_out_problems_do_alone_where_none_is_trained_on(write):
    path = str(write(lines(4)))
    train, heldout = load(path, heldout_path=path)
    assert (len(train), len(heldout)) == (0, 4)
    with pytest.raises(ConfigError, match=r"no problem to train on.*a path with other questions"):
        train.require_all()


def test_verdicts_follow_the_file(write):
    train, heldout = load(write(lines(6)))
    problem = next(p for p in (*train, *heldout) if p.answer == "1.5")
    assert Verifier(train.sources)("3/2", problem) == 1
    assert Verifier(train.sources)("2", problem) == 0


def test_several_files_are_mixed_by_size_or_by_weight(write):
    small, large = write(lines(10), "a.jsonl"), write(lines(130, 30), "b.jsonl")

    def sizes(*weights, **options):
        paths = zip((small, large), weights, strict=True)
        datasets = tuple(DatasetConfig(jsonl=str(p), weight=w) for p, w in paths)
        train, _ = load_problems(TaskConfig(datasets, **options), 0)
        return [sum(p.source == source for p in train) for source in (0, 1)]

    assert sizes(None, None) == [8, 80]
    assert sizes(1, 2) == [8, 16]
    assert sizes(1, 1, train_size=12, heldout_size=2) == [6, 6]


def test_a_file_beside_a_generator(write):
    datasets = (
        DatasetConfig(jsonl=str(write(lines(10)))),
        DatasetConfig(name="chain_sum", weight=3),
    )
    train, heldout = load_problems(TaskConfig(datasets), 0)
    assert [sum(p.source == source for p in train) for source in (0, 1)] == [8, 24]
    assert [sum(p.source == source for p in heldout) for source in (0, 1)] == [2, 192]


def test_a_held_out_file_of_its_own(write, caplog):
    heldout_path = write(lines(4), "heldout.jsonl")
    train, heldout = load(write(lines(9)), heldout_jsonl=str(heldout_path))
    assert {p.index for p in heldout} == {0, 1, 2, 3}
    assert {p.index for p in train} == {4, 5, 6, 7, 8}  # what is held out is not trained on
    assert "lines 1, 2, 3, 4: questions that are held out are left out" in caplog.text
    _, heldout = load(write(lines(9)), heldout_jsonl=str(heldout_path), heldout_size=2)
    assert len(heldout) == 2
    with pytest.raises(ConfigError, match=r"heldout\.jsonl.*5 distinct problems.*held-out"):
        load(write(lines(9)), heldout_jsonl=str(heldout_path), heldout_size=5)


def test_questions_that_repeat_are_reported(write, caplog):
    path = write(lines(5) + lines(1) + '{"prompt": "What is  half of 1?", "answer": 7}\n')
    train, heldout = load(path)
    assert len({*train, *heldout}) == 5
    assert "line 6: repeated questions are left out" in caplog.text
    assert "line 7: repeated questions with another answer" in caplog.text


def conversation(*messages):
    named = [{"role": role, "content": content} for role, content in messages]
    return json.dumps({"prompt": named, "answer": 1}) + "\n"


def test_chat_messages(write, caplog):
    text = [{"type": "text", "text": "q"}, {"type": "text", "text": "3"}]
    path = write(
        conversation(("user", "q1"))
        + conversation(("system", "s"), ("user", "q2"))
        + conversation(("system", "s"), ("user", text))
    )
    problems = sorted((p for part in load(path) for p in part), key=lambda p: p.index)
    assert [p.prompt for p in problems] == ["q1", "q2", "q3"]  # the template has an instruction
    assert "lines 2, 3: system messages are replaced" in caplog.text
    problems = sorted(
        (p for part in load(path, template="chat") for p in part), key=lambda p: p.index
    )
    assert [p.question for p in problems] == ["q1", "q2", "q3"]
    assert problems[0].prompt == "q1"
    assert problems[2].prompt == (("system", "s"), ("user", "q3"))


def test_a_question_is_the_same_with_a_system_message_of_its_own_or_without(write, caplog):
    system, plain = conversation(("system", "s"), ("user", "q1")), conversation(("user", "q1"))
    more = conversation(("user", "q2")) + conversation(("user", "q3"))
    train, heldout = load(write(system + plain + more), template="chat")
    assert sorted(p.question for p in (*train, *heldout)) == ["q1", "q2", "q3"]
    assert "line 2: repeated questions are left out" in caplog.text
    train, _ = load(
        write(plain + more), template="chat", heldout_path=str(write(system, "held.jsonl"))
    )
    assert sorted(p.question for p in train) == ["q2", "q3"]


def test_a_conversation_of_several_turns_needs_the_chat_template(write):
    path = write(GOOD + conversation(("user", "a"), ("assistant", "b"), ("user", "c")))
    with pytest.raises(ConfigError, match=r"line 2: a conversation of several turns.*'chat'"):
        load(path)
    train, heldout = load(path, template="chat")
    assert {len(p.messages) for p in (*train, *heldout)} == {0, 3}


@pytest.mark.parametrize("option", ["heldout_path", "prompt_field", "answer_field", "answer_type"])
def test_options_of_files_need_a_file(option):
    with pytest.raises(ConfigError, match=f"task.datasets.{option} = 'set': is for a file"):
        DatasetConfig(name="chain_sum", **{option: "set"})
