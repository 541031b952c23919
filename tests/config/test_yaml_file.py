"""Run files: what is read, what is refused and in what words."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml
from example_run import GOOD, NAME, Adapter, Data, Rates, Run, Shape, problems

from gptcli.base.errors import ConfigError
from gptcli.config import yaml_nodes, yaml_write
from gptcli.config.yaml_file import load, parse


@pytest.fixture(params=["libyaml", "python"])
def _both_loaders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(yaml_nodes, "LOADER", yaml.SafeLoader)


def read(text: str, *overrides: str) -> Run:
    return parse(Run, text, name=NAME, overrides=overrides).value


def field_problem(key: str, text: str) -> str:
    """The one problem of `shape.KEY: TEXT`, without its place."""
    (problem,) = problems(f"data: {{train: a}}\nshape:\n  {key}: {text}\n")
    place = f"{NAME}:3: shape.{key}: "
    assert problem.startswith(place)
    return problem.removeprefix(place)


# ---------------------------------------------------------------------------------------------- values and origins


def test_a_good_file() -> None:
    run = read(GOOD)
    assert run.data == Data(train=("a.txt", "b.txt"), weights=(0.5, 0.1))
    assert (run.title, run.steps, run.rates.peak, run.adapter) == ("a run", 100, 1e-4, Adapter(rank=4))
    assert (run.shape.layers, run.shape.heads, run.shape.dropout) == (6, 4, 0.1)


def test_origins_name_every_field() -> None:
    loaded = parse(Run, GOOD, name=NAME, overrides=["shape.preset=large", "rates.peak=1", "rates.peak=2"])
    origins = loaded.origins
    assert origins["steps"] == "run.yaml:2"
    assert origins["data.train"] == "run.yaml:4"
    assert origins["shape.layers"] == "run.yaml:7"
    assert origins["shape.norm"] == "preset large"
    assert origins["shape.preset"] == "-s shape.preset=large"
    assert origins["shape.bias"] == "default"
    assert origins["rates.peak"] == "-s rates.peak=2"
    assert loaded.value.rates.peak == 2.0
    assert set(origins) == {key for line, key in yaml_write.lines(loaded.value) if not line.endswith(":")}


def test_the_last_override_wins_and_section_null_is_undone() -> None:
    assert read("data: {train: a}\nadapter: null", "adapter.rank=3", "adapter.rank=5").adapter == Adapter(rank=5)
    assert read("data: {train: a}\nadapter: null").adapter is None
    assert read("data: {train: a}\nadapter: {rank: 3}", "adapter=null").adapter is None
    assert read("data: {train: a}\nadapter: {rank: 3}", "adapter=null", "adapter.rank=5").adapter == Adapter(rank=5)
    assert read("", "data.train=[a.txt,b.txt]").data.train == ("a.txt", "b.txt")


def test_presets() -> None:
    loaded = parse(Run, "data: {train: a}", name=NAME)
    assert (loaded.value.shape.layers, loaded.origins["shape.layers"]) == (3, "preset small")
    large = read("data: {train: a}\nshape: {preset: large, heads: 1}").shape
    assert (large.layers, large.heads, large.norm, large.scale) == (48, 1, "layernorm", 0.5)
    assert field_problem("preset", "larg") == "must be one of small, large, got larg; did you mean 'large'?"


def test_a_default_instance_keeps_its_values_until_a_preset_is_named() -> None:
    assert read("data: {train: a}").big == Shape(preset="large", layers=7)
    assert read("data: {train: a}\nbig: {heads: 1}").big == Shape(preset="large", layers=7, heads=1)
    assert read("data: {train: a}", "big.preset=small").big == Shape(preset="small", layers=3)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("6", 6), ("+6", 6), ("1e1", 10), ("6.0", 6), ("0x10", 16), ("0o17", 15), ("010", 10), ("100", 100)],
)
def test_integers(text: str, wanted: int) -> None:
    layers = read(f"data: {{train: a}}\nshape: {{layers: {text}}}").shape.layers
    assert layers == wanted
    assert type(layers) is int


@pytest.mark.parametrize(
    ("text", "wanted"), [("1e-4", 1e-4), ("1", 1.0), (".5", 0.5), ("5.", 5.0), ("1E+2", 100.0), ("0x10", 16.0)]
)
def test_floats(text: str, wanted: float) -> None:
    peak = read(f"data: {{train: a}}\nrates: {{peak: {text}}}").rates.peak
    assert peak == wanted
    assert type(peak) is float


@pytest.mark.parametrize("text", ["true", "True", "TRUE"])
def test_booleans(text: str) -> None:
    assert read(f"data: {{train: a}}\nshape: {{bias: {text}}}").shape.bias is True


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("123", "123"),
        ("1e-4", "1e-4"),
        ("yes", "yes"),
        ("'null'", "null"),
        ('""', ""),
        ("a b", "a b"),
        ("2026-01-01",) * 2,
    ],
)
def test_strings_are_taken_as_they_stand(text: str, wanted: str) -> None:
    assert read(f"data: {{train: a}}\ntitle: {text}").title == wanted


@pytest.mark.parametrize("text", ["null", "~", "", "Null", "NULL"])
def test_null_is_for_optional_fields(text: str) -> None:
    data = f"data:\n  train: a\n  cache_dir: {text}\n  lengths: {text}\n  errors: {text}\n"
    assert read(data).data == Data(train=("a",))
    assert field_problem("layers", text).startswith("must be an integer, got ")
    assert problems(f"data: {{train: a}}\ntitle: {text}")[0].startswith("run.yaml:2: title: must be a string, got ")


def test_a_section_without_lines_is_empty() -> None:
    assert read("data: {train: a}\nrates:\n  # peak: 1\nadapter:\n").rates == Rates()
    assert problems("data: {train: a}\nrates: null") == (
        "run.yaml:2: rates: must be a mapping, got null; write indented `key: value` lines",
    )


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("layers", "0", "must be >= 1, got 0"),
        ("layers", "1.5", "must be an integer, got 1.5"),
        ("layers", "1_0", "must be an integer, got 1_0"),
        ("layers", "1:30", "must be an integer, got 1:30"),
        ("layers", "true", "must be an integer, got true"),
        ("layers", '"6"', "must be an integer, got the string '6'; remove the quotes"),
        ("layers", "'six'", "must be an integer, got the string 'six'"),
        ("layers", "[6]", "must be an integer, got a list"),
        ("layers", "{a: 6}", "must be an integer, got a mapping"),
        ("layers", ".inf", "must be an integer, got .inf"),
        ("layers", "1e999999999", "must be an integer, got 1e999999999"),
        ("layers", "٣", "must be an integer, got ٣"),
        ("dropout", "1", "must be < 1, got 1.0"),
        ("dropout", ".nan", "must be a finite number, got nan"),
        ("dropout", "-.inf", "must be a finite number, got -inf"),
        ("dropout", "1e999", "must be a finite number, got inf"),
        ("dropout", "1e", "must be a number, got 1e"),
        ("bias", "yes", "must be true or false, got yes; write true"),
        ("bias", "Off", "must be true or false, got Off; write false"),
        ("bias", "1", "must be true or false, got 1"),
        ("bias", '"true"', "must be true or false, got the string 'true'; remove the quotes"),
        ("norm", "rmsnrm", "must be one of rmsnorm, layernorm, got rmsnrm; did you mean 'rmsnorm'?"),
        ("norm", '"a\\e[31m\\n"', r"must be one of rmsnorm, layernorm, got the string 'a\x1b[31m\n'"),
        ("preset", "[small]", "must be a string, got a list; put it in quotes"),
    ],
)
def test_what_a_field_refuses(key: str, text: str, message: str) -> None:
    assert field_problem(key, text) == message


def test_tuples() -> None:
    assert read("data:\n  train: a.txt").data.train == ("a.txt",)
    text = "data:\n  train: [a, [b]]\n  weights: 1\n  lengths:\n    - 1\n    - x\n  errors: never\n"
    assert problems(text) == (
        "run.yaml:2: data.train: must be a string, got a list; put it in quotes",
        "run.yaml:3: data.weights: must be a list, got 1; write [a, b]",
        "run.yaml:6: data.lengths: must be an integer, got x",
        "run.yaml:7: data.errors: must be one of strict, ignore, got never",
    )


@pytest.mark.parametrize("digits", ["9" * 81, "9" * 5000, "0x" + "f" * 5000, "1." + "9" * 5000])
def test_endless_numbers(digits: str) -> None:
    for key in ("layers", "dropout"):
        message = field_problem(key, digits)
        assert re.search("9…?; no number has more than 80 characters$|…; no number", message)
        assert len(message) < 200


def test_all_problems_in_order_of_lines_then_overrides() -> None:
    text = "steps: 0\ndata:\n  trian: a\nrates:\n  peak: x\nshape:\n  bias: on\n  layer: 3\npeak: 3\n"
    assert problems(
        text, "rates.peek=3", "steps=-1", "shape", "shape=3", "data.weights=[a: b", "shape.layers=1:30"
    ) == (
        "run.yaml:1: steps: must be >= 1, got 0",
        "run.yaml:3: unknown key 'data.trian'; did you mean 'data.train'?",
        "run.yaml:5: rates.peak: must be a number, got x",
        "run.yaml:7: shape.bias: must be true or false, got on; write true",
        "run.yaml:8: unknown key 'shape.layer'; did you mean 'shape.layers'?",
        "run.yaml:9: unknown key 'peak'; did you mean 'rates.peak'?",
        "run.yaml: data.train: missing; give input files",
        "-s rates.peek=3: unknown key 'rates.peek'; did you mean 'rates.peak'?",
        "-s steps=-1: must be >= 1, got -1",
        "-s shape: missing '='; write -s key=value",
        "-s shape=3: is a section; set one of its fields, -s shape.field=value",
        "-s data.weights=[a: b: not YAML: while parsing a flow sequence, did not find expected ',' or ']'",
        "-s shape.layers=1:30: must be an integer, got 1:30",
    )


def test_relations_are_reported_where_the_field_or_its_section_was_given() -> None:
    data = "data: {train: a}\n"
    relation = "shape.heads: 3 heads do not divide width 8"
    assert problems(data + "shape:\n  heads: 3\n") == (f"run.yaml:3: {relation}",)
    assert problems(data, "shape.heads=3") == (f"-s shape.heads=3: {relation.removeprefix('shape.heads: ')}",)
    assert problems(data + "shape:\n  width: 9\n") == ("run.yaml:2: shape.heads: 2 heads do not divide width 9",)
    assert problems(data, "shape.width=9") == ("-s shape.width=9: shape.heads: 2 heads do not divide width 9",)
    assert problems(data + "rates: {warmup_steps: 99}") == ("run.yaml:2: rates: warmup_steps 99 exceed steps 10",)


def test_a_wrong_field_silences_relations_and_is_not_called_missing() -> None:
    assert problems("data:\n  train: {}\nshape: {width: x, heads: 3}\n") == (
        "run.yaml:2: data.train: must be a list, got a mapping; write [a, b]",
        "run.yaml:3: shape.width: must be an integer, got x",
    )


def test_an_override_supplies_what_the_file_lacks() -> None:
    assert problems("") == ("run.yaml: data.train: missing; give input files",)
    assert problems("# only a comment\n---\n") == problems("")
    assert problems("", "data.train=") == ("-s data.train=: must be a list, got nothing; write [a, b]",)
    assert read("", "data.train=a").data.train == ("a",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n", "run.yaml:1: must be a mapping, got a list; write `key: value` lines"),
        ("\n\nhello\n", "run.yaml:3: must be a mapping, got hello; write `key: value` lines"),
        ("steps: 1\n---\nsteps: 2\n", "run.yaml:2: a second document starts here; a run file holds one"),
        ("steps: 1\nsteps: 2\ndata: {train: a}", "run.yaml:2: duplicate key 'steps', first on line 1; remove one"),
        ("data: {train: a, train: b}", "run.yaml:1: duplicate key 'data.train', first on line 1; remove one"),
        ("data: {train: a}\n? [x]\n: 1\n", "run.yaml:2: a key must be a name, not a list or a mapping"),
        ("data: {train: a}\n1: 2\n", "run.yaml:2: unknown key '1'"),
        ("data:\n  train: a\n  <<: {}\n", "run.yaml:3: merge keys (<<) are not supported; write the values out"),
        ("steps: 1\ntitle: a\0b\n", "run.yaml:2: character U+0000 is not allowed; write it as an escape in double"),
        ("# a\x85\nsteps: 1\n", "run.yaml:1: character U+0085 is not allowed; write it as an escape in double quotes"),
        ("title: \ud800", "run.yaml:1: character U+D800 is not allowed; write it as an escape in double quotes"),
        ("steps: 1\na: &x 1\n", "run.yaml:2: anchors and aliases (&, *) are not supported; write the value out"),
        ("steps: 1\na: *x\n", "run.yaml:2: anchors and aliases (&, *) are not supported; write the value out"),
        ("steps: 1\na: !!python/object:os.system x\n", "run.yaml:2: tags (tag:yaml.org,2002:python/object:os.system)"),
        ("steps: !x 1\n", "run.yaml:1: tags (!x) are not supported; remove it, or quote the value"),
        ("steps: ! 1\n", "run.yaml:1: tags (!) are not supported; remove it, or quote the value"),
        ("a:\n " + "[" * 100_000, "run.yaml:2: nested deeper than 20 levels"),
        ("a: " + "{a: " * 3000, "run.yaml:1: nested deeper than 20 levels"),
        ("\n".join(" " * i + "a:" for i in range(50)), "run.yaml:21: nested deeper than 20 levels"),
    ],
)
@pytest.mark.usefixtures("_both_loaders")
def test_what_no_file_may_hold(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("steps: 1\n\ttitle: a\n", 2),
        ("steps: 1\ndata:\n\ttrain: a\n", 3),
        ("steps: 1\ntitle: 'a\n", 2),
        ("steps: [1,\n", 1),
        ("data:\n  - 1\n - 2\n", 3),
        ("steps: 1\ntitle: @x\n", 2),
        ("steps: 1\ntitle: a: b\n", 2),
        ('title: "\\U00110000"', None),
        ("%YAML " + "9" * 5000 + ".1\n--- a", None),
    ],
)
@pytest.mark.usefixtures("_both_loaders")
def test_syntax_errors_have_a_line(text: str, line: int | None) -> None:
    (found,) = problems(text)
    assert re.match(rf"run.yaml:{line}: not YAML: " if line else r"run.yaml(:1)?: not YAML: ", found), found
    assert ("not tabs" in found) == ("\t" in text)


def test_a_syntax_error_does_not_hide_the_overrides() -> None:
    assert len(problems("steps: [1\n", "step=3", "steps=0")) == 3


@pytest.mark.usefixtures("_both_loaders")
def test_line_breaks_and_byte_order_mark() -> None:
    for end in ("\n", "\r\n", "\r"):
        assert read("\ufeff" + GOOD.replace("\n", end)) == read(GOOD)
        assert problems(f"title: a{end}{end}data: {{train: b}}{end}stepz: 3{end}")[0].startswith("run.yaml:4: ")


def test_the_list_of_problems_has_an_end() -> None:
    found = problems("".join(f"key{i}: 1\n" for i in range(3000)))
    assert len(found) == 101
    assert found[-1] == "run.yaml: 2901 more problems"
    assert problems("steps: 1\n" * 60_000) == (
        "run.yaml:50000: more than 100000 keys and values up to here; this is no run file",
    )


def test_names_and_values_are_shown_harmless() -> None:
    for text, overrides in (
        ('"a\\e\\n\u202e": 1', ()),
        ("data: {train: a}", ("\x1b[31m\n=1", "title=[\x07", "a\udcff")),
    ):
        with pytest.raises(ConfigError) as caught:
            parse(Run, text, name="\x1b.yaml", overrides=overrides)
        assert str(caught.value).replace("\n", "").isprintable()
        assert all("\n" not in problem for problem in caught.value.problems)
    assert len(problems(f"{'k' * 1000}: 1\ndata: {{train: a}}", "data.weights=" + "x," * 9000)[1]) < 300


# ----------------------------------------------------------------------------------------------------- files


def test_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(GOOD)
    assert load(Run, "run.yaml") == parse(Run, GOOD, name="run.yaml")
    assert load(Run, tmp_path / "run.yaml", ["steps=11"]).value == read(GOOD, "steps=11")


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").touch()
    Path("latin.yaml").write_bytes(b"title: a\ntitle: caf\xe9\n")
    Path("large.yaml").write_bytes(b"#" * ((1 << 20) + 1))
    Path("sub").mkdir()
    Path("sub/run.yaml").touch()
    wanted = {
        "runn.yaml": "runn.yaml: no such file; did you mean 'run.yaml'?",
        "sub/runn.yaml": f"sub/runn.yaml: no such file; did you mean '{os.path.join('sub', 'run.yaml')}'?",
        "nothing/like/it": "nothing/like/it: no such file",
        "latin.yaml": "latin.yaml:2: byte 0xe9 is not UTF-8; save the file as UTF-8",
        "large.yaml": "large.yaml: larger than 1048576 bytes; this is no run file",
        "sub": "sub: is a directory; name a run file, such as the run.yaml in that of a run",
        "a\0b": r"a\x00b: cannot be read: embedded null byte",
    }
    for path, message in wanted.items():
        with pytest.raises(ConfigError, match=rf"\A{re.escape(message)}\Z"):
            load(Run, path)
