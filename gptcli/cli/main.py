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
from gptcli.base.signals import SIGNALS
from gptcli.device.world import speaks

STDOUT_CLOSED, INTERNAL = 141, 70

MORE_MEMORY = "raise the limit (ulimit -v, or that of the container), or close other programs"
_AT_ONCE = "lower --batch-size or the length of the text, or use a smaller model"
LESS_MEMORY = {  # what each command has that takes less of it
    "generate": _AT_ONCE,
    "chat": _AT_ONCE,
    "train-tokenizer": "lower --max-bytes",
    "pretrain": "lower train.micro_batch_size, or take a smaller model",
    "finetune": "lower train.micro_batch_tokens, or take a smaller model",
    **dict.fromkeys(("evaluate", "score", "classify"), "shorten the text, or use a smaller model"),
}

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
    "sweep": "sweep.sweep",
    "runs": "runs.runs",
    "plot": "plot.plot",
    "checkpoint": "checkpoint.checkpoint",
    "lineage": "lineage.lineage",
    "preview": "preview.preview",
    "finetune": "finetune.finetune",
    "merge": "merge.merge",
    "evaluate": "evaluate.evaluate",
    "eval-harness": "eval_harness.eval_harness",
    "score": "score.score",
    "audit": "audit.audit",
    "generate": "generate.generate",
    "chat": "chat.chat",
    "classify": "classify.classify",
    "serve": "serve.serve",
    "watermark-key": "watermark.watermark_key",
    "detect": "watermark.detect",
    "export": "export_model.export_model",
    "bench": "bench.bench",
}


class Workflow(click.Group):
    """The commands in the order of the work, each module imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command as click does; for an unknown one, raise UsageError naming the nearest."""
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
    data, 4 not finite, 5 would overwrite or busy, 70 a bug, 75 another process of the run failed, 130 interrupted,
    141 stdout closed, 143 terminated, 128 + N ended by signal N.
    """


class _Terminated(BaseException):
    """Raised by a signal that ends the command, outside of the loops that end by themselves."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise _Terminated(number)


def _fill_closed_descriptors() -> None:
    """Reopen closed descriptors 0 to 2 on /dev/null, so that no file gets their number; writing there fails."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115


def main() -> None:
    """Run the command line and exit with its code."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:  # neither ignored, as by nohup, nor SIGINT, which Python raises
            signal.signal(number, _terminate)
    _fill_closed_descriptors()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = STDOUT_CLOSED
    except (OSError, ValueError) as error:
        if code == 0:  # else it was said, or something worse was
            code = _say(_command_name(sys.argv[1:]), f"stdout: {getattr(error, 'strerror', None) or error}", 1)
    if _debugging(sys.argv[1:]):  # as profilers need it, which write at the interpreter's end
        sys.exit(code)
    # Past this point only interpreter shutdown is left: skip the second or so that torch takes for it, and the flush
    # of a stdout that is gone.
    os._exit(code)


def _debugging(arguments: list[str]) -> bool:
    return "--debug" in arguments[:1] or bool(os.environ.get("GPTCLI_DEBUG"))


def run(arguments: list[str]) -> int:
    """Run one command line; every error becomes its message on stderr and its exit code."""
    name = _command_name(arguments)
    try:
        # Not cli.main: it would end the process itself where stdout is closed.
        with cli.make_context("gptcli", list(arguments)) as context:
            result = cli.invoke(context)
        return result if isinstance(result, int) else 0
    except BaseException as error:
        if _debugging(arguments):
            traceback.print_exc()
        return _explain(name, error, arguments)
    finally:
        _warn_of_file_systems(name)


def _warn_of_file_systems(name: str) -> None:
    """Tell what the file systems that were written to do not have."""
    if operations := sys.modules.get("gptcli.base.fsio.operations"):
        for warning in operations.take_warnings():
            _say(name, warning, 0, "warning: ")


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
            return _say(name, "terminated", error.exit_code, "")
        case BrokenPipeError():
            return STDOUT_CLOSED
        case UnicodeEncodeError():
            return _say(name, "the text is not UTF-8, or holds lone surrogates; mend the input", 3)
        case _ if is_out_of_memory(error):
            library = isinstance(error, ImportError)  # torch's do not even fit into the address space
            return _say(name, f"out of memory; {MORE_MEMORY if library else LESS_MEMORY.get(name, MORE_MEMORY)}", 1)
        case OSError():
            from gptcli.base.escape import shown

            # Files are written with their names; what click prints is not.
            of_stdout = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EBADF)
            name_of = error.filename or ("stdout" if of_stdout else None)
            place = f"{shown(str(name_of))}: " if name_of else ""
            return _say(name, f"{place}{shown(error.strerror or str(error), 400)}{_advice(error)}", 1)
        case _:
            return report_crash(name, error, arguments)


def _advice(error: OSError) -> str:
    """Return what to do about a failed system call, where that is known."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "; make room and run the command again"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return "; name a place where you may write"
        case errno.EMFILE | errno.ENFILE:
            return "; raise the limit of open files, ulimit -n"
    return ""


def report_crash(name: str, error: BaseException, arguments: list[str]) -> int:
    """Return one line, and a file that says all: this should not have happened."""
    from gptcli.base.escape import shown
    from gptcli.cli.crash import write_report

    what = shown(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
    path = write_report(arguments, error)
    where = f"please report it with {shown(str(path), 1000)}" if path else "GPTCLI_DEBUG=1 shows where"
    return _say(name, f"{what}; this is a bug in gptcli, {where}", INTERNAL)


def _say(name: str, problem: str, code: int, kind: str = "error: ") -> int:
    from gptcli.cli.console import error_line

    if speaks():  # of several processes one
        error_line(name, problem, kind)
    return code


def _usage(error: click.ClickException) -> str:
    """Return click's message on one line, with where to look."""
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
