import json
from pathlib import Path

from r1train.cli import main
from r1train.config.recipe import load_config
from r1train.run.export import save_checkpoint
from r1train.suite.contamination import training_texts

RECIPE = """
name = "tiny"
threads = 1
[task]
prompt_template = "plain"
datasets = [{{ path = "{problems}" }}]
[sft]
datasets = [{{ path = "{demonstrations}" }}]
"""
SUMS = [
    "Mo bakes six trays with eight rolls on each and sells thirty: how many are left?",
    "A cinema has 25 rows of 48 seats, of which every tenth is broken. How many can be sold?",
    "Ada reads ninety pages of a book of two hundred; how many are still to be read by her?",
    "Bo has ten marbles, gives away two and finds another five. How many does he have in the end?",
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_questions_of_the_training_data_are_counted(mini, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "gsm8k.jsonl").write_text(
        lines({"question": question, "answer": "#### 1"} for question in SUMS)
    )
    problems = [{"prompt": f"Problem {i}: {SUMS[0].upper()}", "answer": str(i)} for i in range(3)]
    others = [{"prompt": f"What is {i} + {i}?", "answer": str(i)} for i in range(9)]
    (tmp_path / "problems.jsonl").write_text(lines(problems + others))
    talk = [{"role": "user", "content": f"Hello. {SUMS[2]}"}, {"role": "assistant", "content": "1"}]
    (tmp_path / "talk.jsonl").write_text(lines([{"messages": talk}]))
    run = tmp_path / "run"
    save_checkpoint(*mini, run / "checkpoint")
    (run / "config.toml").write_text(
        RECIPE.format(problems=tmp_path / "problems.jsonl", demonstrations=tmp_path / "talk.jsonl")
    )
    command = ["eval", str(run), "--suite", "r1", "--data", str(data), "suite.max_tokens=4"]
    assert main(command) == 0
    (table,) = [
        table
        for table in json.loads((run / "suite/tables.json").read_text())
        if "training data" in table["title"]
    ]
    (row,) = table["rows"]
    assert (row["n"], row["in training data"]) == (4, 2)
    assert "Ten words in a row" in capsys.readouterr().out
    assert main([*command, "suite.check_training_data=false"]) == 0
    assert "Ten words in a row" not in capsys.readouterr().out
    (tmp_path / "talk.jsonl").unlink()
    assert main(command) == 0
    assert "the training data cannot be looked through" in capsys.readouterr().out


def test_every_file_that_a_stage_reads_is_looked_through_and_no_other(tmp_path):
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("sft", "mix", "pairs", "unused")}
    for name, path in files.items():
        Path(path).write_text(lines([{"prompt": f"of {name}", "completion": "1"}]))
    (tmp_path / "recipe.toml").write_text(f"""
    [task]
    train_size = 4
    heldout_size = 4
    [sft]
    datasets = [{{ path = "{files["unused"]}" }}]
    [[stages]]
    kind = "sft"
    sft.datasets = [{{ path = "{files["sft"]}" }}]
    [[stages]]
    kind = "rejection"
    rejection.mix = [{{ path = "{files["mix"]}" }}]
    [[stages]]
    kind = "reward_model"
    reward_model.datasets = [{{ path = "{files["pairs"]}" }}]
    """)
    texts = [*training_texts(load_config(tmp_path / "recipe.toml"))]
    assert [text.split("\n")[0] for text in texts[4:]] == ["of sft", "of mix", "of pairs"]
