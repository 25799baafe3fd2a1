"""The errors that aif shows to a user, each with its exit code.

    AifError                     shown as its message, never as a traceback; the user can fix it
      BadInput              2    a pipeline file, a rubric, a source or an argument can't be used
      NotStarted            2    the user did not confirm the cost
      Incomplete            3    an export has to be more complete than it can be now
      StoreLocked           6    another process has the store open
      StoreOutOfMemory      8    the store needs more memory than it may use
      StoreDamaged          7    the store can't be read; it can be rebuilt from the journal
      JournalDamaged        7    the journal can't be read, and nothing can replace it
      ProviderRefused       5    a provider refuses every call: key, quota, model
      BudgetReached         4    the rest of the budget is too small for the next call

Exit codes without an error class: 0 done, 1 a bug, 3 done with failures, 130 interrupted cleanly. 8 is also the code
for an OSError that says that the disk is full.
A single failed call raises `aif.providers.base.CallError`: it becomes a row of the store and does not end the run.
"""

import errno
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of the `aif` command."""

    DONE = 0
    BUG = 1
    BAD_INPUT = 2
    FAILURES = 3
    BUDGET = 4
    REFUSED = 5
    LOCKED = 6
    DAMAGED = 7
    DISK = 8
    INTERRUPTED = 130


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # values of OSError.errno


class AifError(Exception):
    """Base of the errors that a user sees. The message says what happened, where, and what to do."""

    exit = Exit.BUG


class BadInput(AifError):
    """The user's input can't be used. The message names the place and the fix."""

    exit = Exit.BAD_INPUT


class NotStarted(AifError):
    """The user did not confirm. The exit code is not 0, so that `aif run … && aif export …` stops."""

    exit = Exit.BAD_INPUT


class Incomplete(AifError):
    """The dataset would be less complete than `export.completeness` demands. The message says what is missing and how
    to get it."""

    exit = Exit.FAILURES


class StoreLocked(AifError):
    """Another process has the store open or holds its lock. The message names the process."""

    exit = Exit.LOCKED


class StoreDamaged(AifError):
    """The store can't be read. `JournaledStore.use` rebuilds it from the journal."""

    exit = Exit.DAMAGED


class StoreOutOfMemory(AifError):
    """DuckDB, in which the store is kept, ran out of memory. The message says which settings make the data smaller."""

    exit = Exit.DISK


class JournalDamaged(AifError):
    """The journal is damaged or missing. The message says what to restore."""

    exit = Exit.DAMAGED


class ProviderRefused(AifError):
    """A provider refuses every call until the user fixes the key, the quota or the model name."""

    exit = Exit.REFUSED


class BudgetReached(AifError):
    """The rest of the budget is too small for the next call. The message says how much is spent."""

    exit = Exit.BUDGET
