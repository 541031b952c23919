"""Other programs as clients of the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Tiny
from serving import TEXT, Running, serving


@pytest.fixture(scope="module")
def server(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny.run, tmp_path_factory.mktemp("serve"), "--batch-size", "4") as running:
        yield running


def test_the_openai_package(server: Running) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    whole = client.completions.create(model="", **TEXT)
    parts = client.completions.create(model="", stream=True, **TEXT)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="", prompt="a", temperature=1000)
