"""``authservice migrate``: what another service's configuration is in our settings.

Prints settings that can be used as they are, with everything that a person has to know as comments. What each
option becomes is `authservice.migrate`'s to say, and the texts around it are this module's. Called by
`authservice.cli`.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from authservice.migrate.oauth2_proxy import POLICY_PATH, migrate
from authservice.migrate.options import Options, OptionsError, from_environment, from_file, from_flags
from authservice.migrate.plan import Kind, Plan
from authservice.settings import examine
from authservice.terminal import carried_out, shown

OK, NOT_ALL, USAGE = 0, 1, 2

_AS_IT_IS = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")
"""What JSON takes as it is, and YAML does not."""
_PLACEHOLDER = "0123456789abcdef0123456789abcdef"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``migrate`` to the command line."""
    parser = commands.add_parser(
        "migrate",
        help="print another service's configuration in our settings",
        description="Prints the settings that do the same, and lists what has no equivalent. Nothing is changed.",
    )
    sources = parser.add_subparsers(dest="source", required=True, metavar="SERVICE")
    proxy = sources.add_parser(
        "oauth2-proxy",
        help="from oauth2-proxy",
        description="Reads oauth2-proxy's options from its file, its environment variables and its command line, "
        "of which the later ones go before the earlier ones. Exit status: 0 when everything was carried over, 1 "
        "when something has no equivalent or is missing (it is listed), 2 when a source cannot be read.",
    )
    proxy.add_argument("file", nargs="?", type=Path, metavar="FILE", help="its configuration file (TOML)")
    proxy.add_argument("--env", action="store_true", help="read OAUTH2_PROXY_… of this environment")
    proxy.add_argument(
        "--flags", metavar="WORDS", default="", help="its command line, as --flags='--http-address=… …'"
    )
    proxy.add_argument(
        "--gateway", choices=("envoy", "nginx", "traefik", "caddy"), default="", help="the gateway that asks"
    )
    proxy.add_argument("--secrets", action="store_true", help="print secrets, too")
    proxy.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help=f"write the policy into FILE, where one is needed (default: print it, for {POLICY_PATH})",
    )
    proxy.add_argument(
        "--format",
        choices=("env", "kubernetes"),
        default="env",
        help="env: for a shell and systemd's EnvironmentFile; kubernetes: ConfigMaps and a Secret",
    )
    proxy.set_defaults(complain=proxy.error)


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Carries out the migration; gives the exit status."""
    if not (arguments.file or arguments.env or arguments.flags):
        arguments.complain("say where the options are: FILE, --env or --flags")
    return carried_out(lambda: _oauth2_proxy(arguments, environ))


def _oauth2_proxy(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    options = Options()
    policy_path = str(arguments.policy.resolve()) if arguments.policy else POLICY_PATH
    try:
        if arguments.file:
            options.add(from_file(arguments.file))
        if arguments.env:
            options.add(from_environment(environ))
        options.add(from_flags(arguments.flags))
        if "config" in options and not arguments.file:
            raise OptionsError("--config names a file whose options are not here: give it as FILE, too")
        plan = migrate(options, gateway=arguments.gateway, policy_path=policy_path)
        written = _write_policy(arguments.policy, plan.policy)
    except OptionsError as error:
        print(f"authservice migrate: {shown(str(error))}", file=sys.stderr)
        return USAGE
    missing = _missing(plan)
    lines = (
        _kubernetes(plan, arguments.secrets)
        if arguments.format == "kubernetes"
        else _env(plan, arguments.secrets)
    )
    print("\n".join([*lines, *_about(plan, missing, show_policy=not written and arguments.format == "env")]))
    lost = [note for note in plan.notes if note.kind is Kind.LOST]
    return NOT_ALL if lost or missing else OK


def _write_policy(path: Path | None, policy: str) -> bool:
    """Whether it stands in its file now. One that is there with another text is left alone."""
    if path is None or not policy:
        return False
    try:
        if path.exists():
            if path.read_text("utf-8") != policy:
                raise OptionsError(f"{path}: is there, and says something else")
        else:
            path.write_text(policy, "utf-8")
    except (OSError, UnicodeDecodeError):
        raise OptionsError(f"{path}: cannot be written") from None
    return True


def _missing(plan: Plan) -> list[str]:
    """What a start with these settings would complain of."""
    environ = dict(plan.environment())
    if environ.pop("CLIENT_SECRET_FILE", None):
        environ["CLIENT_SECRET"] = _PLACEHOLDER  # where it will be is not where this runs
    found = examine(environ)
    return [*found.problems, *found.warnings]


# --- as text ----------------------------------------------------------------------------------


def _env(plan: Plan, secrets: bool) -> Iterator[str]:
    """For a shell, and for systemd. Not for Docker's ``--env-file``, which knows no quotes."""
    yield "# oauth2-proxy's options as settings of AuthService"
    origin = ""
    for setting in plan.settings.values():
        if setting.origin != origin:
            origin = setting.origin
            yield f"\n# {shown(origin)}"
        if setting.secret and not secrets:
            yield f"# {setting.name}=…  (a secret; --secrets prints it)"
        else:
            yield f"{setting.name}={shlex.quote(setting.value)}"


def _kubernetes(plan: Plan, secrets: bool) -> Iterator[str]:
    """What is no secret in a ConfigMap, and what is in a Secret."""
    settings = list(plan.settings.values())
    open_ones = [setting for setting in settings if not setting.secret]
    yield from _resource("ConfigMap", "authservice", "data", [(one.name, one.value) for one in open_ones])
    hidden = [setting for setting in settings if setting.secret]
    if hidden:
        yield "---"
        # Without their values nothing starts; a value that stands for one would be known to everybody.
        told = [(one.name, one.value) for one in hidden if secrets]
        yield from _resource("Secret", "authservice", "stringData", told)
        yield from (f"  # {one.name}: …  (a secret; --secrets prints it)" for one in hidden if not secrets)
    if plan.policy:
        yield "---"
        name = plan.settings["POLICY_PATH"].value.rpartition("/")[2]
        yield from _resource("ConfigMap", "authservice-policies", "data", [(name, plan.policy)])


def _resource(kind: str, name: str, field: str, pairs: list[tuple[str, str]]) -> Iterator[str]:
    """A JSON text is a YAML one as well, save for what YAML wants escaped."""
    yield f"apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n{field}:{'' if pairs else ' {}'}"
    for key, value in pairs:
        yield f"  {key}: {_AS_IT_IS.sub(_escaped, json.dumps(value, ensure_ascii=False))}"


def _escaped(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"


def _about(plan: Plan, missing: list[str], *, show_policy: bool) -> Iterator[str]:
    """Everything that is no setting, as comments."""
    if plan.policy and show_policy:
        yield f"\n# The policy, for {shown(plan.settings['POLICY_PATH'].value)} (--policy FILE writes it):\n#"
        yield from (f"#   {shown(line)}" for line in plan.policy.splitlines())
    for kind in Kind:
        notes = [note for note in plan.notes if note.kind is kind]
        if notes:
            yield f"\n# {kind.value}:"
            yield from (f"#   {shown(note.options)}: {shown(note.text)}" for note in notes)
    if missing:
        yield "\n# What `authservice check-config` says of these settings:"
        yield from (f"#   {shown(line)}" for line in missing)
