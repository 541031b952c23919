"""JSON Schema as an automaton: what is written under a schema is valid by an implementation of the standard."""

import contextlib
import json
import random
import re
import time
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_models import randomized

from gptcli.base.errors import ConfigError
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate import json_patterns
from gptcli.generate.constrain import automaton_of, matches
from gptcli.generate.engine import Engine, Request
from gptcli.generate.json_schema import SUPPORTED, TYPES
from gptcli.model.gpt import GPT

torch.set_num_threads(1)
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)


def strict(text: str) -> Any:
    """The value of a JSON text by the letter of the standard."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def written(schema: Any, chance: random.Random) -> str:
    """A text that the automaton of a schema accepts, drawn byte by byte, in a hurry to end after a while."""
    automaton = automaton_of(GenerateOptions(json_schema=json.dumps(schema)))
    assert automaton is not None
    state, content = 0, bytearray()
    while not (automaton.accepts(state) and (automaton.ended(state) or chance.random() < 0.3)):
        ways = [byte for byte, after in enumerate(automaton.row(state).tolist()) if after >= 0]
        closing = [byte for byte in ways if byte in b'"]}1,:']
        byte = chance.choice(closing if closing and (len(content) > 60 or chance.random() < 0.3) else ways)
        content.append(byte)
        state = automaton.row(state)[byte]
        assert len(content) < 3000
    return content.decode()


NAMES = st.text('abé"\\ \n☃😀', max_size=4)
INTEGERS = st.integers(-3000, 3000)


@st.composite
def string_schemas(draw: st.DrawFn) -> dict[str, Any]:
    match draw(st.integers(0, 3)):
        case 0:
            return {"type": "string"}
        case 1:
            least = draw(st.integers(0, 4))
            return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 4))}
        case 2:
            return {"type": "string", "minLength": draw(st.integers(0, 4))}
        case _:
            return {
                "type": "string",
                "pattern": draw(st.sampled_from([r"^[a-c]{2}\d+$", '["\\\\]+', "x|y", "[^q]{3}"])),
            }


@st.composite
def number_schemas(draw: st.DrawFn) -> dict[str, Any]:
    kind, (low, high) = draw(st.sampled_from(["integer", "number"])), sorted((draw(INTEGERS), draw(INTEGERS)))
    lows = draw(st.sampled_from(["minimum", "exclusiveMinimum", None]))
    highs = draw(st.sampled_from(["maximum", "exclusiveMaximum", None]))
    return {"type": kind, **({lows: low} if lows else {}), **({highs: high + 2} if highs else {})}


SCALARS = st.one_of(
    string_schemas(),
    number_schemas(),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"], "maxLength": 2}, {}, True]),
    st.builds(lambda found: {"enum": found}, st.lists(NAMES | INTEGERS | st.none() | st.lists(NAMES), min_size=1)),
    st.builds(lambda value: {"const": value}, st.dictionaries(NAMES, INTEGERS, max_size=2)),
    st.builds(lambda name: {"type": "string", "format": name}, st.sampled_from(["date", "time", "date-time", "uuid"])),
    st.just({"$ref": "#/$defs/shared"}),
)  # fmt: skip


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def array(items: Any, least: int, more: int | None) -> dict[str, Any]:
        return {"type": "array", "items": items, "minItems": least} | (
            {} if more is None else {"maxItems": least + more}
        )

    def record(properties: dict[str, Any], chosen: int, closed: bool) -> dict[str, Any]:
        required = [name for number, name in enumerate(properties) if chosen >> number & 1]
        return {"type": "object", "properties": properties, "required": required} | (
            {"additionalProperties": False} if closed else {}
        )

    return st.one_of(
        st.builds(array, inner, st.integers(0, 3), st.none() | st.integers(0, 3)),
        st.builds(record, st.dictionaries(NAMES, inner, min_size=1, max_size=4), st.integers(0, 15), st.booleans()),
        st.builds(lambda value: {"type": "object", "additionalProperties": value}, inner),
        st.builds(lambda values: {"anyOf": values}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda values: {"type": "array", "prefixItems": values, "minItems": len(values), "maxItems": len(values)},
            st.lists(inner, min_size=1, max_size=3),
        ),
    )


SCHEMAS = st.recursive(SCALARS, containers, max_leaves=6)
SHARED = {"shared": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "title": "shared"}}


def whole(schema: Any) -> Any:
    return {"allOf": [schema], "$defs": SHARED}


@settings(deadline=None, max_examples=150)
@given(SCHEMAS, st.integers(0, 1000))
def test_every_text_of_the_automaton_is_valid(schema: Any, seed: int) -> None:
    chance = random.Random(seed)
    validator = jsonschema.Draft202012Validator(whole(schema))
    validator.check_schema(whole(schema))
    try:
        texts = [written(whole(schema), chance) for _ in range(4)]
    except ConfigError as error:  # refused, as it must be: the draw was of a schema beyond the bounds
        assume("the pattern is too large" not in str(error))
        raise
    for text in texts:
        validator.validate(strict(text))


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = learn_merges(['{"name": "the cat", "age": 12}, [true, false, null]'] * 3, vocab_size=300)
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 32, "context_length": 512}
    return Engine(randomized(GPT(ModelConfig(**shape, vocab_size=300)), 0.4), tokenizer, CPU, slots=6)


@settings(deadline=None, max_examples=25)
@given(SCHEMAS)
def test_every_text_that_a_model_writes_under_a_schema_is_valid(engine: Engine, schema: Any) -> None:
    """A text that max_tokens cuts is told from a whole one. A quote is made likely: else no string ends."""
    quote = engine.tokenizer.encode('"')[0]
    options = GenerateOptions(
        json_schema=json.dumps(whole(schema)), max_tokens=150, temperature=1.0, logit_bias=((float(quote), 6.0),)
    )
    for completion in engine.run([Request([5], options, sample) for sample in range(6)]):
        if completion.finish_reason == "stop":
            jsonschema.validate(strict(completion.text), whole(schema))
            assert matches(options, completion.text)
        else:
            assert completion.finish_reason == "length"
            assert len(completion.ids) == 150


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15) + 1, 10**15 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(depth, inside), default=0)


@settings(deadline=None, max_examples=100)
@given(VALUES)
def test_any_value_of_some_depth_can_be_written(value: Any) -> None:
    """Control characters but tab and line ends are the one thing that strings leave out."""
    text = json.dumps(value, ensure_ascii=False)
    left_out = re.search(r"\\u00[01]", text)
    assert matches(GenerateOptions(json_schema="{}"), text) == (depth(value) <= 4 and not left_out)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "integer", "minimum": -5, "maximum": 12}, ["-5", "0", "9", "12"], ["-6", "13", "01", "1.0", "-0"]),
        ({"type": "integer", "exclusiveMinimum": 7.5}, ["8", "123456"], ["7", "-8"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.25", "1", "1.0"], ["-0.1", "1.1", "2"]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.1", "3"], ["0", "0.0", "-1"]),
        ({"type": "number", "exclusiveMaximum": -1, "minimum": -2}, ["-1.5", "-2", "-1.000001"], ["-1", "-2.1"]),
        ({"type": "string", "maxLength": 2}, ['""', '"ab"', '"☃\\n"'], ['"abc"', "ab", '"\n"']),
        ({"type": "string", "pattern": "^a.$"}, ['"ab"', '"a\\""'], ['"b"', '"ab', '"a"""']),
        ({"enum": ["a", 1, None, {"b": [1]}]}, ['"a"', "1", "null", '{"b": [1]}'], ["a", "2", '{"b":[2]}']),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 2}, ["[]", "[null, null]"], ["[null,null,null]"]),
        (
            {"properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}, "required": ["b"]},
            ['{"b":null}', '{"a": null, "b": null}', '{"b":null,"c":null}', '{"a":null,"b":null,"c":null}'],
            ["{}", '{"a":null}', '{,"b":null}', '{"b":null,}', '{"b":null,"a":null}'],
        ),
        ({"properties": {"a": {"type": "null"}}}, ["{}", '{"a":null}'], ['{"b":1}']),
        ({"const": 10**400, "type": "integer"}, ["1" + "0" * 400], ["1"]),
        ({"enum": [2.0, 3.5], "type": "integer"}, ["2.0"], ["3.5"]),
        ({"type": "object"}, ["{}", '{"a": [1, {"b": "c"}]}'], ["[]", "1"]),
    ],
)  # fmt: skip
def test_texts_of_a_schema_and_others(schema: Any, right: list[str], wrong: list[str]) -> None:
    options = GenerateOptions(json_schema=json.dumps(schema))
    assert [text for text in right if not matches(options, text)] == []
    assert [text for text in wrong if matches(options, text)] == []


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"oneOf": [{}]}, "oneOf"), ({"not": {}}, "not"), ({"patternProperties": {}}, "patternProperties"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"), ({"type": "number", "multipleOf": 3}, "multipleOf"),
        ({"type": "string", "format": "email"}, "email"), ({"allOf": [{}, {}]}, "allOf"), ({"$ref": "#"}, "recursive"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"), ({"$ref": "http://x/y"}, r"\$ref"), ({"type": "text"}, "type"),
        ({"$defs": {"t": {"properties": {"t": {"$ref": "#/$defs/t"}}}}, "$ref": "#/$defs/t"}, "recursive"),
        ({"anyOf": [{}], "minLength": 2}, "minLength"), ({"type": "number", "minimum": 0.5}, "whole"),
        ({"properties": {"a": {"minLenght": 1}}}, "#/properties/a: minLenght"), (False, "false"), ([], "object"),
        ({"minItems": 3, "maxItems": 2}, "minItems"), ({"minLength": -1}, "minLength"), ({"enum": []}, "enum"),
        ({"minimum": 5, "maximum": 4}, "between"), ({"type": "string", "pattern": "(?=a)"}, "pattern"),
        ({"minProperties": 1}, "minProperties"), ({"type": "string", "minLength": 100_000}, "too large"),
        ({"required": [{}]}, "required"), ({"type": "string", "format": []}, "format"), ({"type": [{}]}, "type"),
        ({"minimum": float("nan")}, "minimum"), ({"enum": [float("inf")]}, "no JSON"),
        ({"$defs": [{}], "$ref": "#/$defs/" + "9" * 5000}, "leads nowhere"), ({"items": {"$ref": []}}, "ref"),
        ({"type": "integer", "exclusiveMinimum": True}, "exclusiveMinimum"), ({"enum": [1], "type": "string"}, "type"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_to_is_refused_by_its_name(schema: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        automaton_of(GenerateOptions(json_schema=json.dumps(schema)))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["#/$defs/0", "a{2", "[\ud800]", *TYPES]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(SUPPORTED)), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted(SUPPORTED)), ANYTHING, max_size=4))
def test_a_schema_of_any_wrong_values_is_one_error_or_an_automaton(schema: Any) -> None:
    with contextlib.suppress(ConfigError):
        automaton_of(GenerateOptions(json_schema=json.dumps(schema)))


@pytest.mark.parametrize(
    "text", ["", '{"title": "' + "a" * (64 << 10) + '"}', "{", "[" * 100_000, '{"a": ' * 50 + "1" + "}" * 50]
)
def test_a_schema_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="JSON schema"):
        automaton_of(GenerateOptions(json_schema=text))


def referred(schema: Any) -> Any:
    """A schema that stands 2^10 times in the whole."""
    definitions = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(10)}
    return {"$defs": definitions | {"d10": schema}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    "schema",
    [
        referred({"enum": ["x"] * 10_000}),
        referred({"type": "string", "enum": ["x"] + [1] * 10_000}),
        referred({"type": ["null"] * 6000}),
        {"required": [f"k{n}" for n in range(7000)]},
        {"properties": {f"k{n}": {} for n in range(300)}},
        {"type": "array", "items": {}, "minItems": 10**9},
    ],
)
def test_hostile_schemas_take_bounded_time(schema: Any) -> None:
    started = time.process_time()
    with contextlib.suppress(ConfigError):
        automaton = automaton_of(GenerateOptions(json_schema=json.dumps(schema)))
        assert automaton is not None
        automaton.explore()
    assert time.process_time() - started < 5


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: Any = {"type": "null"}
    for _ in range(200):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    with pytest.raises(ConfigError, match="in one another"):
        automaton_of(GenerateOptions(json_schema=json.dumps(schema)))


@settings(deadline=None, max_examples=300)
@given(st.integers(-2000, 2000), st.integers(0, 3000), st.integers(-6000, 6000))
def test_whole_numbers_between_bounds(low: int, width: int, number: int) -> None:
    found = re.fullmatch(json_patterns.integers(low, low + width), str(number)) is not None
    assert found == (low <= number <= low + width)
