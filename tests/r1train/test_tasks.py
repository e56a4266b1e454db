import pickle

import pytest

from r1train.config.schema import ConfigError
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.problems import load_problems
from r1train.data.prompts import R1_ZERO_INSTRUCTION, opens_think, render_prompt
from r1train.data.sources import gym
from r1train.rewards.verifiers import Verifier

SMALL = DatasetConfig(
    name="chain_sum", params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
)  # 200 different questions
LARGE = DatasetConfig(name="chain_sum")


def questions(problems):
    return [problem.question for problem in problems]


def test_train_and_heldout_are_distinct_and_disjoint():
    config = TaskConfig(datasets=(SMALL,), train_size=150, heldout_size=50)
    train, heldout = load_problems(config, seed=0)  # all there are
    assert (len(train), len(heldout)) == (150, 50)
    assert len(set(questions(train) + questions(heldout))) == 200


def test_sources_that_overlap_share_no_question():
    config = TaskConfig(datasets=(SMALL, SMALL), train_size=100, heldout_size=50)
    train, heldout = load_problems(config, seed=0)
    assert len(set(questions(train) + questions(heldout))) == 150


def test_the_seed_decides_the_problems():
    config = TaskConfig(datasets=(LARGE,), train_size=20, heldout_size=10)
    first, again, other = (load_problems(config, seed) for seed in (1, 1, 2))
    assert questions(first[0]) == questions(again[0])
    assert questions(first[1]) == questions(again[1])
    assert questions(first[0]) != questions(other[0])


def test_too_few_distinct_problems():
    config = TaskConfig(datasets=(SMALL,), train_size=150, heldout_size=51)
    with pytest.raises(ConfigError, match=r"201 distinct problems are needed.*200 were found"):
        load_problems(config, seed=0)


def test_weights_set_the_mixture():
    leg = DatasetConfig(name="leg_counting", weight=3)
    config = TaskConfig(datasets=(LARGE, leg), train_size=41, heldout_size=8)
    train, heldout = load_problems(config, seed=0)
    assert sum(p.task == "leg_counting" for p in train) == 31
    assert sum(p.task == "leg_counting" for p in heldout) == 6
    assert train[0].task != train[1].task or train[1].task != train[2].task  # and shuffled


def test_each_dataset_verifies_its_own_answers():
    leg = DatasetConfig(name="leg_counting")
    config = TaskConfig(datasets=(LARGE, leg), train_size=8, heldout_size=2)
    train, _ = load_problems(config, seed=0)
    assert all(Verifier(train.sources)(problem.answer, problem) == 1 for problem in train)
    assert all(Verifier(train.sources)("-77777", problem) == 0 for problem in train)
    assert all(Verifier(train.sources)(answer, train[0]) == 0 for answer in (None, "", "  "))


def test_a_verifier_travels_to_another_process():
    train, _ = load_problems(TaskConfig(datasets=(LARGE,), train_size=4, heldout_size=1), seed=0)
    verifier, problem = pickle.loads(pickle.dumps((Verifier(train.sources), train[0])))
    assert verifier(problem.answer, problem) == 1


def test_a_slice_is_a_problem_set():
    train, _ = load_problems(TaskConfig(datasets=(LARGE,), train_size=4, heldout_size=1), seed=0)
    assert questions(train[:2]) == questions(train)[:2]
    assert Verifier(train[:2].sources)(train[0].answer, train[0]) == 1


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (DatasetConfig(name="chain_sun"), "'chain_sun': did you mean 'chain_sum'"),
        (DatasetConfig(name="chain_sum", params={"terms": 2}), "refuses its params.*'terms'"),
        (DatasetConfig(name="chain_sum", params={"min_terms": 0}), "min_terms must be positive"),
    ],
)
def test_a_source_that_cannot_be_used(dataset, expected):
    with pytest.raises(ConfigError, match=expected):
        load_problems(TaskConfig(datasets=(dataset,)), seed=0)


def test_a_generator_that_fails_is_named(monkeypatch):
    class Fails:
        def __getitem__(self, index):
            raise ZeroDivisionError("no digits")

    monkeypatch.setattr(gym, "create", lambda *_: Fails())
    with pytest.raises(
        ConfigError, match=r"'chain_sum' cannot make .*: ZeroDivisionError: no digi"
    ):
        load_problems(TaskConfig(datasets=(LARGE,)), seed=0)


def test_prompts():
    prompt = render_prompt("What is {1+1}?", "r1-zero")
    assert prompt.startswith("A conversation between User and Assistant.")
    assert prompt.endswith("User: What is {1+1}? Assistant:")
    assert render_prompt("Q", "plain") == "User: Q Assistant:"
    assert opens_think(render_prompt("Q", "{question}\n<think>\n"))
    assert not opens_think(prompt)


def test_chat_prompt_uses_the_tokenizers_template():
    class Tokenizer:
        chat_template = "set"

        def apply_chat_template(self, messages, tokenize, add_generation_prompt):
            assert not tokenize
            assert add_generation_prompt
            return "|".join(f"{m['role']}:{m['content'][:14]}" for m in messages)

    assert render_prompt("Q", "chat", Tokenizer()) == "system:A conversation|user:Q"
    Tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="chat"):
        render_prompt("Q", "chat", Tokenizer())


SYSTEM_AND_USER = (("system", "Be brief."), ("user", "Q"))


class Template:
    """A tokenizer that has only a chat template: a function of the messages."""

    chat_template = "set"

    def __init__(self, render):
        self.render = render

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return self.render([(m["role"], m["content"]) for m in messages])


def refuses_system(messages):
    if messages[0][0] == "system":
        raise RuntimeError("System role not supported")
    return drops_system(messages)


def drops_system(messages):
    return "".join(f"[{role}]{text}" for role, text in messages if role != "system")


@pytest.mark.parametrize("render", [refuses_system, drops_system])
def test_a_template_without_a_system_role_has_the_instruction_in_the_question(render):
    text = render_prompt("Q", "chat", Template(render))
    assert text == f"[user]{R1_ZERO_INSTRUCTION}\n\nQ"
    assert render_prompt(SYSTEM_AND_USER, "chat", Template(render)) == "[user]Be brief.\n\nQ"


def test_a_template_that_fails_says_why():
    def fails(messages):
        raise KeyError("bos")

    with pytest.raises(ConfigError, match=r"system, user: KeyError: 'bos'.*plain"):
        render_prompt("Q", "chat", Template(fails))


def test_a_conversation_keeps_its_own_system_message():
    def joins(messages):
        return "|".join(f"{role}:{text}" for role, text in messages)

    text = render_prompt(SYSTEM_AND_USER, "chat", Template(joins))
    assert text == "system:Be brief.|user:Q"
    turns = (("user", "1"), ("assistant", "2"), ("user", "3"))
    text = render_prompt(turns, "chat", Template(joins))
    assert text == f"system:{R1_ZERO_INSTRUCTION}|user:1|assistant:2|user:3"
    assert render_prompt(turns, "plain") == "User: 3 Assistant:"
