"""The OpenAPI document of the server."""

from __future__ import annotations

from typing import Any

from gptcli.api.serve.fields import MAX_LOGPROBS, MAX_TEXTS

DRAWING: dict[str, Any] = {
    "model": {"type": "string"},
    "max_tokens": {"type": "integer", "minimum": 0},
    "max_completion_tokens": {"type": "integer", "minimum": 0},
    "temperature": {"type": "number", "minimum": 0, "maximum": 100},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"type": "integer", "minimum": 1},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "repetition_penalty": {"type": "number", "minimum": 0.01, "maximum": 100},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_TEXTS},
    "seed": {"type": "integer"},
    "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 16}]},
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "min_tokens": {"type": "integer", "minimum": 0},
    "ignore_eos": {"type": "boolean"},
    "lookup": {"type": "integer", "minimum": 0, "maximum": 64},
    "choices": {"type": "array", "items": {"type": "string"}},
    "regex": {"type": "string"},
    "response_format": {
        "type": "object",
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "json_schema": {"type": "object", "properties": {"name": {"type": "string"}, "schema": {"type": "object"}}},
        },
        "required": ["type"],
    },
}
INPUT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
STATUSES = ("400", "401", "403", "404", "405", "408", "413", "415", "429", "431", "500", "503", "504")


def document(name: str) -> dict[str, Any]:
    """Return the document for a model of this name."""
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    prompt = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, ids]}
    messages = {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "properties": {
                "role": {"enum": ["system", "developer", "user", "assistant"]},
                "content": {"type": "string"},
            },
            "required": ["role", "content"],
        },
    }
    likeliest = {"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS}
    paths = {
        "/v1/chat/completions": _post(
            {**DRAWING, "messages": messages, "logprobs": {"type": "boolean"}, "top_logprobs": likeliest}, ["messages"]
        ),
        "/v1/completions": _post(
            {**DRAWING, "prompt": prompt, "echo": {"type": "boolean"}, "logprobs": likeliest}, ["prompt"]
        ),
        "/v1/classify": _post({"model": {"type": "string"}, "input": INPUT}, ["input"]),
        "/v1/score": _post({"model": {"type": "string"}, "input": INPUT}, ["input"]),
        "/tokenize": _post({"prompt": {"type": "string"}, "messages": messages}, []),
        "/detokenize": _post({"tokens": ids}, ["tokens"]),
        "/v1/models": _get(),
        "/tokenizer_info": _get(),
        "/health": _get(),
    }
    security = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"gptcli serve {name}", "version": "1"},
        "paths": paths,
        "components": security,
        "security": [{"key": []}, {}],
    }


def _answers() -> dict[str, Any]:
    error = {"description": "refused", "content": {"application/json": {"schema": ERROR}}}
    whole = {
        "description": "answered",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    return {"200": whole, **dict.fromkeys(STATUSES, error)}


def _post(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"post": {"requestBody": body, "responses": _answers()}}


def _get() -> dict[str, Any]:
    return {"get": {"responses": _answers()}}
