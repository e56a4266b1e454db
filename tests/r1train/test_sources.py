"""Files of rows: every kind gives the same problems, and reads them when they are asked for."""

import json
import os

import pyarrow as pa
import pyarrow.parquet
import pytest

from r1train.config.schema import ConfigError, RunError
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.problems import FileProblems, load_problems
from r1train.data.sources import open_rows, parquet
from r1train.data.sources.base import Number, RowError
from r1train.model.limits import fitting_problems

ROWS = [
    {"question": f"What is half of {i}?", "answer": i / 2, "level": i % 3, "extra": {"tags": [i]}}
    for i in range(20)
]
TABLE = pa.Table.from_pylist(ROWS)


def write_jsonl(folder, rows=ROWS, name="a.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(folder, table=TABLE):
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=6)
    return folder / "a.parquet"


def write_arrow(folder, table=TABLE, name="a.arrow"):
    with pa.ipc.new_stream(folder / name, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return folder / name


def write_arrow_file(folder):
    with pa.ipc.new_file(folder / "a.feather", TABLE.schema) as writer:
        writer.write_table(TABLE)
    return folder / "a.feather"


def write_shards(folder):
    for i in range(3):
        write_jsonl(folder, ROWS[i * 8 : i * 8 + 8], f"part-{i}.jsonl")
    (folder / "README.md").write_text("")
    return folder


def write_pattern(folder):
    return write_shards(folder) / "part-*.jsonl"


def write_datasets(folder):
    """What Dataset.save_to_disk writes."""
    write_arrow(folder, TABLE.slice(0, 9), "data-00000-of-00002.arrow")
    write_arrow(folder, TABLE.slice(9), "data-00001-of-00002.arrow")
    names = [{"filename": f"data-{i:05}-of-00002.arrow"} for i in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


KINDS = [
    write_jsonl,
    write_parquet,
    write_arrow,
    write_arrow_file,
    write_shards,
    write_pattern,
    write_datasets,
]


def problems_of(path, **options):
    dataset = DatasetConfig(path=str(path), **options)
    problems = FileProblems(str(path), TaskConfig((dataset,), prompt_template="plain"), 0)
    return [problems[number] for number in problems.index().numbers]


@pytest.mark.parametrize("write", KINDS)
def test_every_kind_of_file_gives_the_same_problems(write, tmp_path):
    found = problems_of(write(tmp_path))
    assert [p.question for p in found] == [row["question"] for row in ROWS]
    assert [p.answer for p in found] == [str(row["answer"]) for row in ROWS]
    assert found[4].columns == {"level": 1, "extra": {"tags": [4]}}


@pytest.mark.parametrize("write", KINDS)
def test_a_split_does_not_depend_on_the_kind_of_file(write, tmp_path):
    train, heldout = load_problems(TaskConfig((DatasetConfig(path=str(write(tmp_path))),)), 3)
    assert (len(train), len(heldout)) == (16, 4)
    order = [problem.index for problem in (*train, *heldout)]
    assert sorted(order) == list(range(20))
    (tmp_path / "again").mkdir()
    path = str(write_jsonl(tmp_path / "again"))
    train, heldout = load_problems(TaskConfig((DatasetConfig(path=path),)), 3)
    assert [problem.index for problem in (*train, *heldout)] == order


def test_shards_name_their_own_lines(tmp_path):
    path = write_shards(tmp_path)
    assert problems_of(path)[10].where == f"{path}/part-1.jsonl, line 3"
    for name in ("part-0.jsonl", "part-2.jsonl"):
        with open(path / name, "a") as file:
            file.write('{"question": "q"}\n')
    expected = (
        r'part-0\.jsonl, line 9: no "answer".*'
        r"1 more cannot be used either: .*part-2\.jsonl, line 5\)"
    )
    with pytest.raises(ConfigError, match=expected):
        problems_of(path)


def test_rows_that_cannot_be_used_are_skipped_where_the_dataset_says_so(tmp_path, caplog):
    path = write_jsonl(tmp_path)
    with open(path, "ab") as file:
        file.write(b'{"question": "q"}\n\xff\n{"question": "last", "answer": 1}\n{')
    found = problems_of(path, on_bad_row="skip")
    assert [problem.index for problem in found] == [*range(20), 22]
    assert 'a.jsonl, lines 21, 22, 24: 3 of 24 rows are skipped; the first: no "ans' in caplog.text
    with pytest.raises(ConfigError, match=r'set on_bad_row = "skip" \(2 more cannot'):
        problems_of(path)
    path.write_text("{\n{\n")
    with pytest.raises(ConfigError, match="line 1: expected one JSON object a line"):
        problems_of(path, on_bad_row="skip")


def test_numbers_of_columns_keep_the_digits_of_their_type(tmp_path):
    table = pa.table(
        {
            "question": ["a", "b"],
            "answer": pa.array([0.1, 1e-7], pa.float32()),
            "inner": pa.array([{"x": [0.1]}, None], pa.struct({"x": pa.list_(pa.float32())})),
            "whole": pa.array([2**62, None], pa.int64()),
        }
    )
    first, second = problems_of(write_parquet(tmp_path, table))
    assert (first.answer, second.answer) == ("0.1", "1e-07")
    assert first.columns == {"inner": {"x": [0.1]}, "whole": 2**62}
    assert second.columns == {}


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_arrow])
def test_a_field_that_is_null_is_one_that_is_not_there(write, tmp_path):
    """A table has the fields of any row in all of them."""
    rows = [
        {"prompt": "a", "question": None, "answer": "1", "answer_type": None, "hint": None},
        {"prompt": None, "question": "b", "answer": "2", "answer_type": "text", "hint": "h"},
    ]
    data = rows if write is write_jsonl else pa.Table.from_pylist(rows)
    first, second = problems_of(write(tmp_path, data), answer_type="math")
    assert (first.question, first.answer_type) == ("a", "math")
    assert (second.question, second.answer_type) == ("b", "text")
    assert (first.columns, second.columns) == ({}, {"hint": "h"})


def test_messages_of_a_table(tmp_path):
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    table = pa.table({"prompt": pa.array([chat], kind), "answer": ["x"]})
    (problem,) = problems_of(write_arrow(tmp_path, table))
    assert (problem.question, problem.answer) == ("q", "x")


def test_row_groups_are_read_when_asked_for_and_few_are_kept(tmp_path, monkeypatch):
    kept = parquet.OrderedDict()
    monkeypatch.setattr(parquet, "_KEPT", kept)
    rows = open_rows(str(write_parquet(tmp_path)))
    assert [number for number, _ in rows.scan()] == list(range(20))
    assert not kept
    assert [rows[i]["answer"] for i in (13, 0, 6, 19, 1)] == ["6.5", "0.0", "3.0", "9.5", "0.5"]
    assert [group for _, group in kept] == [2, 1, 3, 0]
    monkeypatch.setattr(parquet, "KEPT_BYTES", int(2.1 * rows._group(0).nbytes))
    (tmp_path / "more").mkdir()
    other = open_rows(str(write_parquet(tmp_path / "more")))
    assert other[14]["answer"] == "7.0"
    assert [group for _, group in kept] == [0, 2]  # of all files together


def test_to_see_that_problems_fit_a_model_files_are_read_in_their_order(
    mini, tmp_path, monkeypatch
):
    """Or each row group of a shuffled file that is larger than what is kept is read many times."""
    more = [{"question": f"What is {i}?", "answer": i} for i in range(9)]
    paths = write_parquet(tmp_path), write_jsonl(tmp_path, more)
    task = TaskConfig(tuple(DatasetConfig(path=str(path)) for path in paths))
    train, _ = load_problems(task, 0)
    read, true = [], FileProblems.__getitem__

    def item(problems, number):
        read.append((problems.source, number))
        return true(problems, number)

    monkeypatch.setattr(FileProblems, "__getitem__", item)
    assert fitting_problems(*mini, train, "plain", 4) is train
    assert len(read) == len(train)
    assert read == sorted(read)
    read.clear()
    list(train)
    assert read != sorted(read)
    half = train[1::2][:5]
    assert sorted(number for number, _ in half.as_they_lie()) == list(range(5))
    assert all(half[number].where == problem.where for number, problem in half.as_they_lie())


def test_lines_are_read_when_asked_for(tmp_path):
    path = write_jsonl(tmp_path)
    rows = open_rows(str(path))
    for _ in rows.scan():
        pass
    assert rows[7] == {
        "question": "What is half of 7?",
        "answer": Number("3.5"),
        "level": Number("1"),
        "extra": {"tags": [Number("7")]},
    }


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_arrow, write_arrow_file])
@pytest.mark.parametrize("change", ["cut", "written", "replaced"])
def test_a_file_that_changes_while_it_is_in_use_stops_the_run(write, change, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_KEPT", parquet.OrderedDict())
    path = write(tmp_path)
    rows = open_rows(str(path))
    assert len(list(rows.scan())) == 20
    if change == "replaced":
        path.rename(tmp_path / "before")
        path.write_bytes((tmp_path / "before").read_bytes())
    else:
        os.truncate(path, 8 if change == "cut" else path.stat().st_size + 8)
    expected = rf"{path.name}: the file was changed while it was in use"
    with pytest.raises(RunError, match=expected):
        rows[7]
    with pytest.raises(RunError, match=expected):
        list(rows.scan())


def test_a_row_that_cannot_be_read_is_what_is_wrong_with_it(tmp_path):
    path = write_jsonl(tmp_path, ROWS[:1])
    with open(path, "a") as file:
        file.write("\nnonsense\n")
    first, second = open_rows(str(path)).scan()
    assert (first[0], second[0]) == (0, 2)
    assert isinstance(second[1], RowError)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], r"holds no data \(\.arrow, \.jsonl, \.ndjson, \.parquet\)|holds no data"),
        (["a.jsonl", "b.parquet"], r"holds files of 2 kinds \(\.jsonl, \.parquet\): name a file"),
        (["dataset_dict.json", "train/x", "test/x"], "several splits: name one of test, train"),
        (["state.json"], "does not name the folder's files"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path, names, reason):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    with pytest.raises(ConfigError, match=reason):
        open_rows(str(tmp_path))


def test_a_pattern_of_several_kinds_of_files(tmp_path):
    write_jsonl(tmp_path)
    write_parquet(tmp_path)
    expected = r"\*: names files of 2 kinds, such as .*a\.jsonl, .*a\.parquet: give a pattern"
    with pytest.raises(ConfigError, match=expected):
        open_rows(str(tmp_path / "*"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_files(tmp_path, name):
    (tmp_path / name).write_text("nonsense")
    with pytest.raises(ConfigError, match=rf"{name}: not an? \w+ file, or damaged"):
        list(open_rows(str(tmp_path / name)).scan())


@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_arrow_file])
def test_a_file_whose_rows_are_damaged_is_named(write, tmp_path):
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    if path.suffix == ".arrow":
        del content[-100:]
    else:
        content[8:400] = bytes(392)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path.name}: not an? \w+ file, or damaged"):
        list(open_rows(str(path)).scan())


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write_parquet(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'a\.parquet: reading it needs .*"r1kernels\[data\]"'):
        open_rows(str(path))


def test_a_data_set_without_answers_has_none_to_be_right(tmp_path):
    path = write_jsonl(tmp_path, [{"prompt": "Write a poem.", "style": "haiku"}])
    (problem,) = problems_of(path, answer_field="")
    assert (problem.answer, problem.verifiable) == ("", False)
    assert problem.columns == {"style": "haiku"}
    assert all(problem.verifiable for problem in problems_of(write_jsonl(tmp_path)))


def test_columns_keep_an_answer_by_its_own_name(tmp_path):
    path = write_jsonl(tmp_path, [{"prompt": "q", "solution": "so\n#### 72", "n": 1}])
    (problem,) = problems_of(path, answer_field="solution")
    assert problem.answer == "72"
    assert problem.columns == {"solution": "so\n#### 72", "n": 1}


def test_columns_keep_what_no_other_name_gives(tmp_path):
    row = {
        "problem": "q",
        "answer": "A few",
        "question": "other",
        "gold": 72,
        "answer_type": "math",
    }
    path = write_jsonl(tmp_path, [row])
    (problem,) = problems_of(path, prompt_field="problem", answer_field="gold")
    assert problem.answer == "72"
    assert problem.columns == {name: row[name] for name in row if name != "answer_type"}
    (problem,) = problems_of(path, prompt_field="question", answer_field="")
    assert problem.columns == {"problem": "q", "answer": "A few", "gold": 72}


def test_the_system_message_of_a_source_or_of_the_task(tmp_path):
    rows = [
        {"prompt": "a", "answer": 1},
        {"prompt": [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}],
         "answer": 2},
    ]  # fmt: skip
    path = str(write_jsonl(tmp_path, rows))

    def prompts(task, **options):
        sources = (DatasetConfig(path=path, **options), DatasetConfig(name="chain_sum"))
        config = TaskConfig(sources, 2, 2, "chat", task)
        train, heldout = load_problems(config, 0)
        found = (*train, *heldout)
        return {p.question: p.prompt for p in found if p.source == 0} | {
            "gym": {p.messages[:-1] for p in found if p.source == 1}
        }

    mine = prompts("task's", system_prompt="mine")
    assert mine["a"] == (("system", "mine"), ("user", "a"))
    assert mine["b"] == (("system", "own"), ("user", "b"))
    assert mine["gym"] == {(("system", "task's"),)}
    assert prompts("task's")["a"] == (("system", "task's"), ("user", "a"))
    assert prompts(None)["a"] == "a"


def test_a_question_is_the_same_whatever_the_system_message(tmp_path, caplog):
    path = str(write_jsonl(tmp_path))
    sources = tuple(DatasetConfig(path=path, system_prompt=text) for text in ("one", "two"))
    train, heldout = load_problems(TaskConfig(sources[:1], prompt_template="chat"), 0)
    assert len(train) + len(heldout) == 20
    train, _ = load_problems(TaskConfig(sources, prompt_template="chat"), 0)
    with pytest.raises(ConfigError, match=r"no problem to train on.*in a source before it"):
        train.require_all()
    assert "lines 1, 2, 3, 4, 5, 6, 7, 8, …: repeated questions are left out" in caplog.text
