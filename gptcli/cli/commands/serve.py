"""gptcli serve"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.cli.commands import drawing, options
from gptcli.cli.commands.safeguards import safeguarded, take_safeguards
from gptcli.config.generate import GenerateOptions

NEEDED = ("starlette", "uvicorn", "prometheus_client")


@click.command(no_args_is_help=True)
@click.argument("run")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; one that others can reach needs a key.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes any that is free.",
)
@click.option("--unix-socket", metavar="PATH", help="Listen on a unix socket that only you can open instead.")
@click.option("--api-key-file", metavar="FILE", help="File of keys, one a line.  [default: GPTCLI_API_KEY, else none]")
@click.option("--no-key", is_flag=True, help="Accept requests from other machines without a key.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Accept this name in a Host header, too.")
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Accept requests from pages of this site, such as https://a.example.",
)
@click.option(
    "--share-prefix", is_flag=True, help="Let clients share computed beginnings of prompts; the time tells who asked."
)
@click.option("--model-name", metavar="NAME", help="Name of the model in the API.  [default: the run's own]")
@drawing.drawing
@safeguarded
@options.batch_size("Texts")
@click.option("--queue", type=click.IntRange(1), help="How many texts may wait for a row.  [default: 4 times the rows]")
@click.option(
    "--timeout", type=click.FloatRange(1), default=600, show_default=True, help="Time limit for a text, in seconds."
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    help="Seconds to finish open answers when the server stops.",
)
@click.option("--ping", type=click.FloatRange(0), default=15, show_default=True,
              help="Send a comment after this many seconds of silence in a stream; 0: never.")  # fmt: skip
@options.quiet
@options.on_device
@options.quantize
def serve(
    run: str,
    host: str,
    port: int,
    unix_socket: str | None,
    api_key_file: str | None,
    no_key: bool,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    share_prefix: bool,
    model_name: str | None,
    queue: int | None,
    timeout: float,
    grace: float,
    ping: float,
    quiet: bool,
    **how: Any,
) -> None:
    """Serve a model over HTTP: OpenAI's API, and a chat page for the browser.

    The URL is printed on stdout as soon as the server listens; requests are answered once the model is loaded. The
    sampling options are defaults for requests that do not set them. Ctrl-C or SIGTERM stops the server after the
    answers in progress.

    \b
    Examples:
      gptcli serve runs/shop
      curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
        -d '{"prompt": "Once upon a time", "max_tokens": 50}'
      gptcli serve runs/shop --host 0.0.0.0 --api-key-file key.txt --allow-host models.example
      gptcli serve runs/demo --port 0 > url.txt &
    """
    options.ask_for_huge_pages()
    from gptcli.api.serve.place import Place
    from gptcli.cli import console

    given = drawing.take_given(how)
    report = console.ConsoleReport("serve", quiet=quiet)
    how["safeguards"] = take_safeguards(how, GenerateOptions(**given), report)
    keys = _keys(api_key_file)
    if not Path(run).exists():
        raise ConfigError(f"{escape(run)}: no such directory; want the directory of a run or of a checkpoint")
    if missing := next((name for name in NEEDED if find_spec(name) is None), None):
        raise ConfigError(f"{missing} is not installed; pip install 'gptcli[serve]'")
    place = Place(host, port, unix_socket, keys, not no_key, share_prefix, allow_host, allow_origin)
    with place.listening() as listener:
        console.write_line(place.url(listener))
        from gptcli.api.serve.server import Limits
        from gptcli.api.serve.server import serve as run_server

        limits = Limits(queue, timeout, grace, ping)
        name = model_name or Path(run).resolve().name
        code = run_server(run, place, listener, limits, given, how, name=name, bug=_report_bug, report=report)
    click.get_current_context().exit(code)


def _report_bug(error: BaseException) -> None:
    from gptcli.cli.main import report_crash

    report_crash("serve", error, sys.argv[1:])


def _keys(path: str | None) -> tuple[str, ...]:
    """Return the keys of a file, or of the environment; never of a flag, which others can see."""
    if path is None:
        given = os.environ.get("GPTCLI_API_KEY", "").strip()
        return (given,) if given else ()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{escape(path)}: cannot be read ({getattr(error, 'strerror', error)})") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ConfigError(f"{escape(path)}: holds no key; write one a line")
    return keys
