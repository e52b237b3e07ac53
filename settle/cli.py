"""commands/ as a command line."""

import errno
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from pydantic import ValidationError

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.registry import part, part_names
from settle.base.version import __version__
from settle.commands import Command
from settle.show import Face

STDIN = "\0-"  # what `-` is called while the command line is parsed: the parser takes it for an option


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code. What a person can mend is one or two lines on stderr, never a traceback."""
    try:
        given = _spelled([STDIN if token == "-" else token for token in (sys.argv[1:] if argv is None else argv)])
        code = build_app()(given, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as e:
        what, fix = _said(e)
        Face().error(what, fix)
        return 2
    except ValidationError as e:
        Face().error(*_invalid(e))
        return 2
    except SettleError as e:
        Face().error(e.what, e.fix)
        return e.exit_code
    except KeyboardInterrupt:
        Face().error("interrupted", "")
        return 130
    except OSError as e:
        return _environment(e)
    return code if isinstance(code, int) else 0


def _spelled(given: list[str]) -> list[str]:
    """`--adapter lora` as `--adapter.name lora`: a part's settings may be given by the name of the part."""
    if not given or given[0] not in part_names("commands"):
        return given
    fields = part("commands", given[0]).model_fields
    named = {f"--{name}" for name, field in fields.items() if field.annotation == dict[str, Any]}

    def spelled(token: str) -> str:
        option, is_set, value = token.partition("=")
        return f"{option}.name{is_set}{value}" if option in named else token

    return [spelled(token) for token in given]


def _environment(error: OSError) -> int:
    """The exit code after a file or stream failed that is the person's; any other failure is ours, with a traceback."""
    if isinstance(error, BrokenPipeError):
        _forget_stdout()  # who read our output has gone, which is no news to anyone
    elif error.filename is not None:
        what = f"{error.filename}: {error.strerror}"
        Face().error(what, "check that it exists, and the permission and room there")
    elif error.errno == errno.ENOSPC:
        _forget_stdout()
        Face().error(f"the output could not be written: {error.strerror}", "make room where it goes")
    else:
        raise error
    return 1


def _forget_stdout() -> None:
    """What is still buffered would fail once more at exit, and be told by the interpreter."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(error: CycloptsError) -> tuple[str, str]:
    """A wrong command line as what is wrong and how to mend it."""
    if isinstance(error, UnusedCliTokensError):
        return f"too many arguments: {' '.join(error.unused_tokens or [])}", "see --help"
    if isinstance(error.__cause__, ValidationError):  # of a group of settings
        return _invalid(error.__cause__, f"{error.argument.name}." if error.argument else "--")
    what, _, hint = str(error).partition(" Did you mean ")
    what = what[:1].lower() + what[1:].rstrip(".")
    near = hint.partition("?")[0].strip('"')
    return what, f"did you mean {near!r}?" if near else "see --help"


def _invalid(error: ValidationError, prefix: str = "--") -> tuple[str, str]:
    """A value that a setting does not take, under the name the setting has on the command line."""
    first = error.errors()[0]
    flag = prefix + ".".join(map(str, first["loc"])).replace("_", "-")
    return f"{flag} {first['input']}: {first['msg'][:1].lower()}{first['msg'][1:]}", "see --help"


def build_app() -> App:
    """The command line, made from the commands family."""
    app = App(
        name="settle",
        help="Train a model until it has settled, on your own machine, and know that it has.",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    app.register_install_completion_command(help="Complete settle's commands and options in this shell, from now on.")
    for name in part_names("commands"):
        command = part("commands", name)
        assert issubclass(command, Command)
        app.command(_function(command), name=name)
    return app


def _function(command: type[Command]) -> Callable[..., int]:
    """A function with one parameter a field, that receives only what was given."""

    def call(*args: Any, **given: Any) -> int:
        json = given.pop("json", False)
        for place, name in enumerate(command.positional[: len(args)]):
            rest = ["-" if arg == STDIN else arg for arg in args[place:]]
            given[name] = rest if _is_list(command, name) else rest[0]
        face = Face(json=json)
        events = Events(listeners=[face])
        try:
            return command(**given).run(events)
        finally:
            face.close()
            events.close()

    call.__doc__ = command.__doc__
    call.__signature__ = inspect.Signature(list(_parameters(command)), return_annotation=int)  # type: ignore[attr-defined]
    return call


def _parameters(command: type[Command]):  # type: ignore[no-untyped-def]
    for name in command.positional:
        field = command.model_fields[name]
        default = inspect.Parameter.empty if field.is_required() else field.get_default()
        if _is_list(command, name):
            hint: Any = Annotated[str, Parameter(help=field.description)]
            yield inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL, annotation=hint)
        else:
            hint = Annotated[field.annotation, Parameter(help=field.description)]
            yield inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY, annotation=hint, default=default)
    for name, field in command.model_fields.items():
        if name not in command.positional:
            default = field.get_default(call_default_factory=True)
            # a switch that is off needs no --no-…, a list none that empties it
            negative = "" if default is False or default == [] else None
            shown = Parameter(help=field.description, negative=negative, show_default=None if default != [] else False)
            hint = Annotated[field.annotation, shown]
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
    yield inspect.Parameter(
        "json",
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[bool, Parameter(help="print the result as JSON, the last line of stdout", negative="")],
        default=False,
    )


def _is_list(command: type[Command], name: str) -> bool:
    return "list" in str(command.model_fields[name].annotation)
