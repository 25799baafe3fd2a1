"""How the trial of lost results reads a log of strace."""

from trials.reliability.strace import synced


def test_what_was_written_before_a_sync_began_is_synced() -> None:
    log = """\
7 pwrite64(3</s/1.jsonl>, ""..., 100, 0) = 100
7 fsync(3</s/1.jsonl>) = 0
7 pwrite64(3</s/1.jsonl>, ""..., 50, 100) = 50
8 write(5</s/db.wal>, ""..., 40) = 40
8 fdatasync(5</s/db.wal> <unfinished ...>
9 write(5</s/db.wal>, ""..., 8) = 8
8 <... fdatasync resumed>) = 0
7 fsync(3</s/1.jsonl> <unfinished ...>
7 +++ killed by SIGKILL +++
"""
    assert synced(log.splitlines()) == {"/s/1.jsonl": 100, "/s/db.wal": 40}


def test_a_file_that_was_cut_is_shorter() -> None:
    log = ['7 write(3</s/w>, ""..., 90) = 90', "7 ftruncate(3</s/w>, 0) = 0", "7 fdatasync(3</s/w>) = 0"]
    assert synced(log) == {"/s/w": 0}


def test_a_cut_that_another_thread_came_between_counts() -> None:
    log = ['7 write(3</s/w>, ""..., 90) = 90', "7 ftruncate(3</s/w>, 10 <unfinished ...>", "8 fsync(3</s/w>) = 0"]
    assert synced([*log, "7 <... ftruncate resumed>) = 0", "7 fdatasync(3</s/w>) = 0"]) == {"/s/w": 10}
