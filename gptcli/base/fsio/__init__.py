"""Every write that must survive a crash: temporary file, fsync, rename; a manifest for directories; one writer.

What is being written has a name that begins with `.tmp-`, what is being deleted one that begins with `.trash-`. Both
are swept by the next writer of the same output, or by the next one that holds the directory's lock.

    operations   what changes the file system, an operation a function: where tests crash, fail and record
    files        a file that appears whole or not at all; a file that grows by whole lines
    directories  a directory that appears whole, with a manifest that finds any damage
    locks        one writer a directory
"""

from gptcli.base.fsio.directories import (
    MANIFEST,
    check_replaceable,
    delete,
    new_directory,
    publish,
    sweep,
    sweep_abandoned,
    verify,
)
from gptcli.base.fsio.files import (
    appending,
    check_apart,
    check_writable,
    new_file,
    point,
    read_json,
    remove_file,
    replacing,
    sha256,
    sync_file,
    write_file,
    write_json,
    write_new_file,
    write_new_json,
)
from gptcli.base.fsio.locks import LOCK, locked
from gptcli.base.fsio.operations import make_directory

__all__ = [
    "LOCK",
    "MANIFEST",
    "appending",
    "check_apart",
    "check_replaceable",
    "check_writable",
    "delete",
    "locked",
    "make_directory",
    "new_directory",
    "new_file",
    "point",
    "publish",
    "read_json",
    "remove_file",
    "replacing",
    "sha256",
    "sweep",
    "sweep_abandoned",
    "sync_file",
    "verify",
    "write_file",
    "write_json",
    "write_new_file",
    "write_new_json",
]
