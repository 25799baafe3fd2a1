"""What can go wrong, as a tree. Each leaf has an exit code of its own.

    AifError                     something a person can mend; shown as one line, never as a traceback
      BadInput              2    a pipeline file, a rubric, a source, an argument
      NotStarted            2    asked whether to spend so much, a person said no
      Incomplete            3    an export that is to be more complete than it can be now
      StoreLocked           6    another run holds the store
      StoreStarved          8    the store asks for more memory than it may take
      StoreDamaged          7    the store can't be read as it is; it can be made again from the journal
      JournalDamaged        7    the journal can't, and it is the truth
      ProviderRefused       5    a provider said no for good: key, quota, model
      BudgetReached         4    the budget covers no further call

Exit codes that are no errors: 0 done, 3 done with failures, 130 interrupted in order.
8 is also the system's own error, an OSError that says that the disk is full.
Errors of a single call are `aif.providers.base.CallError`: rows in the store, never the end of a run.
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


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: there is no room


class AifError(Exception):
    """Base of all errors that are told to a person: what happened, where, what to do."""

    exit = Exit.BUG


class BadInput(AifError):
    """What the user gave can't be used; the message names the place and the mend."""

    exit = Exit.BAD_INPUT


class NotStarted(AifError):
    """A person was asked whether to go on and said no. Not 0, so that `aif run … && aif export …` ends there."""

    exit = Exit.BAD_INPUT


class Incomplete(AifError):
    """A dataset would be less complete than was asked for; the message names what is missing, and what gets it."""

    exit = Exit.FAILURES


class StoreLocked(AifError):
    """Another process writes to this store; the message names it."""

    exit = Exit.LOCKED


class StoreDamaged(AifError):
    """The store can't be read. It is derived: `Ledger.use` makes it again from the journal."""

    exit = Exit.DAMAGED


class StoreStarved(AifError):
    """DuckDB finds no room in memory; the message says what makes what it holds smaller."""

    exit = Exit.DISK


class JournalDamaged(AifError):
    """The journal can't be read, or is gone: the message says what to put back."""

    exit = Exit.DAMAGED


class ProviderRefused(AifError):
    """A provider refuses every call until something is mended (key, quota, model name)."""

    exit = Exit.REFUSED


class BudgetReached(AifError):
    """The budget covers no further call; the message says what was counted as spent."""

    exit = Exit.BUDGET
