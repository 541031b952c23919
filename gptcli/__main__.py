"""The command `gptcli`, and `python -m gptcli`."""

import os


def main() -> None:
    """Run the command line. Ctrl-C while the modules are loaded is told as at any other time."""
    try:
        from gptcli.cli import main as run
    except KeyboardInterrupt:
        os.write(2, b"gptcli: interrupted\n")
        os._exit(130)
    run()


if __name__ == "__main__":
    main()
