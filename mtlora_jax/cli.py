"""What all commands share: flags, and user errors that end in one line instead of a traceback.

A command is a module of this shape, run as `python -m mtlora_jax.NAME`:

    def main(argv: Sequence[str] | None = None) -> None:
        parser = cli.Parser("mtlora_jax.NAME", __doc__, config=True)
        parser.add_argument("--workdir", required=True, type=user_path, help="folder for checkpoints and logs")
        args = parser.parse(argv)      # args.config is a locked ConfigDict, args.workdir a str
        ...

    if __name__ == "__main__":
        cli.run(main)
"""

import argparse
import contextlib
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

from mtlora_jax import config as configs
from mtlora_jax import config_aliases
from mtlora_jax.errors import UserError
from mtlora_jax.io import files

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """The system asked the command to end, with the signal `number`."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def _end(number: int, frame: object) -> NoReturn:
    del frame
    signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
    raise Ended(number)


def run(main: Callable[[], None], leave: Callable[[int], NoReturn] = sys.exit) -> None:
    """Run a command; print errors of the user as one line, and end the process with an exit code.

    A UserError, or an error caused by one, exits with 2; Ctrl-C with 130. SIGTERM and SIGHUP end the command as an
    error would, so that nothing is left behind, and exit with 143 and 129. An error of the operating system about a
    file also becomes one line, wherever it arises. `leave` ends the process with the code after the line is printed;
    any other error is raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack the letters of a class or a file
            stream.reconfigure(errors="backslashreplace")
    # A signal that is ignored stays ignored: nohup relies on it for SIGHUP.
    handlers = {number: signal.signal(number, _end) for number in ENDING if signal.getsignal(number) == signal.SIG_DFL}
    try:
        main()
    except KeyboardInterrupt:
        line, code = "interrupted", 130
    except Ended as ended:
        line, code = f"ended by {signal.Signals(ended.number).name}", 128 + ended.number
    except BrokenPipeError:  # nobody reads the output any more, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(1)
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        line, code = f"error: {message}", 2
    else:
        return
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    with contextlib.suppress(OSError):  # the terminal may be closed
        print(line, file=sys.stderr, flush=True)
    leave(code)


def _user_message(error: BaseException | None) -> str | None:
    """Return the message of the first UserError in the chain of causes of `error`, as one line.

    Without one, return that of an error of the operating system that names a file; None if it is not one either.
    Invisible characters, such as those that control a terminal, become their escape codes.
    """
    last = error
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    if error is None and isinstance(last, OSError) and last.filename is not None:
        name = os.fsdecode(last.filename) if isinstance(last.filename, bytes | str) else last.filename
        return _visible(f"{name}: {files.describe_error(last)}")
    return None if error is None else _visible(str(error))


def _visible(text: str) -> str:
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )


class Parser(argparse.ArgumentParser):
    """The flags of one command; every mistake in them is a UserError.

    `doc` is the module's docstring: --help shows it, so it contains an example. `config=True` adds
    --config=FILE.py[:ARGUMENT] and --config.KEY=VALUE.
    """

    def __init__(self, module: str, doc: str | None, config: bool = False):
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"python -m {module}", description=doc, formatter_class=shape, allow_abbrev=False)
        self._takes_config = config
        if config:
            self.add_argument(
                configs.FLAG,
                required=True,
                metavar="FILE.py[:ARGUMENT]",
                help="configuration file, and its argument if it takes one",
            )
            self.epilog = f"{configs.FLAG}.KEY=VALUE changes one value of the configuration; give as many as you like."

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `argv`, by default the command line.

        In the result, `.config` is the configuration with its overrides, locked. Raises UserError for an unknown flag
        or key, a wrong value, a missing flag, file or argument.
        """
        # The flags of absl belong to libraries (grain reads its own in every worker); this command takes none of them.
        flags.FLAGS.mark_as_parsed()
        argv = sys.argv[1:] if argv is None else argv
        prefix = f"{configs.FLAG}."
        overrides = [arg.removeprefix(prefix) for arg in argv if self._takes_config and arg.startswith(prefix)]
        rest = [arg for arg in argv if not (self._takes_config and arg.startswith(prefix))]
        self._check_names(rest)
        self._check_values(rest)
        args = self.parse_args(rest)
        if self._takes_config:
            args.config = configs.load(args.config, overrides)
        return args

    def _check_names(self, argv: Sequence[str]) -> None:
        """Refuse unknown flags before argparse, which would only complain that a misspelt required flag is missing."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for name in (arg.partition("=")[0] for arg in argv if arg.startswith("--")):
            renamed = config_aliases.FLAGS.get(name)
            if renamed in known:
                raise UserError(f"there is no flag {name}; it is called {renamed} now")
            if name not in known:
                raise UserError(f"unknown flag {name}{configs.did_you_mean(name, known)}")

    def _check_values(self, argv: Sequence[str]) -> None:
        """Refuse required flags with an empty value: as a path, it would mean the current folder."""
        required = [name for action in self._actions if action.required for name in action.option_strings]
        for name in required:
            if f"{name}=" in argv or (name, "") in itertools.pairwise(argv):
                raise UserError(f"{name} is given, but empty")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")
