"""python -m gptcli"""

from gptcli.cli import main

main()
