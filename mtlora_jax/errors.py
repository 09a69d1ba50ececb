"""The one exception whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """A wrong value, key, path or file.

    The message is one line that names the thing, the value found and what would be right. Command-line programs print
    it without a traceback and exit with code 2.
    """
