"""The command `gptcli`, and `python -m gptcli`."""

import os
import sys


def main() -> None:
    """Run the command line. Ctrl-C while the modules are loaded is told as at any other time."""
    if sys.platform == "win32":
        sys.exit("gptcli: error: Windows is not supported; run gptcli in WSL, https://learn.microsoft.com/windows/wsl")
    try:
        if sys.getfilesystemencoding() == "ascii":  # LC_ALL=C and PYTHONUTF8=0: no name or text beyond it can be given
            os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
        if "RANK" in os.environ:
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what a lost connection means is said once
        from gptcli.device.process import own_process

        own_process()
        from gptcli.cli.main import main as run
    except KeyboardInterrupt:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one
            os.write(2, b"gptcli: interrupted\n")
        os._exit(130)
    run()


if __name__ == "__main__":
    main()
