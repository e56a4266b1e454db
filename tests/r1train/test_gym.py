"""reasoning-gym's verifiers: what they credit, our stricter checks, and the probing of both."""

import json

import pytest

from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.rewards.accuracy import AccuracyReward
from r1train.rewards.gym import create, score
from r1train.rewards.gym_checks import CHECKS, SHAPES
from r1train.rewards.pool.pool import Outcome
from r1train.rewards.probing import NONSENSE, nonsense, probe
from r1train.rewards.verifiers import Verifier


class Pool:
    """Runs a verifier in this process, and counts its answers."""

    def __init__(self, verifier):
        self.verifier, self.answers = verifier, []

    def run(self, jobs):
        self.answers += [answer for answer, _ in jobs]
        return [self.outcome(*job) for job in jobs]

    def outcome(self, answer, problem):
        try:
            return Outcome(self.verifier(answer, problem))
        except Exception as error:
            return Outcome(0.0, "error", str(error))


def problems(name, count=3, seed=0):
    items = create(name, {"size": count, "seed": seed})
    entries = [items[i] for i in range(count)]
    return [
        Problem(name, i, e["question"], e["answer"] or "", e["metadata"])
        for i, e in enumerate(entries)
    ]


def problem_set(name):
    return ProblemSet(problems(name), (DatasetConfig(name=name),))


@pytest.mark.parametrize("name", [*CHECKS, *SHAPES])
def test_what_was_credited_is_nonsense_and_references_are_right(name):
    verifier = Verifier((DatasetConfig(name=name),))
    (problem,) = problems(name, 1)
    assert verifier(problem.answer, problem) == float(problem.answer != "")  # two have none
    probe(Pool(verifier), ProblemSet([problem], verifier.datasets))


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("game_of_life_halting", ["{}", "{}."], ["anything", "0", ""]),
        ("complex_arithmetic", ["{}", "({})"], ["nan", "inf", "nan + nani", "{} + 1"]),
        ("fraction_simplification", ["{}", "${}$"], ["{} vs 1", "{}, 1", "1 {}"]),
        ("gsm_symbolic", ["{}", "{}.0", "{} apples"], ["{} 1", "not {}", "1 {}"]),
        ("knights_knaves", ["{}"], ["not {}", "{} {}", "{} or not"]),
        ("word_sorting", ["{}"], ["{}, 1", "{}, a"]),
        ("calendar_arithmetic", ["{}", "{}."], ["{} or not", "{} {}"]),
        ("decimal_arithmetic", ["{}", "{}0"], ["{}9", "0"]),
        ("figlet_font", ["{}"], ["{}ing", "{}{}"]),
        ("spell_backward", ["{}"], ["{}a", "{}aaaaaaaaa"]),
        ("simple_integration", ["{}", "{} + 7"], ["{} # or not", "{} if True else 0"]),
        ("polynomial_multiplication", ["{}"], ["{} if True else 0", "{} # 0", "expand({})"]),
        ("tower_of_hanoi", ["{}", "{}\n"], ["not {}", "{} or not", "{}\nDone"]),
        ("cryptarithm", ["{}"], ["{}, {}", "{},"]),
    ],
)
def test_own_checks(name, right, wrong):
    (problem,) = problems(name, 1)
    verifier = Verifier((DatasetConfig(name=name),))
    for text in right:
        assert verifier(text.replace("{}", problem.answer.strip("$")), problem) == 1
    for text in wrong:
        assert verifier(text.replace("{}", problem.answer), problem) < 1


def entry(answer="", **metadata):
    return {"question": "?", "answer": answer, "metadata": metadata}


def test_a_probability_is_exact_or_has_four_digits():
    flips = entry("0.003173828125", rational={"numerator": 13, "denominator": 4096})
    right = ("13/4096", "26/8192", "0.003173828125", "0.003174", "0.3174%")
    wrong = ("0", "0.0", "0.003", "0.0032", "13", "1/4096", "1e-4")
    assert [score("coin_flip", {}, answer, flips) for answer in right] == [1.0] * len(right)
    assert [score("coin_flip", {}, answer, flips) for answer in wrong] == [0.0] * len(wrong)


def test_a_simplified_fraction_is_in_lowest_terms():
    fraction = entry("3/4", simplified_numerator=3, simplified_denominator=4)
    right = ("3/4", "3 / 4", r"$\frac{3}{4}$", r"\dfrac{3}{4}", r"\boxed{3/4}")
    wrong = ("6/8", "0.75", "3/4 vs 1", "3/4 3/4", "4/3", "3", "-3/4")
    name = "fraction_simplification"
    assert [score(name, {}, answer, fraction) for answer in right] == [1.0] * len(right)
    assert [score(name, {}, answer, fraction) for answer in wrong] == [0.0] * len(wrong)


def test_24_is_made_of_the_numbers_that_are_given():
    puzzle = entry(numbers=[8, 5, 1, 2])
    right = ("8*(5*1 - 2)", "8 * (5 - 2) * 1")
    wrong = (
        "8*3*1*1",
        "24",
        "8*5-2-1",
        "(8*5*1 - 2)",
        "8*(5*1 - 2)+0",
        "8**2-5",
        "__import__('os')",
    )
    assert [score("puzzle24", {}, answer, puzzle) for answer in right] == [1.0] * len(right)
    assert [score("puzzle24", {}, answer, puzzle) for answer in wrong] == [0.0] * len(wrong)


def test_a_target_is_met_exactly_by_arithmetic_alone():
    puzzle = entry(numbers=[3, 3, 1000], target=334)
    wrong = ("1000/3 + 2/3", "1000/3 + 3", "factorial(3) + 1000 + 3", "334", "3*1000/3 - 666", "3!")
    assert score("countdown", {}, "1000/3 + 2/3", entry(numbers=[2, 3, 3, 1000], target=334)) == 1
    assert [score("countdown", {}, answer, puzzle) for answer in wrong] == [0.0] * len(wrong)


def test_lists_and_grids_of_numbers_are_the_same_throughout():
    numbers = entry("['-3.5', '2.0', '10.25']", direction="ascending")
    right = ("['-3.5', '2.0', '10.25']", "[-3.5, 2, 10.25]", '["-3.50", "2", "10.25"]')
    wrong = ("[-3, 2, 10]", "[-3.5, 2.0]", "[-3.5, 2.0, 10.25, 11]", "-3.5, 2, 10.25", "[[]]", "[")
    assert [score("number_sorting", {}, answer, numbers) for answer in right] == [1.0] * 3
    assert [score("number_sorting", {}, answer, numbers) for answer in wrong] == [0.0] * len(wrong)
    grid = entry("[[0,1],[1,0]]")
    wrong = ("[[0,1],[1,0],[1,1]]", "[[0,1,0],[1,0]]", "[[0,1]]", "[[0,1],[1,1]]", "[" * 9999)
    assert score("game_of_life", {}, "[[0, 1], [1, 0]]", grid) == 1
    assert [score("game_of_life", {}, answer, grid) for answer in wrong] == [0.0] * len(wrong)
    pool = entry("4.0 4.75\n5.33 100.0")
    wrong = ("4 4.75\n5.33 100.5", "4 4.75 5.33 100", "4 4.75\n5.33 nan", "4 4.75\n5.33 100\n1 1")
    right = ("4 4.75\n5.333 100", "4.00 4.75\n5.33 100.00\n")
    assert [score("pool_matrix", {}, answer, pool) for answer in right] == [1.0] * 2
    assert [score("pool_matrix", {}, answer, pool) for answer in wrong] == [0.0] * len(wrong)


def test_a_number_is_that_number():
    largest = entry("1234.567", solution=1234.567)
    right = ("1,234.567", "1234.567", "1234.5670", "1.234567e3")
    wrong = ("1234.57", "1234.566", "12,34.567", "1_234.567", "1234.567 or 1", "nan")
    assert [score("number_format", {}, answer, largest) for answer in right] == [1.0] * 4
    assert [score("number_format", {}, answer, largest) for answer in wrong] == [0.0] * len(wrong)
    for name in ("chain_sum", "products"):
        given = ("1,234", "1234", "+1,234.0", "1,2,3,4", "12,34", "1,234,")
        scores = [score(name, {}, answer, entry("1234")) for answer in given]
        assert scores == [1, 1, 1, 0, 0, 0]


def test_a_date_that_is_not_there_is_no_number_at_will():
    date = entry("-1", task="recurring_event_calculations")
    given = ("-1", "7", "1000", "0")
    assert [score("calendar_arithmetic", {}, answer, date) for answer in given] == [1, 0, 0, 0]


def carried(state):
    """Steps that bring every box of a boxnet to its target."""
    found = [(item, place) for place, items in state.items() for item in items]
    targets = {item: place for item, place in found if item.startswith("target_")}
    steps = []
    for box, place in found:
        target = box.replace("box_", "target_")
        if box == target:
            continue
        x, y = map(float, place.split("_"))
        goal = tuple(map(float, targets[target].split("_")))
        while (x, y) != goal:
            agent = f"Agent[{x}, {y}]"
            if x != goal[0]:
                x += 1 if x < goal[0] else -1
            else:
                y += 1 if y < goal[1] else -1
            steps.append({agent: f"move({box}, square[{x}, {y}])"})
        steps.append({f"Agent[{x}, {y}]": f"move({box}, {target})"})
    return json.dumps(steps)


def test_moves_are_moves_and_nothing_else():
    (problem,) = problems("boxnet", 1)
    verifier = Verifier((DatasetConfig(name="boxnet"),))
    steps = [
        '[{"Agent[0.5, 0.5]": "move(target_red, square[0.5, 1.5])"}]',
        '["move(box_red, target_red)"]',
        "[]" * 2,
    ]
    assert [verifier(answer, problem) for answer in steps] == [0, 0, 0]
    assert verifier(carried(problem.metadata["initial_state"]), problem) == 1
    (problem,) = problems("rush_hour", 1)
    verifier = Verifier((DatasetConfig(name="rush_hour"),))
    assert [verifier(answer, problem) for answer in ("not A+1", "A+999")] == [0, 0]
    assert [0 < verifier(answer, problem) < 1 for answer in ("A+1", "A+1, B-1")] == [True, True]


def test_partitions_are_named_once():
    whole = entry(solution=[["a", "a"], ["aa"]])
    given = ('[["a", "a"], ["aa"]]', '[["aa"], ["a", "a"]]', '[["a", "a"], ["aa"], ["aa"]]', "[]")
    assert [score("palindrome_partitioning", {}, answer, whole) for answer in given] == [1, 1, 0, 0]


def test_an_integral_is_no_answer_to_an_integral():
    problem = problems("simple_integration", 1)[0]
    verifier = Verifier((DatasetConfig(name="simple_integration"),))
    integrand, variable = problem.metadata["integrand"], problem.metadata["variable"]
    assert verifier(problem.answer, problem) == 1
    assert verifier(f"Integral({integrand}, {variable})", problem) == 0
    assert verifier(f"integrate({integrand}, {variable})", problem) == 0


def test_a_part_of_a_composite_has_its_check():
    question = entry("True", source_dataset="game_of_life_halting")
    assert score("composite", {}, "True", question) == 1
    assert score("composite", {}, "banana", question) == 0


def test_or_of_logic_is_no_hedge():
    verifier = Verifier((DatasetConfig(name="propositional_logic"),))
    problem = Problem(
        "propositional_logic", 0, "?", "", {"variables": ["P", "Q"], "premises": ["P"]}
    )
    assert verifier("(P ∨ Q)", problem) == 1
    assert verifier("(P ∧ Q)", problem) < 1


def test_a_premise_over_again_concludes_nothing():
    verifier = Verifier((DatasetConfig(name="propositional_logic"),))
    metadata = {"variables": ["P", "Q"], "premises": ["(P → Q)", "P"], "example_answer": "(P ∧ Q)"}
    problem = Problem("propositional_logic", 0, "?", "", metadata)
    for answer in ("(P ∧ Q)", "Q ∧ P", "(Q ∨ ¬P) ∧ P"):
        assert verifier(answer, problem) == 1
    copies = ("(P → Q)", "P → Q", "¬P ∨ Q", "(Q ∨ ¬P)")
    junk = ("(P → Q) ∨ is wrong", "(P ∧ Q) ∨ banana", "P ∧ Q.", "(P ∨ X)", "∨", "((P", "(" * 5000)
    assert {verifier(answer, problem) for answer in (*copies, *junk)} == {0}
    assert verifier("P∧" * 200 + "Q", problem) == 1
    assert verifier("P∧" * 300 + "Q", problem) == 0
    alone = {**metadata, "premises": ["¬P", "Q"], "example_answer": "¬P"}
    assert verifier("¬P", Problem("propositional_logic", 0, "?", "", alone)) == 1


def test_jugs_are_filled_by_moves_alone():
    (problem,) = problems("jugs", 1)
    verifier = Verifier((DatasetConfig(name="jugs"),))
    assert verifier(problem.answer, problem) == 1
    assert verifier(json.dumps(json.loads(problem.answer), indent=1), problem) == 1
    for answer in (problem.answer.replace('",', ' is wrong",', 1), f"{{{problem.answer}: 1}}"):
        assert verifier(answer, problem) == 0


def test_a_cube_is_turned_by_moves_alone():
    (problem,) = problems("rubiks_cube", 1)
    verifier = Verifier((DatasetConfig(name="rubiks_cube"),))
    right = problem.metadata["example_correct_answer"]
    for answer in (right, f"{right} U4", f"{right} U U'"):
        assert verifier(answer, problem) == 1
    for answer in (f"{right} 3is 4wrong", f"{right} 12ab", f"2no {right}", "U99999999"):
        assert verifier(answer, problem) == 0


def test_roots_may_be_joined_by_or():
    verifier = Verifier((DatasetConfig(name="polynomial_equations"),))
    problem = Problem("polynomial_equations", 0, "?", "2, 3", {})
    assert [verifier(answer, problem) for answer in ("2 or 3", "x = 3 or x = 2")] == [1, 1]
    assert [verifier(answer, problem) for answer in ("2 or 4", "2, 3 or 4")] == [0, 0]


class Credulous(Verifier):
    """Credits one answer, or all."""

    def __call__(self, answer, problem):
        return 1.0 if answer == problem.answer or answer == "banana" else 0.0


def test_a_source_that_credits_nonsense_is_refused_with_the_example():
    source = problem_set("leg_counting")
    with pytest.raises(ConfigError) as refusal:
        probe(Pool(Credulous(source.sources)), source)
    for part in ("task.datasets[0] (leg_counting)", "'banana'", source[0].answer, "question"):
        assert part in str(refusal.value)


def test_probing_a_sound_source_passes_and_tries_every_kind():
    source = problem_set("leg_counting")
    pool = Pool(Verifier(source.sources))
    probe(pool, source)
    assert set(NONSENSE) <= set(pool.answers)
    assert f"{source[0].answer} vs 1" in pool.answers


def test_nonsense_is_not_what_the_reference_says():
    assert "0" not in list(nonsense(Problem("t", 0, "?", "0.0")))
    assert "[]" not in list(nonsense(Problem("t", 0, "?", "[]")))


def test_probing_stops_where_answers_run_out_of_time():
    class Slow(Pool):
        def outcome(self, answer, problem):
            return Outcome(0.0, "timeout")

    source = problem_set("leg_counting")
    pool = Slow(Verifier(source.sources))
    probe(pool, source)
    assert len(pool.answers) == len(list(nonsense(source[0])))


def test_a_run_probes_its_sources(monkeypatch):
    from r1train.rewards import accuracy as rewards

    def refuse(pool, problems):
        raise ConfigError("nonsense")

    monkeypatch.setattr(rewards, "probe", refuse)
    stopped = []
    monkeypatch.setattr(rewards, "VerifierPool", lambda *_: StoppablePool(stopped))
    with pytest.raises(ConfigError, match="nonsense"):
        AccuracyReward(RewardConfig(), problem_set("leg_counting"))
    assert stopped == [True]


class StoppablePool:
    def __init__(self, stopped):
        self.stopped = stopped

    def __exit__(self, *_):
        self.stopped.append(True)


def test_a_score_that_is_no_number_is_an_error(monkeypatch):
    from r1train.rewards import gym

    class Dataset:
        def score_answer(self, answer, entry):
            return float("nan")

    monkeypatch.setattr(gym, "scorer", lambda *_: Dataset())
    with pytest.raises(ValueError, match="the verifier of leg_counting gave 'x' the score nan"):
        score("leg_counting", {}, "x", entry("4"))


def test_every_source_of_a_task_is_probed():
    config = TaskConfig(
        datasets=(DatasetConfig(name="leg_counting"), DatasetConfig(name="gcd")),
        train_size=4,
        heldout_size=2,
    )
    two = [*problems("leg_counting", 2), *(p for p in problems("gcd", 2))]
    two = [
        Problem(p.task, p.index, p.question, p.answer, p.metadata, i // 2)
        for i, p in enumerate(two)
    ]
    pool = Pool(Verifier(config.datasets))
    probe(pool, ProblemSet(two, config.datasets))
    assert {f"{p.answer} vs 1" for p in two} <= set(pool.answers)
