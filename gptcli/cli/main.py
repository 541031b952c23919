"""The `gptcli` command: its subcommands in the order of the work, and the one place where errors become exit codes.

Nothing here or in commands/ imports torch before a command needs it, so that help and mistakes answer at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from importlib import import_module
from types import FrameType

import click

from gptcli import __version__
from gptcli.base.errors import GptcliError, is_out_of_memory

STDOUT_CLOSED, INTERNAL = 141, 70


COMMANDS = {
    "quickstart": "quickstart.quickstart",
    "corpus": "corpus.corpus",
    "train-tokenizer": "train_tokenizer.train_tokenizer",
    "encode": "tokens.encode",
    "decode": "tokens.decode",
    "count": "tokens.count",
    "prepare": "prepare.prepare",
    "config": "config.config",
    "plan": "plan.plan",
    "pretrain": "pretrain.pretrain",
    "import": "import_model.import_model",
    "runs": "runs.runs",
    "plot": "plot.plot",
    "checkpoint": "checkpoint.checkpoint",
    "preview": "preview.preview",
    "finetune": "finetune.finetune",
    "merge": "merge.merge",
    "evaluate": "evaluate.evaluate",
    "eval-harness": "eval_harness.eval_harness",
    "score": "score.score",
    "generate": "generate.generate",
    "chat": "chat.chat",
    "classify": "classify.classify",
    "export": "export_model.export_model",
    "bench": "bench.bench",
}


class Workflow(click.Group):
    """The commands in the order of the work; the module of one is imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest name for one that there is not."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = [name for name in COMMANDS if args[0] in name.split("-") or (args[0] and name.endswith(args[0]))]
            near = near or difflib.get_close_matches(args[0], COMMANDS, 1)
            if not near:
                raise
            what = f"{error.message.rstrip('.')}; did you mean {' or '.join(near)}?"
            raise click.UsageError(what, ctx) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(".")
        command: click.Command = getattr(import_module(f"gptcli.cli.commands.{module}"), name)
        return command


@click.group(
    name="gptcli", cls=Workflow, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, "--version", message="%(version)s")
@click.option("--debug", is_flag=True, help="Show a traceback where something fails.")
def cli(debug: bool) -> None:
    """Train, measure and use GPT language models, from raw text to a model that writes.

    \b
    Begin with:
      gptcli quickstart
    or step by step:
      gptcli train-tokenizer corpus.txt -o tok.json
      gptcli pretrain run.yaml -s train.steps=500
      gptcli evaluate runs/demo held-out.txt
      echo "Once upon a time" | gptcli generate runs/demo --max-tokens 100

    Results go to stdout, messages to stderr. Exit codes: 0 done, 1 failed while running, 2 usage or run file, 3 bad
    data, 4 not finite, 5 would overwrite or busy, 70 a bug, 130 interrupted, 141 stdout closed, 143 terminated.
    """


class _Terminated(BaseException):
    """SIGTERM, outside of a loop that ends by itself."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _fill_closed_descriptors() -> None:
    """Stand-ins for streams that whoever started us has closed, lest a file gets their number; writing there fails."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    _fill_closed_descriptors()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = STDOUT_CLOSED
    except (OSError, ValueError) as error:
        if code == 0:  # else it was said, or something worse was
            code = _say(_command_name(sys.argv[1:]), f"stdout: {getattr(error, 'strerror', None) or error}", 1)
    # Past this point only interpreter shutdown is left: skip the second or so that torch takes for it, and the flush
    # of a stdout that is gone.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line; every error becomes its message on stderr and its exit code."""
    name = _command_name(arguments)
    try:
        # Not cli.main: it would end the process itself where stdout is closed.
        with cli.make_context("gptcli", list(arguments)) as context:
            result = cli.invoke(context)
        return result if isinstance(result, int) else 0
    except BaseException as error:
        if "--debug" in arguments[:1] or os.environ.get("GPTCLI_DEBUG"):
            traceback.print_exc()
        return _explain(name, error, arguments)


def _explain(name: str, error: BaseException, arguments: list[str]) -> int:
    match error:
        case GptcliError():
            for problem in error.problems:
                _say(name, problem, 0)
            return error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return 2
        case click.ClickException():
            return _say(name, _usage(error), 2)
        case click.exceptions.Exit():
            return error.exit_code
        case KeyboardInterrupt() | click.Abort():
            return _say(name, "interrupted", 130, "")
        case _Terminated():
            return _say(name, "terminated", 143, "")
        case BrokenPipeError():
            return STDOUT_CLOSED
        case UnicodeEncodeError():
            return _say(name, "the text is not UTF-8, or holds lone surrogates; mend the input", 3)
        case OSError():
            from gptcli.base.escape import shown

            place = shown(str(error.filename)) if error.filename else "stdout"
            return _say(name, f"{place}: {error.strerror or error}{_advice(error)}", 1)
        case MemoryError() | RuntimeError() if is_out_of_memory(error):
            return _say(name, "out of memory; lower --batch-size or the length of the text, or use a smaller model", 1)
        case _:
            return _report_crash(name, error, arguments)


def _advice(error: OSError) -> str:
    """What to do about a failed system call, where that is known."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "; make room and run the command again"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return "; name a place where you may write"
    return ""


def _report_crash(name: str, error: BaseException, arguments: list[str]) -> int:
    """One line, and a file that says all: this should not have happened."""
    from gptcli.base.escape import shown
    from gptcli.cli.crash import write_report

    what = shown(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
    path = write_report(arguments, error)
    where = f"please report it with {shown(str(path), 1000)}" if path else "GPTCLI_DEBUG=1 shows where"
    return _say(name, f"{what}; this is a bug in gptcli, {where}", INTERNAL)


def _say(name: str, problem: str, code: int, kind: str = "error: ") -> int:
    from gptcli.cli.console import error_line

    error_line(name, problem, kind)
    return code


def _usage(error: click.ClickException) -> str:
    """Click's message on one line, with where to look."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "gptcli"
    text = " ".join(error.format_message().split()).rstrip(".")
    takes_keys = context is not None and any(parameter.name == "overrides" for parameter in context.command.params)
    if isinstance(error, click.NoSuchOption) and takes_keys:
        text += "; what a run file holds is set by -s KEY=VALUE"
    return f"{text}; see {path} --help"


def _command_name(arguments: list[str]) -> str:
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    return name if name in COMMANDS else ""
