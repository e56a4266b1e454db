from pathlib import Path

import pytest

from r1train.config.schema import ConfigError
from r1train.suite.formats import FORMATS
from r1train.suite.questions import load
from r1train.suite.specs import benchmarks, chosen

DATA = Path(__file__).parent / "data"


def read(name, data=DATA, limit=None):
    return load(benchmarks()[name], data, limit)


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

    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"problem": ["1 + 1?"], "answer": [2.0], "id": [5]})
    parquet.write_table(table, tmp_path / "amc.parquet")
    assert [(q.id, q.reference) for q in read("amc", tmp_path)] == [("5", "2")]
    with gzip.open(tmp_path / "gsm8k.jsonl.gz", "wt") as file:
        file.write('{"question": "1 + 1?", "answer": "#### 2"}\n')
    assert [q.reference for q in read("gsm8k", tmp_path)] == ["2"]


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
