"""The ``authservice`` command: for those who set the service up and run it.

``check-config`` reads this environment as a start would and says everything that is wrong with it;
``settings`` shows the table of all settings; ``sessions`` is `authservice.cli_sessions`, ``policy`` is
`authservice.cli_policy`, ``doctor`` is `authservice.cli_doctor`. Serving is gunicorn's work, not this command's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from authservice import __version__, cli_doctor, cli_migrate, cli_policy, cli_sessions, startup
from authservice.settings import Settings, examine, show

OK, USAGE_OR_PROBLEMS = 0, 2


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs one command; the exit status is 0, or 2 when something is wrong (``sessions`` and ``policy`` have more)."""
    arguments = _arguments(argv)
    if arguments.command == "check-config":
        return check_config(environ)
    if arguments.command == "sessions":
        return cli_sessions.run(arguments, environ)
    if arguments.command == "policy":
        return cli_policy.run(arguments, os.environ if environ is None else environ)
    if arguments.command == "doctor":
        return cli_doctor.run(arguments, os.environ if environ is None else environ)
    if arguments.command == "migrate":
        return cli_migrate.run(arguments, os.environ if environ is None else environ)
    return show_settings(arguments.markdown, arguments.write)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, others = parser.parse_known_args(argv)
    if others:
        # Options alone are named: among the rest may be a token that was not put in quotes.
        options = [other.partition("=")[0] for other in others if other.startswith("--")]
        parser.error(f"unrecognized arguments: {' '.join(options) or 'what has blanks is put in quotes'}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="authservice",
        description="Settings are environment variables. The service itself runs under gunicorn: "
        "gunicorn -c python:authservice.gunicorn_conf authservice.wsgi:app",
    )
    parser.add_argument("--version", action="version", version=f"authservice {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "check-config",
        help="say everything that is wrong with the settings in this environment",
        description="Reads the settings of this environment as a start would, looks at the files they name, "
        "and lists all problems and warnings. Exit status: 0 when a start would succeed, 2 otherwise.",
    )
    table = commands.add_parser(
        "settings", help="show every setting, its default and what it is for",
        description="Shows every setting, its default and what it is for.",
    )
    table.add_argument("--markdown", action="store_true", help="as Markdown tables")
    table.add_argument(
        "--write", type=Path, metavar="FILE",
        help=f"with --markdown: put the tables into FILE, between {show.BEGIN} and {show.END}",
    )
    cli_sessions.add_to(commands)
    cli_policy.add_to(commands)
    cli_migrate.add_to(commands)
    cli_doctor.add_to(commands)
    return parser


def check_config(environ: Mapping[str, str] | None = None) -> int:
    """Prints what a start with these variables (the process's own by default) would say, and whether
    it would succeed."""
    found = examine(environ)
    problems, warnings = list(found.problems), list(found.warnings)
    if found.settings is not None:
        problems += startup.problems(found.settings)
        warnings += startup.warnings(found.settings)
    _print_list("warning", warnings)
    _print_list("problem", problems)
    if problems or found.settings is None:
        print("AuthService would not start. `authservice settings` explains every setting.")
        return USAGE_OR_PROBLEMS
    print(_summary(found.settings))
    return OK


def _print_list(noun: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"{len(lines)} {noun}{'' if len(lines) == 1 else 's'}:\n")
        print("\n".join(f"  - {line}" for line in lines), end="\n\n")


def _summary(settings: Settings) -> str:
    store = settings.session_store_redis_addr
    if settings.session_store_type == "filesystem":
        store = str(settings.session_store_path)
    return (
        "AuthService would start.\n"
        f"  provider   {settings.oidc_provider}\n"
        f"  callback   {settings.redirect_url} (register it at the provider)\n"
        f"  gateways   {', '.join(settings.gateway)} on port {settings.server_port}; "
        f"pages on port {settings.web_server_port}\n"
        f"  sessions   {settings.session_store_type}: {store}"
    )


def show_settings(as_markdown: bool, write: Path | None) -> int:
    """Prints the table, or writes it into a document between its markers."""
    if write is None:
        print(show.markdown() if as_markdown else show.plain(), end="")
        return OK
    if not as_markdown:
        return _complain("--write puts Markdown into a file; say --markdown as well")
    try:
        document = write.read_text("utf-8")
        changed = show.replaced(document)
        if changed != document:
            write.write_text(changed, "utf-8")
    except OSError as error:
        return _complain(f"{write}: {error.strerror}")
    except ValueError as error:
        return _complain(f"{write}: {error}")
    print(f"{write}: {'brought up to date' if changed != document else 'is up to date'}")
    return OK


def _complain(message: str) -> int:
    print(f"authservice settings: {message}", file=sys.stderr)
    return USAGE_OR_PROBLEMS


if __name__ == "__main__":
    sys.exit(main())
