import json
from pathlib import Path

import pytest

from r1train.config.schema import ConfigError
from r1train.suite.formats import FORMATS
from r1train.suite.formats.rows import read_rows
from r1train.suite.questions import load
from r1train.suite.specs import benchmarks, chosen

DATA = Path(__file__).parent / "data"


def read(name, data=DATA, limit=None):
    return load(benchmarks()[name], data, limit)


def lines(path, *rows):
    """A file of JSONL in a new folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(path, *rows):
    """A Parquet file in a new folder."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


REFERENCES = {
    "aime_2024": ["041", "015"],
    "math_500": [r"\frac{3}{4}", "-3, 3", r"5\sqrt{2}"],
    "cnmo_2024": ["20"],
    "amc": ["90"],
    "gsm8k": ["18", "1200"],
    "mmlu": ["D", "A", "B"],
    "mmlu_redux": ["C", "B"],  # the question without a clear answer is left out
    "mmlu_pro": ["F"],
    "c_eval": ["A", "B"],
    "cluewsc": ["A", "B"],
    "drop": [[["9"], ["nine"]], [["Ida Holm"]]],
    "arena_hard": [{"answer": "wc -l file"}],
    "alpaca_eval": [
        {"answer": "A pot for pencils.", "difficulty": None, "gamed": []},
        {"answer": "May this morning be a good one.", "difficulty": None, "gamed": []},
    ],
}


@pytest.mark.parametrize("name", REFERENCES)
def test_published_rows_become_questions_with_their_answers(name):
    assert [question.reference for question in read(name)] == REFERENCES[name]


@pytest.mark.parametrize("name", [path.name for path in sorted(DATA.iterdir())])
def test_a_prompt_has_all_that_its_template_names(name):
    benchmark = benchmarks()[name]
    for question in read(name):
        prompt = question.prompt(benchmark.prompt)
        assert question.text in prompt
        for choice in question.choices:
            assert choice in prompt
        template = benchmark.prompt.replace("{question}", "")
        named = [part.partition("}")[0] for part in template.split("{")[1:]]
        slots = [part for part in named if part.isidentifier()]
        assert not any(f"{{{slot}}}" in prompt.replace(question.text, "") for slot in slots)


def test_nothing_of_a_question_is_taken_for_a_slot():
    (question, *_) = read("gpqa_diamond")
    question.slots["question"] = "What is {A} in {question}?"
    assert "What is {A} in {question}?" in question.prompt(benchmarks()["gpqa_diamond"].prompt)


def test_gpqa_permutes_its_choices_by_the_question_alone():
    first, second = read("gpqa_diamond")
    assert first.choices["ABCD".index(first.reference)] == "Nitrogen"
    assert second.choices["ABCD".index(second.reference)] == "3.3"
    assert read("gpqa_diamond", limit=1)[0] in (first, second)


def test_drop_is_asked_after_three_examples_of_train():
    for question in read("drop"):
        assert question.slots["examples"].count("Answer: ") == 3
        assert "Answer:" not in question.text
    assert "Answer: Ole, Per" in " ".join(one.slots["examples"] for one in read("drop"))


def test_drop_as_its_authors_publish_it(tmp_path):
    folder = tmp_path / "drop"
    folder.mkdir()
    pair = """{"p1": {"passage": "Two mills burnt on 3 May.", "qa_pairs": [
        {"question": "When?", "query_id": "q1",
         "answer": {"number": "", "date": {"day": "3", "month": "May", "year": ""}, "spans": []},
         "validated_answers": [{"number": "", "date": {}, "spans": ["3 May", "May"]}]}]}}"""
    for split in ("train", "dev"):
        (folder / f"drop_dataset_{split}.json").write_text(pair)
    (question,) = read("drop", tmp_path)
    assert question.text == "Passage: Two mills burnt on 3 May.\nQuestion: When?"
    assert question.reference == [["3 May"], ["3 May", "May"]]


def test_drop_is_prompted_as_simple_evals_does():
    question = read("drop")[0]
    prompt = question.prompt(benchmarks()["drop"].prompt)
    assert prompt.split("\n")[:3] == [
        "You will be asked to read a passage and answer a question. Some examples of passages and "
        "Q&A are provided below.",
        "",
        "# Examples",
    ]
    for shot in question.slots["examples"].split("\n\n"):
        dashes, passage, asked, answer = shot.split("\n")
        assert (dashes, passage[:9], asked[:10], answer[:8]) == (
            *("---", "Passage: ", "Question: ", "Answer: "),
        )
    assert prompt.endswith(
        f"\n\n# Your Task\n\n---\n{question.text}\nAnswer:\n\nThink step by step, then write a "
        'line of the form "Answer: $ANSWER" at the end of your response.'
    )


def test_drop_has_annotators_who_give_no_answer(tmp_path):
    row = {"context": "Passage: x\nQuestion: y?\nAnswer:", "ref_text": "  1452| | 1552"}
    for split in ("train", "dev"):
        lines(tmp_path / f"drop/drop_v0_{split}.jsonl", row)
    assert read("drop", tmp_path)[0].reference == [["1452"], ["1552"]]


@pytest.mark.parametrize(
    "row",
    [
        {"ID": "2024-II-4", "Problem": "How many?", "Solution": "33.", "Answer": 33},
        {"id": 60, "problem": "How many?", "solution": "\\boxed{33}", "url": ""},
        {"origin_prompt": "How many?", "gold_answer": "33"},
    ],
)
def test_aime_as_others_copy_it(tmp_path, row):
    lines(tmp_path / "aime_2024.jsonl", row)
    (question,) = read("aime_2024", tmp_path)
    assert (question.text, question.reference) == ("How many?", "33")


def test_cnmo_is_one_file_of_its_data_set(tmp_path):
    for name in ("AMC_cn", "CNMO_cn", "CNMO_en"):
        lines(tmp_path / f"cnmo_2024/202412/{name}.jsonl", {"question": name, "answer": "$2$"})
    assert [question.text for question in read("cnmo_2024", tmp_path)] == ["CNMO_cn"]


def test_c_eval_by_subject_as_huggingface_has_it(tmp_path):
    row = {"id": 0, "question": "问", "A": "1", "B": "2", "C": "3", "D": "4", "explanation": ""}
    for subject, answer in (("law", "D"), ("logic", "B")):
        folder = tmp_path / "c_eval" / subject
        table(folder / "val-00000-of-00001.parquet", {**row, "answer": answer})
        table(folder / "test-00000-of-00001.parquet", {**row, "answer": ""})
    law, logic = read("c_eval", tmp_path)
    assert [law.reference, logic.reference] == ["D", "B"]
    assert (law.id, logic.id, logic.subject) == ("law/0", "logic/0", "logic")
    assert "以下是中国关于逻辑学考试的" in logic.prompt(benchmarks()["c_eval"].prompt)


def test_cluewsc_has_numbers_for_labels_on_huggingface(tmp_path):
    target = {"span1_text": "床", "span2_text": "它", "span1_index": 0, "span2_index": 4}
    rows = [{"idx": i, "text": "床很旧，它坏了。", "label": i, "target": target} for i in (0, 1)]
    table(tmp_path / "cluewsc/cluewsc2020/validation-00000-of-00001.parquet", *rows)
    assert [question.reference for question in read("cluewsc", tmp_path)] == ["A", "B"]


def test_what_mmlu_redux_corrects_is_a_number_or_a_letter(tmp_path):
    row = {"question": "2 + 1?", "choices": ["1", "2", "3", "4"], "answer": 0}
    corrected = [{**row, "error_type": "wrong_groundtruth", "correct_answer": one} for one in "2C"]
    lines(tmp_path / "mmlu_redux.jsonl", *corrected)
    assert [question.reference for question in read("mmlu_redux", tmp_path)] == ["C", "C"]


def test_mmlu_redux_by_subject_as_huggingface_saves_it(tmp_path):
    import pyarrow

    row = {"question": "2?", "choices": ["a", "b"], "answer": 1, "error_type": "ok"}
    for subject in ("anatomy", "virology"):
        path = tmp_path / "mmlu_redux" / subject / "data-00000-of-00001.arrow"
        path.parent.mkdir(parents=True)
        rows = pyarrow.Table.from_pylist([row])
        with pyarrow.ipc.new_stream(str(path), rows.schema) as stream:
            stream.write_table(rows)
    questions = read("mmlu_redux", tmp_path)
    assert [(q.reference, q.subject) for q in questions] == [("B", "anatomy"), ("B", "virology")]


def test_a_choice_without_text_moves_no_letter(tmp_path):
    (tmp_path / "mmlu.csv").write_text("Question,A,B,C,D,Answer,Subject\nWhich?,x,,y,z,C,law\n")
    (question,) = read("mmlu", tmp_path)
    assert (question.choices, question.reference) == (("x", "", "y", "z"), "C")


def test_ifeval_has_every_argument_on_huggingface(tmp_path):
    pytest.importorskip("lm_eval")
    from r1train.config.sections import Config
    from r1train.suite.metrics import metric_of
    from r1train.suite.metrics.base import Response

    arguments = [{"num_words": None, "num_bullets": 2}, {"num_words": None, "num_bullets": None}]
    row = {
        "key": 7,
        "prompt": "List two, without a comma.",
        "instruction_id_list": ["detectable_format:number_bullet_lists", "punctuation:no_comma"],
        "kwargs": arguments,
    }
    table(tmp_path / "ifeval.parquet", row)
    (question,) = read("ifeval", tmp_path)
    judge = metric_of(benchmarks()["ifeval"], Config())
    said = [Response(question, text, text) for text in ("* a\n* b", "* a\n* b, c", "* a")]
    assert [score.value for score in judge(said)] == [1, 0, 0]


def arena(path, *names):
    """Answers in the form of ArenaHard."""
    said = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": {"answer": path.stem}},
    ]
    lines(path, *({"uid": name, "model": path.stem, "messages": said} for name in names))


def test_two_questions_with_the_same_id_are_refused(tmp_path):
    row = {"problem": "What is 1 + 1?", "answer": "2", "unique_id": "a"}
    lines(tmp_path / "math_500.jsonl", row, {**row, "problem": "What is 2 + 2?"})
    with pytest.raises(ConfigError, match="two questions have the id 'a': each is asked once"):
        read("math_500", tmp_path)


def test_arena_hard_takes_the_baseline_of_each_category(tmp_path):
    folder = tmp_path / "arena_hard"
    kinds = {"a": "arena-hard-v0.1", "b": "hard_prompt", "c": "creative_writing"}
    rows = [{"uid": uid, "category": kind, "prompt": uid} for uid, kind in kinds.items()]
    lines(folder / "question.jsonl", *rows)
    names = ("gpt-4-0314", "gpt-4-0613", "o3-mini-2025-01-31", "gemini-2.0-flash-001")
    for name in names:
        arena(folder / f"model_answer/{name}.jsonl", *kinds)
    found = [question.reference["answer"] for question in read("arena_hard", tmp_path)]
    assert found == ["gpt-4-0314", "o3-mini-2025-01-31", "gemini-2.0-flash-001"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], r"expected model_answer/gpt-4-0314\.jsonl"),
        (["gpt-4-0613", "deepseek-r1"], r"expected model_answer/gpt-4-0314\.jsonl"),
    ],
)
def test_arena_hard_needs_its_baseline(tmp_path, files, said):
    folder = tmp_path / "arena_hard"
    lines(folder / "question.jsonl", {"uid": "a", "category": "arena-hard-v0.1", "prompt": "?"})
    for name in files:
        arena(folder / f"model_answer/{name}.jsonl", "a")
    with pytest.raises(ConfigError, match=said):
        read("arena_hard", tmp_path)


def test_alpaca_eval_with_what_its_authors_control_lengths_with(tmp_path):
    rows = [{"dataset": "koala", "instruction": "Say it.", "output": "It.", "generator": "b"}] * 2
    folder = tmp_path / "alpaca_eval"
    folder.mkdir()
    (folder / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(rows))
    (folder / "df_gamed.csv").write_text(
        "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
        "verbose,0,0.6,-1.5,0.25,False\nverbose,1,0.7,-1.0,-2.0,False\n"
        "concise,0,0.2,1.5,0.25,False\nconcise,1,0.1,0.5,-2.0,False\n"
    )
    assert [question.reference for question in read("alpaca_eval", tmp_path)] == [
        {"answer": "It.", "difficulty": 0.25, "gamed": [[0.6, -1.5], [0.2, 1.5]]},
        {"answer": "It.", "difficulty": -2.0, "gamed": [[0.7, -1.0], [0.1, 0.5]]},
    ]


def test_multiple_choice_is_prompted_as_its_authors_do():
    (question,) = read("mmlu_pro")
    prompt = question.prompt(benchmarks()["mmlu_pro"].prompt)
    assert "\n\nQuestion:\nHow many edges does a cube have?\nOptions:\nA. 2\nB. 4\n" in prompt
    assert prompt.endswith("\nJ. 20\nAnswer: Let's think step by step.")
    prompt = read("mmlu_redux")[0].prompt(benchmarks()["mmlu_redux"].prompt)
    assert "\n\n## Choices:\n\n- (A) 4\n- (B) 6\n- (C) 7\n- (D) 9\n\n## Instruction\n\n" in prompt


def test_math_as_simple_evals_publishes_it(tmp_path):
    folder = tmp_path / "math_500"
    folder.mkdir()
    (folder / "math_500_test.csv").write_text("Question,Answer\nHalf of $1$?,\\frac12\n")
    (question,) = read("math_500", tmp_path)
    assert (question.text, question.reference) == ("Half of $1$?", "\\frac12")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mmlu.csv", ",Question,A,B,C,D,Answer,Subject\n0,2 + 2?,3,4,5,6,B,arithmetic\n"),
        ("mmlu.jsonl", '{"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 1}\n'),
        ("mmlu.json", '[{"question": "2 + 2?", "choices": ["3", "4"], "answer": "4"}]'),
    ],
)
def test_mmlu_in_its_other_shapes(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (question,) = read("mmlu", tmp_path)
    assert (question.text, question.reference) == ("2 + 2?", "B")


def test_parquet_and_gzip_are_read(tmp_path):
    import gzip

    table(tmp_path / "amc.parquet", {"problem": "1 + 1?", "answer": 2.0, "id": 5})
    assert [(q.id, q.reference) for q in read("amc", tmp_path)] == [("5", "2")]
    with gzip.open(tmp_path / "gsm8k.jsonl.gz", "wt") as file:
        file.write('{"question": "1 + 1?", "answer": "#### 2"}\n')
    assert [q.reference for q in read("gsm8k", tmp_path)] == ["2"]


def test_lines_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff\n{"a": 1}\n\n{"a": "\u2028"}\nbroken\n', encoding="utf-8")
    rows = read_rows(path)
    assert [next(rows), next(rows)] == [{"a": 1}, {"a": "\u2028"}]
    with pytest.raises(ConfigError, match="neither JSON nor JSONL"):
        next(rows)


def test_a_file_that_breaks_off_is_named(tmp_path):
    import gzip

    path = tmp_path / "gsm8k.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"question": "1?", "answer": "#### 1"}\n' * 9)[:-12])
    with pytest.raises(ConfigError, match="cannot be read"):
        read("gsm8k", tmp_path)


def test_a_limit_draws_the_same_questions_every_time():
    assert read("math_500", limit=2) == read("math_500", limit=2)
    assert len(read("math_500", limit=2)) == 2
    assert read("math_500", limit=9) == read("math_500")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gsm8k.jsonl", '{"question": "1?"}\n', "none of answer; its keys are question"),
        ("gsm8k.jsonl", "[1, 2]\n", "expected an object"),
        ("gsm8k.jsonl", "question\n", "neither JSON nor JSONL"),
        ("gsm8k.jsonl", "\n", "no question of GSM8K"),
        ("aime_2024.jsonl", '{"id": 1, "problem": "a", "answer": "1"}\n' * 2, "the id '1'"),
        ("c_eval.csv", "id,question,A,B,answer\n0,x,1,2,\n", "val has answers"),
        ("mmlu_pro.jsonl", '{"question": "x", "options": ["a", "b"], "answer": "C"}\n', "'C'"),
        ("mmlu.csv", "question,choices,answer\n2?,\"['1' '2']\",1\n", "are no list"),
        ("drop.jsonl", '{"context": "x", "ref_text": "y"}\n', "after 3 examples"),
    ],
)
def test_what_is_not_as_published_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said) as error:
        read(name.partition(".")[0], tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_benchmark_without_a_file_says_where_it_is_published(tmp_path):
    with pytest.raises(ConfigError, match=r"GPQA Diamond.*huggingface\.co/datasets/Idavidrein"):
        read("gpqa_diamond", tmp_path)


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(ConfigError, match=r"aime2024.*did you mean 'aime_2024'"):
        chosen(["aime2024"])


def test_every_benchmark_has_a_format():
    assert {one.format for one in benchmarks().values()} == set(FORMATS)
