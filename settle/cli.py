"""commands/ as a command line: a command's fields are its options; a choice of a part brings the part's settings."""

import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, TextIO

from cyclopts import (
    App,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from cyclopts.completion.detect import ShellDetectionError, detect_shell
from pydantic import BaseModel, ValidationError

from settle import overview
from settle.audit import session
from settle.base.choice import Family, described, family_of
from settle.base.errors import FULL_DISK, SettleError, UsageError, cannot_write
from settle.base.event_log import Events
from settle.base.events import Progress, RunFailed, Warn
from settle.base.registry import Part
from settle.base.run import launcher
from settle.base.settings import FormerName, Renamed
from settle.base.version import __version__
from settle.base.visible import visible, visible_line
from settle.commands import Command
from settle.show import Face
from settle.show.suggestions import suggest_command, suggest_option

EVENTS_TO = "--events-to="  # before a command: a file for its events, read by the program that started it
STDIN = "\0-"  # what `-` is called while the command line is parsed: the parser takes it for an option
HELP = ("--help", "-h", "--help-all")
# Added to the options that the library completes: names of models and runs, and files.
BASH_NAMES = """\
_settle_or_names() {
  _settle
  local cur="${COMP_WORDS[COMP_CWORD]}" folder name
  [[ ${#COMPREPLY[@]} -gt 0 || $COMP_CWORD -eq 1 || $cur == -* ]] && return
  for folder in "${SETTLE_HOME:-$HOME/.settle}"/{models,runs}/*/; do
    name=$(basename "$folder")
    [[ $name =~ ^[0-9-]{10}-[a-z_]+-(.*)-[0-9a-f]{6}$ ]] && name=${BASH_REMATCH[1]}
    [[ $name != "*" && $name == "$cur"* ]] && COMPREPLY+=("$name")
  done
  while IFS= read -r name; do COMPREPLY+=("$name"); done < <(compgen -f -- "$cur")
  compopt -o filenames
}
complete -o bashdefault -o default -F _settle_or_names settle"""
SHELLS: dict[str, Literal["bash", "fish", "zsh"]] = {"bash": "bash", "fish": "fish", "zsh": "zsh"}
NEGATIVE = re.compile(r"-[\d.]")
REPORT = Events()  # of one command
BELOW = "__"  # joins a choice, a setting of its part, and the part, in the name of a parameter


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code. A mistake that a person can fix is one or two lines on stderr, no traceback."""
    prepare_streams()
    if argv is None:
        launcher.note_start()
        session.from_command_line("--offline" in sys.argv)
    try:
        argv = _reported(sys.argv[1:] if argv is None else argv)
        if argv in overview.ASKED:
            return overview.show(argv)
        _require_unicode(argv)
        tokens = _readable(argv)
        tokens[:1] = [_dashed(token) if token in Command.part_names() else token for token in tokens[:1]]
        shown = ["--help" if token == "--help-all" else token for token in tokens]
        code = build_app(tokens)(shown, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as e:
        return _fail(*_usage(e), 2)
    except ValidationError as e:
        return _fail(*_invalid(e), 2)
    except SettleError as e:
        return _fail(e.what, e.fix, e.exit_code)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as e:
        if _is_of_interrupt(e):
            return _interrupted()
        if isinstance(e, OSError):
            return _environment(e)
        raise
    return code if isinstance(code, int) else 0


def main_of_process() -> int:
    """Run the command of the command line; the exit code. A rank of torchrun ends here."""
    code = main()
    if launcher.is_rank():
        launcher.leave(code)
    return code


def _reported(argv: list[str]) -> list[str]:
    """Return the command line without the file that its events go to, and begin to write that file."""
    path = argv[0].removeprefix(EVENTS_TO) if argv and argv[0].startswith(EVENTS_TO) else None
    REPORT.close() if path is None else REPORT.move_to(Path(path))
    return argv if path is None else argv[1:]


def _fail(what: str, fix: str, code: int) -> int:
    """Show what went wrong, and how to fix it; the exit code."""
    REPORT.emit(RunFailed(what=what, fix=fix))
    Face().error(what, fix)
    return code


def _interrupted() -> int:
    return _fail("interrupted", "", 130)


def _is_of_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C came first: a native library that is being imported makes an error of its own of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _require_unicode(argv: Sequence[str]) -> None:
    """Bytes that are no text may be in the path of a file, and nowhere else. Raises UsageError."""
    for token in argv:
        value = token.partition("=")[2] if token.startswith("--") else token
        is_path = os.access(value, os.F_OK) or os.access(value.rpartition(os.sep)[0], os.F_OK)
        if not is_path and any("\udc80" <= letter <= "\udcff" for letter in token):
            raise UsageError(
                f"{visible_line(token)} is not UTF-8, and there is no file of that name",
                "set the terminal to UTF-8; before a new file's name write ./",
            )


def _readable(argv: Sequence[str]) -> list[str]:
    """Rewrite the command line for the parser: `-` becomes a word, a negative value joins the option before it."""
    tokens: list[str] = []
    for token in argv:
        if NEGATIVE.match(token) and tokens and re.match(r"--[^=]+$", tokens[-1]):
            tokens[-1] += f"={token}"
        else:
            tokens.append(STDIN if token == "-" else token)
    return tokens


def _environment(error: OSError) -> int:
    """Return the exit code of a failure of the user's files or streams; raise any other with its traceback."""
    if isinstance(error, BrokenPipeError):
        _forget_stdout()  # who read our output has gone, which is no news to anyone
    elif error.filename is not None:
        what = f"{error.filename}: {error.strerror}"
        return _fail(what, "check that it exists, and the permission and room there", 1)
    elif error.errno in FULL_DISK:
        _forget_stdout()
        full = cannot_write("the output", error)
        return _fail(full.what, full.fix, 1)
    else:
        raise error
    return 1


def _forget_stdout() -> None:
    """Silence the interpreter's flush error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: CycloptsError) -> tuple[str, str]:
    """Return what is wrong with a command line, and how to fix it."""
    command = (error.command_chain or ("",))[0].replace("-", "_")
    match error:
        case UnusedCliTokensError():
            rest = " ".join(error.unused_tokens or [])
            return (
                f"too many arguments: {rest}",
                f"put quotes around words that belong together, or see `settle {_dashed(command)} --help`",
            )
        case MissingArgumentError() if command in Command.part_names() and error.argument is not None:
            asked, place = Command.part(command), error.argument.name.lower().replace("-", "_")
            if place in asked.positional:
                return f"{place.upper()} is missing: {asked.model_fields[place].description}", f"`{asked.usage()}`"
        case UnknownCommandError():
            name = (error.unused_tokens or [""])[0]
            known = [_dashed(one) for one in Command.part_names()]
            return f"unknown command {name!r}", suggest_command(name, known)
        case UnknownOptionError() if command in Command.part_names() and error.token is not None:
            option = error.token.keyword or error.token.value  # keyword: where no list of words would take it
            places = [_dashed(name) for name in Command.part(command).positional]
            if option.lstrip("-") in places:
                usage = f"settle {_dashed(command)} {' '.join(places).upper()}"
                return f"unknown option {option}", f"it is given without a name: `{usage}`"
            known = [f"--{_dashed(name)}" for name in _dotted(Command.part(command)) if _dashed(name) not in places]
            if "." in option:  # perhaps a misspelled setting of a part
                known += [
                    str(name) for option in _settings_of_parts(Command.part(command), False) for name in _names(option)
                ]
            return f"unknown option {option}", suggest_option(option, ["--json", *known], _dashed(command))
    if isinstance(error.__cause__, ValidationError):  # raised by a group of settings
        return _invalid(error.__cause__, f"{error.argument.name}." if error.argument else "--")
    what, _, hint = str(error).partition(" Did you mean ")
    what = what[:1].lower() + what[1:].rstrip(".")
    near = hint.partition("?")[0].strip('"')
    return what, f"did you mean {near!r}?" if near else "see --help"


def _invalid(error: ValidationError, prefix: str = "--") -> tuple[str, str]:
    """Return a setting's invalid value under its name on the command line, and how to fix it."""
    first = error.errors()[0]
    flag = prefix + ".".join(map(str, first["loc"])).replace("_", "-")
    return f"{flag} {first['input']}: {first['msg'][:1].lower()}{first['msg'][1:]}", "see --help"


def build_app(tokens: Sequence[str] = (), whole: bool = False) -> App:
    """Build the command line from the commands family.

    Only the command that `tokens` name is imported, or all when the app is to be `whole`; parts only where `tokens` ask
    for all help or name a setting of a part.
    """
    app = App(
        name="settle",
        help=overview.PURPOSE,
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    app.command(_print_completion, name="--completion", help=overview.OPTIONS["--completion"])
    app.command(_install_completion, name="--install-completion", help=overview.OPTIONS["--install-completion"])
    names = Command.part_names()
    asked = tokens[0].replace("-", "_") if tokens else ""
    for name in [asked] if asked in names and not whole else names:
        is_asked = asked == name
        function = _asked(Command.part(name), tokens if is_asked else ()) if is_asked or whole else _unasked
        usage = f"Usage: {Command.part(name).usage()}" if is_asked else None
        app.command(function, name=_dashed(name), usage=usage)
    return app


def _asked(command: type[Command], tokens: Sequence[str]) -> Callable[..., int]:
    """Return the function of a command, with the options that `tokens` show or set."""
    helps, helps_all = any(token in HELP for token in tokens), "--help-all" in tokens
    short = helps and not helps_all and bool(command.essential)
    shows_parts = (helps and not short) or _names_a_setting(command, tokens)
    return _function(command, tokens, helps, short, shows_parts)


def _unasked() -> int:
    """Stand for a command that is not imported: its name is known."""
    raise AssertionError("it was not asked for")


def _print_completion(shell: Literal["bash", "fish", "zsh"], /) -> int:
    """Print a script that completes settle's commands, options and files: `eval "$(settle --completion bash)"`."""
    sys.stdout.write(_completion(shell))
    return 0


def _install_completion(shell: Literal["bash", "fish", "zsh"] | None = None, /) -> int:
    """Write that script to where your shell looks for it; without a name, the shell that runs settle."""
    try:
        asked = shell or str(detect_shell())
        if asked not in SHELLS:
            raise ShellDetectionError
        path = build_app(whole=True).install_completion(shell=SHELLS[asked])
        path.write_text(_completion(SHELLS[asked]), encoding="utf-8")
    except ShellDetectionError:
        raise UsageError("which shell this is cannot be told", f"name it: {', '.join(SHELLS)}") from None
    except OSError as e:
        raise cannot_write(e.filename or "the folder of completions", e) from None
    sys.stdout.write(f"{visible_line(str(path))}: a new {asked} completes settle's commands, options and names\n")
    return 0


def _completion(shell: Literal["bash", "fish", "zsh"]) -> str:
    script = build_app(whole=True).generate_completion(shell=shell)
    if shell == "bash":  # where nothing else fits, as in the place of a model or of a file
        script = script.replace("complete -F _settle settle", BASH_NAMES)
    return script


def _names_a_setting(command: type[Command], tokens: Sequence[str]) -> bool:
    """Whether a setting of a part is on the command line, such as --adapter.rank."""
    groups = [option for name in _choices(command) for option in _options(command, name)]
    return any(token.startswith(f"{group}.") for token in tokens for group in groups)


def _function(
    command: type[Command], tokens: Sequence[str], helps: bool, short: bool, shows_parts: bool
) -> Callable[..., int]:
    """Return a function with one parameter per field, which receives only what was given.

    tokens: the command line; helps: only its help is shown; short: that of the essential options; shows_parts: it has
    the settings of parts too.
    """

    def call(*args: Any, **given: Any) -> int:
        json, raw, offline, verbose = (given.pop(name, False) for name in ("json", "raw", "offline", "verbose"))
        given = {key: type(value)("-") if str(value) == STDIN else value for key, value in given.items()}
        for place, name in enumerate(command.positional[: len(args)]):
            rest = ["-" if arg == STDIN else arg for arg in args[place:]]
            given[name] = rest if _is_list(command, name) else rest[0]
        face = Face(json, raw and not sys.stdout.isatty(), verbose)
        events = Events(listeners=[face, REPORT.emit])
        try:
            made = command(**_gathered(given))
            with (
                _former_names_shown(events),
                session.ledger_of(made, events, offline),
                getattr(made, "computing", nullcontext)(),
            ):  # --threads
                _warn_of_former_names(command, tokens)
                if made.begins_work:  # shown before torch is loaded
                    events.emit(Progress(what=made.part_name(), done=0, total=None, detail="loading …"))
                return made.run(events)
        finally:
            face.close()
            events.close()

    shown = {*command.essential} if short else {*command.model_fields}
    parameters = [*_parameters(command, helps, shown), *(_settings_of_parts(command, helps) if shows_parts else [])]
    more = f"\n\n`settle {_dashed(command.part_name())} --help-all` shows every option, with the settings of each part."
    call.__doc__ = inspect.cleandoc(str(command.__doc__)) + more * short
    call.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    return call


def _gathered(given: dict[str, Any]) -> dict[str, Any]:
    """Gather a command's fields from what was given: a part's settings join its name."""
    fields: dict[str, Any] = {}
    for key, value in given.items():
        name, _, setting = key.partition(BELOW)
        if setting:
            before = fields.get(name, {})
            chosen = before if isinstance(before, dict) else {"name": before}
            fields[name] = {**chosen, setting.partition(BELOW)[0]: value}
        elif isinstance(fields.get(name), dict):
            fields[name] = {"name": value, **fields[name]}
        else:
            fields[name] = value
    return fields


def _parameters(command: type[Command], helps: bool, shown: Collection[str]) -> Iterator[inspect.Parameter]:
    """Yield a command's positional fields, the shown options, --json and --offline; --raw where it writes an answer."""
    for name in command.positional:
        field = command.model_fields[name]
        default = inspect.Parameter.empty if field.is_required() else field.get_default()
        if _is_list(command, name):
            hint: Any = Annotated[str, Parameter(help=field.description)]
            yield inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL, annotation=hint)
        else:
            hint = Annotated[field.annotation, Parameter(help=field.description)]
            yield inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY, annotation=hint, default=default)
    choices = _choices(command)
    for name in dict.fromkeys([*command.essential, *sorted(command.model_fields, key="threads".__eq__)]):
        field = command.model_fields[name]
        if name in command.positional or name not in shown:
            continue
        description = described(field) if helps else field.description
        if name in choices:
            yield _option(name, str | None, choices[name].default, help=description)
            yield _option(f"{name}{BELOW}name", str | None, None, name=f"--{_dashed(name)}.name", show=False)
        else:
            default = field.get_default(call_default_factory=True)
            # a switch that is off needs no --no-…, a list none that empties it
            negative = "" if default is False or default == [] else None
            has_news = None if default is not False and default != [] else False
            yield _option(name, field.annotation, default, help=description, negative=negative, show_default=has_news)
    yield _option(
        "json", bool, False, help="print the result as JSON, the last line of stdout", negative="", show_default=False
    )
    offline_help = "run without a network; refuse where that cannot be proved (Linux)"
    yield _option("offline", bool, False, help=offline_help, negative="", show_default=False)
    names, verbose_help = ["--verbose", "-v"], "show every check, every number and every evaluation"
    yield _option("verbose", bool, False, name=names, help=verbose_help, negative="", show_default=False)
    if command.writes_answer:
        raw_help = "write control characters of the answer as they are; not to a terminal"
        yield _option("raw", bool, False, help=raw_help, negative="", show_default=False)


def _settings_of_parts(command: type[Command], helps: bool) -> Iterator[inspect.Parameter]:
    """Yield the settings of every part that a command may choose, grouped by parts that share them."""
    for number, (name, family) in enumerate(_choices(command).items()):
        groups = _options(command, name)
        for names, part in _sharing(family):
            title = Group(f"Settings of {groups[0]} {' or '.join(names)}", sort_key=number + 1)
            for setting, field in part.model_fields.items():
                default = field.get_default(call_default_factory=True)
                is_switch = field.annotation is bool
                yield _option(
                    BELOW.join([name, setting, *names]),
                    field.annotation if helps else bool if is_switch else str | None,
                    default if helps or is_switch else None,
                    name=[f"{group}.{_dashed(setting)}" for group in (groups[:1] if helps else groups)],
                    help=field.description,
                    group=title,
                    negative="--no-" + f"{groups[0]}.{_dashed(setting)}"[2:] if default is True else "",
                    show_default=None if default not in ("", [], None) else False,
                )


def _sharing(family: Family) -> list[tuple[list[str], type[Part]]]:
    """Parts with their names; parts that have the same settings are one."""
    sharing: dict[str, tuple[list[str], type[Part]]] = {}
    for name, part in family.parts().items():
        sharing.setdefault(repr(part.model_fields), ([], part))[0].append(name)
    return [(names, part) for names, part in sharing.values() if part.model_fields]


def _option(parameter: str, annotation: Any, default: Any, /, **shown: Any) -> inspect.Parameter:
    hint = Annotated[annotation, Parameter(**shown)]
    return inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)


def _choices(command: type[Command]) -> dict[str, Family]:
    """Return the fields of a command that choose a part, with their families."""
    fields = command.model_fields.items()
    return {name: family for name, field in fields if (family := family_of(field)) is not None}


def _options(command: type[Command], name: str) -> list[str]:
    """Return an option's names, former ones included."""
    renamed = _renamed(command)
    return [f"--{_dashed(n)}" for n in (name, *(former for former, now in renamed.items() if now.now == name))]


def _renamed(command: type[Command]) -> Mapping[str, Renamed]:
    return getattr(command, "renamed", {})


@contextmanager
def _former_names_shown(events: Events) -> Iterator[None]:
    """Show each former name that is given, on the command line or in a recipe, once: as other warnings of a command."""
    shown, show = set[str](), warnings.showwarning

    def showwarning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, FormerName):
            show(message, category, *where, **more)
        elif str(message) not in shown:
            shown.add(str(message))
            events.emit(Warn(text=str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("always", FormerName)
        warnings.showwarning = showwarning
        yield


def _warn_of_former_names(command: type[Command], tokens: Sequence[str]) -> None:
    for former, now in _renamed(command).items():
        option = f"--{_dashed(former)}."  # of a part's setting
        for given in (token.partition("=")[0] for token in tokens if token.startswith(option)):
            now.warn(given, given.replace(option, f"--{_dashed(now.now)}."))


def _names(option: inspect.Parameter) -> Sequence[str]:
    """Return an option's names on the command line."""
    return option.annotation.__metadata__[0].name or ()


def _dotted(settings: type[BaseModel]) -> Iterator[str]:
    """Yield the names of settings, and those of groups of settings as group.name."""
    for name, field in settings.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{name}.{inner}" for inner in _dotted(field.annotation))


def _dashed(name: str) -> str:
    return name.replace("_", "-").rstrip("-")  # a word that Python keeps for itself has a `_` behind it


def _is_list(command: type[Command], name: str) -> bool:
    return "list" in str(command.model_fields[name].annotation)


def prepare_streams() -> None:
    """Make a closed stream (`>&-`) swallow what it gets, and replace signs that a stream's encoding lacks.

    Called once, first: a closed number would be given to the next file that is opened.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            opened = os.open(os.devnull, os.O_RDONLY if name == "stdin" else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="replace"))
        elif hasattr(stream, "reconfigure"):
            # a file or pipe of Windows has the code page of the country, and other programs expect UTF-8
            is_utf8 = os.name == "nt" and not stream.isatty()
            stream.reconfigure(errors="replace", encoding="utf-8" if is_utf8 else None)
    sys.excepthook = _show_fault


def _show_fault(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """Show a fault of ours, whose message may hold foreign text."""
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, at))))
