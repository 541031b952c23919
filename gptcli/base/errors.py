"""Every error a user can cause or meet, each kind with its exit code.

    GptcliError          1  failed at run time: I/O, memory, disk
    ├─ ConfigError       2  usage or run file
    ├─ DataError         3  bad data or a bad artifact (corpus, shard, tokenizer, checkpoint)
    ├─ NumericalError    4  a non-finite loss, gradient or logit
    ├─ RefusedError      5  would overwrite, or the directory is busy
    ├─ LostProcess      75  another process of the run failed, and says why
    └─ InterruptedRun  130  SIGINT, 143 SIGTERM, 128 + N signal N; the run can be resumed

Messages follow one form, `PLACE: what is wrong; what to do`, where PLACE is a file, file:line or key.
`cli/main.py` prints it and exits; any other exception that gets there is a bug in gptcli and exits with 70.
"""


class GptcliError(Exception):
    """An expected failure: one line for the user, no traceback."""

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ConfigError(GptcliError):
    """A run file, an option or an argument is wrong; carries every problem found, one string each."""

    exit_code = 2


class DataError(GptcliError):
    """Input text, a tokenizer, a shard or a checkpoint is not what it must be."""

    exit_code = 3


class NumericalError(GptcliError):
    """A loss, gradient, weight or logit is not finite."""

    exit_code = 4


class RefusedError(GptcliError):
    """The output exists, or another process writes to the directory."""

    exit_code = 5


class LostProcess(GptcliError):
    """Another process of the same run failed: that one has said why, so that this one has nothing to say."""

    exit_code = 75


class InterruptedRun(GptcliError):
    """A signal stopped the command at a safe point."""

    def __init__(self, problem: str, *, exit_code: int) -> None:
        super().__init__(problem)
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, PyTorch's CPU allocator, an accelerator or the loader of libraries ran out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError | OSError)
        and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
    )


_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment",  # of a shared library, where ulimit -v is low
    "can't start new thread",  # for lack of room for its stack, as a rule
)
