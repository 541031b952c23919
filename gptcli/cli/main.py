"""The `gptcli` command: its subcommands in the order of the work, and the one place where errors become exit codes.

Nothing here or in commands/ imports torch before a command needs it, so that help and mistakes answer at once.
"""

from __future__ import annotations

import errno
import os
import resource
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

# Libraries that have less end the process themselves, or wait for a thread that could not begin.
LEAST_ADDRESS_SPACE = 256 << 20
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

COMMANDS = {  # each with the first sentence of its help, so that --help imports none of them
    "quickstart": ("quickstart.quickstart", "Make a model that writes from nothing, in minutes, offline."),
    "corpus": ("corpus.corpus", "Clean a corpus: inspect, filter, deduplicate and decontaminate it."),
    "train-tokenizer": ("train_tokenizer.train_tokenizer", "Train a byte-level BPE tokenizer."),
    "encode": ("tokens.encode", "Turn text into token ids, a line for each document."),
    "decode": ("tokens.decode", "Turn token ids on stdin, a line for each document, into text on stdout."),
    "count": ("tokens.count", "Count documents, bytes and tokens."),
    "prepare": ("prepare.prepare", "Encode text into token shards for pretraining."),
    "config": ("config.config", "Inspect run files: check one, show its effective values, list every key."),
    "plan": ("plan.plan", "Plan a run: parameters, tokens, FLOPs, memory, time, energy and price."),
    "pretrain": ("pretrain.pretrain", "Train a model from scratch, as a run file says."),
    "import": ("import_model.import_model", "Import a pretrained model from a transformers directory or a GGUF file."),
    "sweep": ("sweep.sweep", "Train a run file with several values of some keys, and compare."),
    "runs": ("runs.runs", "List runs, or compare two."),
    "plot": ("plot.plot", "Plot curves of runs, in the terminal or as an image."),
    "checkpoint": ("checkpoint.checkpoint", "List a run's checkpoints, or verify every byte of them."),
    "lineage": ("lineage.lineage", "Show what a model comes from: hashes of inputs, recipe, tokenizer, code and base."),
    "preview": ("preview.preview", "Show the first rows of a fine-tuning run as tokens, before training."),
    "finetune": ("finetune.finetune", "Fine-tune a trained model on rows, as a run file says."),
    "merge": ("merge.merge", "Merge a LoRA run and its base model into one checkpoint."),
    "evaluate": ("evaluate.evaluate", "Evaluate a model on text or on labelled rows."),
    "eval-harness": ("eval_harness.eval_harness", "Run tasks of EleutherAI's lm-eval on a model."),
    "score": ("score.score", "Score each line of stdin: its log-probability and bits per byte, as JSON."),
    "audit": ("audit.audit", "Measure what a model gives away of its training text."),
    "generate": ("generate.generate", "Write text that continues a prompt."),
    "chat": ("chat.chat", "Talk to a model that was fine-tuned on conversations."),
    "classify": ("classify.classify", "Classify each line of stdin."),
    "serve": ("serve.serve", "Serve a model over HTTP: OpenAI's API, and a chat page for the browser."),
    "watermark-key": (
        "watermark.watermark_key",
        "Make a secret key for generate, chat and serve --watermark, which only you may read.",
    ),
    "detect": ("watermark.detect", "Test whether a text has the watermark of a key, with an exact p-value."),
    "export": ("export_model.export_model", "Export a model for other programs."),
    "bench": ("bench.bench", "Measure this machine, and how fast it trains and writes."),
}


class Workflow(click.Group):
    """The commands in the order of the work, each module imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

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
        module, name = COMMANDS[cmd_name][0].split(".")
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
    """The exception of a signal that ends the command, outside of the loops that end by themselves."""

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
        if name:
            _check_address_space()
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


def _check_address_space() -> None:
    """Raise GptcliError where a limit leaves no room for the libraries of any command."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise GptcliError(f"out of memory; {MORE_MEMORY}")


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
            from gptcli.base.escape import escape

            # Files are written with their names; what click prints is not.
            of_stdout = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EBADF)
            name_of = error.filename or ("stdout" if of_stdout else None)
            place = f"{escape(str(name_of))}: " if name_of else ""
            return _say(name, f"{place}{escape(error.strerror or str(error), 400)}{_advice(error)}", 1)
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
    from gptcli.base.escape import escape
    from gptcli.cli.crash import write_report

    what = escape(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
    path = write_report(arguments, error)
    where = f"please report it with {escape(str(path), 1000)}" if path else "GPTCLI_DEBUG=1 shows where"
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
