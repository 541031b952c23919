"""The form of a conversation as a Jinja template, from which transformers makes the same ids."""

from __future__ import annotations

import json
import re

from gptcli.data.conversation import ASSISTANT, Conversation
from gptcli.data.tokenizer import Tokenizer

# Here text does become tokens again when the whole is encoded, so a message that spells a control token is refused.
_TEMPLATE = """\
{%- set roles = ROLES -%}
BEGIN
{%- for message in messages -%}
{%- if message['role'] not in roles -%}
{{- raise_exception("roles are " + roles | join(", ")) -}}
{%- endif -%}
{%- for control in CONTROLS -%}
{%- if control in message['content'] -%}
{{- raise_exception("the text of a message spells the control token " + control) -}}
{%- endif -%}
{%- endfor -%}
{{- roles[message['role']] + message['content'] + END -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- ANSWER -}}
{%- endif -%}
"""


def chat_template(conversation: Conversation, tokenizer: Tokenizer) -> str:
    """Return the content of chat_template.jinja."""
    values = {
        "ROLES": dict(conversation.roles),
        "CONTROLS": list(tokenizer.specials),
        "END": conversation.end,
        "ANSWER": conversation.roles[ASSISTANT],
    }
    text = _TEMPLATE.replace("BEGIN\n", "" if tokenizer.begin is None else "{{- bos_token -}}\n")
    # In one pass: a control token may spell one of the names.
    return re.sub(r"\b(?:ROLES|CONTROLS|END|ANSWER)\b", lambda m: json.dumps(values[m[0]], ensure_ascii=False), text)


def conversation_of(template: str, tokenizer: Tokenizer) -> Conversation | None:
    """Return the conversation that `chat_template` wrote this template for; None for any other template."""
    roles, end = re.search(r"set roles = (.*) -%}", template), re.search(r"\['content'\] \+ (.*) -}}", template)
    if roles is None or end is None:
        return None
    try:
        conversation = Conversation.from_json({"roles": json.loads(roles[1]), "end": json.loads(end[1])})
    except ValueError:
        return None
    return conversation if chat_template(conversation, tokenizer) == template else None
