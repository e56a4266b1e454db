"""Recipes, files and overrides: what is read, what is written, and what is refused in one line."""

import dataclasses
import tomllib
import typing

import pytest

from r1train.config.recipe import documented, load_config, recipes
from r1train.config.schema import ConfigError, Section, field_docs
from tests.r1train.sections import sections

CLASSES = sections()


@pytest.fixture
def write(tmp_path):
    def to_file(content, name="my-run.toml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


@pytest.mark.parametrize("recipe", recipes())
def test_the_documented_form_reads_back_equal(recipe, write):
    written = load_config(recipe, ["grpo.epsilon_high=0.28"])
    assert load_config(write(documented(written))) == written


def test_unset_options_are_there_with_their_documentation(write):
    text = documented(load_config(write("[grpo]\ndelta = 2")))
    lines = text.splitlines()
    assert "delta = 2.0" in lines
    for option in ("threads", "path", "epsilon_high", "train_size", "limit", "jsonl"):
        assert f"# {option} =" in lines
    assert lines[lines.index("# epsilon_high =") - 1] == "# Clip range above 1 (DAPO: 0.28)."
    assert max(map(len, lines)) <= 100
    tomllib.loads(text)


@pytest.mark.parametrize("section", CLASSES)
def test_every_option_is_documented(section):
    docs, hints = field_docs(section), typing.get_type_hints(section)
    undocumented = {field.name for field in dataclasses.fields(section) if not docs[field.name]}
    tables = {
        name for name in docs if isinstance(hints[name], type) and issubclass(hints[name], Section)
    }
    assert undocumented == tables  # which their own classes document


def test_a_byte_order_mark_is_read_past(write):
    assert load_config(write(b"\xef\xbb\xbfseed = 3")).seed == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("seed = 1".encode("utf-16"), "the file is UTF-16: save it as UTF-8"),
        ("seed = 1".encode("utf-16-le"), "the file is UTF-16: save it as UTF-8"),
        ('"é" = 1'.encode("utf-16-be"), "the file is UTF-16: save it as UTF-8"),
        ("seed = 1".encode("utf-32"), "the file is UTF-32: save it as UTF-8"),
        ("seed = 1".encode("utf-32-be"), "the file is UTF-32: save it as UTF-8"),
        ('name = "\xe9"'.encode("latin1"), "the file is neither UTF-8 nor ASCII at byte 8"),
        ("seed = " + "1" * 400, "seed = an integer of 400 digits: expected a value >= 0"),
        ("seed = " + "1" * 5000, "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML: it is nested too deeply"),
        ("seed = 1\nseed = 2", "not valid TOML"),
        ("seed = 2020-01-01", "seed = .*: expected an integer"),
        ("[grpo]\nmax_steps = 0", "grpo.max_steps = 0"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(write, content, reason):
    for overrides in ([], ["grpo.beta=0"]):
        with pytest.raises(ConfigError, match=rf"my-run\.toml: {reason}") as raised:
            load_config(write(content), overrides)
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed=" + "1" * 400, "^seed = an integer of 400 digits"),
        ("seed=" + "1" * 5000, r"^override 'seed=1+… \(5007 characters\): Exceeds the limit"),
        ("seed=-1", "^seed = -1: expected a value >= 0 and <= 9223372036854775807"),
        ("grpo.learning_rate=" + "1" * 400, "^grpo.learning_rate = an integer of 400 digits"),
        ("grpo.max_steps=1" + "0" * 20, "^grpo.max_steps = 1"),
        ("grpo.max_steps=3\nfoo=1", "^grpo.max_steps = '3.nfoo=1': expected an integer"),
        ("grpo.adam_beta1=1", "^grpo.adam_beta1 = 1: expected a value >= 0 and <= 0.999999"),
        ("grpo.prompts_per_step=2000000", "^grpo.prompts_per_step.*more than 1048576"),
        ("a=" + "[" * 5000, "nested too deeply"),
        ("threads=100000", "^threads = 100000"),
        ("rewards.timeout=1e300", "^rewards.timeout"),
        ("task.train_size=1000000000", "^task.train_size = 1000000000"),
        ('name="a\\u0000b"', "^name = 'a.x00b': expected text without NUL"),
        ("name=a/b", "^name = 'a/b': it names a folder"),
        ("name=..", "^name = '..': it names a folder"),
        ("name=" + "é" * 101, "^name = .*: it names a folder"),
        ("name=\udcff", "^name = .*: expected text without NUL, in valid Unicode"),
        ("device=tpu", "^device = 'tpu': expected auto, cpu, cuda"),
        ("output_dir=a\0", "^output_dir = 'a.x00': expected text without NUL"),
    ],
)
def test_an_override_that_is_wrong_is_not_blamed_on_the_file(write, override, reason):
    with pytest.raises(ConfigError, match=reason) as raised:
        load_config(write("seed = 1"), [override])
    assert len(str(raised.value)) < 500


def test_a_path_does_not_replace_the_preset_of_a_recipe_unasked():
    expected = r"model\.path = 'ckpt': .*r1-zero-mini\.toml has model\.preset = 'deepseek-v3-mini'"
    with pytest.raises(ConfigError, match=rf"{expected}.*add model\.preset=none"):
        load_config("r1-zero-mini", ["model.path=ckpt"])
    model = load_config("r1-zero-mini", ["model.path=ckpt", "model.preset=none"]).model
    assert (model.path, model.preset) == ("ckpt", None)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder: name a TOML file"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="File name too long"):
        load_config("a" * 5000)
