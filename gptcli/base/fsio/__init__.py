"""Every write that must survive a crash: temporary file, fsync, rename; a manifest for directories; one writer.

What is being written has a name that begins with `.tmp-`, what is being deleted one that begins with `.trash-`, what is
being replaced, for a moment, one that begins with `.old-`. The next writer of the same output, or the next one that
holds the directory's lock, sweeps the first two and gives the third its name back.

    leftovers    the names of what is being written, deleted or replaced
    operations   what changes the file system, an operation a function: where tests crash, fail and record
    files        a file that appears whole or not at all; a file that grows by whole lines
    directories  a directory that appears whole, with a manifest that finds any damage
    locks        one writer a directory
"""

from gptcli.base.fsio.directories import (
    ADDED,
    MANIFEST,
    Described,
    check_replaceable,
    delete,
    describe,
    foreign,
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
    follow,
    new_file,
    point,
    pointed,
    read_json,
    remove_file,
    replacing,
    sha256,
    strict_json,
    sync_file,
    write_file,
    write_json,
    write_new_file,
    write_new_json,
)
from gptcli.base.fsio.leftovers import KINDS, leftovers
from gptcli.base.fsio.locks import LOCK, is_held, locked
from gptcli.base.fsio.operations import make_directory, remove_tree, take_warnings

__all__ = [
    "ADDED",
    "KINDS",
    "LOCK",
    "MANIFEST",
    "Described",
    "appending",
    "check_apart",
    "check_replaceable",
    "check_writable",
    "delete",
    "describe",
    "follow",
    "foreign",
    "is_held",
    "leftovers",
    "locked",
    "make_directory",
    "new_directory",
    "new_file",
    "point",
    "pointed",
    "publish",
    "read_json",
    "remove_file",
    "remove_tree",
    "replacing",
    "sha256",
    "strict_json",
    "sweep",
    "sweep_abandoned",
    "sync_file",
    "take_warnings",
    "verify",
    "write_file",
    "write_json",
    "write_new_file",
    "write_new_json",
]
