"""Errors that a user can put right, each with its exit code.

Everything else that is raised is a defect of ours and keeps its traceback.
"""


class UserError(Exception):
    """A wrong config, argument, data set or machine: says what, where, and the next step. Exit code 2.

    `result`: what was done all the same, for the command's last line of JSON.
    """

    exit_code = 2
    result: "dict[str, object] | None" = None


class Unreadable(UserError):
    """One sample cannot be read or decoded; `data.on_error="skip"` goes on without it."""


class Damaged(UserError):
    """A file of ours that is no longer what was written: empty, cut, changed, or of something else."""


class Gone(UserError):
    """A file or folder that this process writes to was deleted or moved by someone else meanwhile."""


class Diverged(UserError):
    """Training left the finite numbers. Exit code 3."""

    exit_code = 3


class Unfit(UserError):
    """A problem that all hosts found together and that would stop or spoil a run.

    One host says it, and none waits for another.
    """


class Interrupted(UserError):
    """SIGTERM or Ctrl-C, after saving: the same command resumes. Exit code 75 (EX_TEMPFAIL)."""

    exit_code = 75


def look_alike(a: str, b: str) -> bool:
    """Whether two names are the same but for how Unicode spells them, such as accents composed (NFC) or not (NFD)."""
    import unicodedata

    return unicodedata.normalize("NFKC", a) == unicodedata.normalize("NFKC", b)


def nearest(name: str, valid: "list[str] | tuple[str, ...]") -> str:
    """The tail of an error message: a near name where there is one, else what there is."""
    import difflib

    close = difflib.get_close_matches(name, [str(v) for v in valid], n=1, cutoff=0.5)
    alike = next((str(v) for v in valid if str(v) != name and look_alike(name, str(v))), None)
    if alike is not None:
        return f"did you mean {alike!a}, which looks the same as {name!a}?"
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(str(v) for v in valid)) or 'none'}"
