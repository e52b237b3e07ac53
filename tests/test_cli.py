"""The command line's manners, tried in real processes."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from settle import __version__
from settle.base.event_log import Events
from settle.base.events import Eval
from settle.base.files import write_json
from settle.base.run import Run
from settle.cli import main
from settle.commands import Command
from settle.formats.gguf import export_gguf
from settle.jobs.settings import TuneSettings
from tests.trained import trained

has_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
SETTLE = [sys.executable, "-m", "settle"]


def settle(*argv, **options):
    return subprocess.run([*SETTLE, *argv], capture_output=True, text=True, **options)


def test_help_is_quick_and_loads_no_torch():
    # 0.15 s on an idle machine is twice what the libraries it cannot do without take; that holds on a busy one.
    libraries = [sys.executable, "-c", "import pydantic, importlib.metadata"]
    turns = [(_seconds(libraries), _seconds([*SETTLE, "--help"])) for _ in range(5)]
    assert min(quick for _, quick in turns) < 3 * min(bare for bare, _ in turns)
    code = "import sys; from settle.cli import build_app; build_app(); print([m for m in sys.modules if m in HEAVY])"
    code = code.replace("HEAVY", "('torch', 'numpy', 'matplotlib', 'tokenizers', 'pyarrow', 'xllamacpp')")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def _seconds(argv):
    """Processor time of a process, which a busy machine changes less than the time on the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_version():
    done = settle("--version")
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


@pytest.mark.parametrize("command", [name for name in Command.part_names() if Command.part(name).essential])
def test_help_is_one_screen_and_help_all_is_the_rest(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert {*Command.part(command).essential} <= {*Command.part(command).model_fields}
    assert main([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert main([command, "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert (
        len(short.splitlines()) <= 48
        and len(whole.splitlines()) > 2 * len(short.splitlines())
        and "--help-all" in short
    )
    assert short.startswith(f"Usage: {Command.part(command).usage()}\n")
    names = [f"│ --{name.replace('_', '-')} " for name in Command.part(command).essential]
    assert sorted(names, key=short.index) == names


def test_the_help_of_no_command_loads_torch():
    names = [name for name in Command.part_names() if Command.part(name).essential]
    code = f"import sys; from settle.cli import main\nfor name in {names}: assert main([name, '--help']) == 0\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert names and done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_list_of_commands_says_what_each_does(capsys):
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, command in Command.parts().items():
        assert f"{name.replace('_', '-')} {(command.__doc__ or '').strip().splitlines()[0]}" in shown


def test_a_run_says_something_before_it_loads_torch(home, tmp_path):
    """A second or more on a small machine: whoever waits sees that it has begun."""
    (tmp_path / "notes.txt").write_text("a few words\n" * 400)
    for argv in (["train", "notes.txt"], ["tune", "nothing", "notes.txt"], ["index", "notes.txt"]):
        code = (
            "import sys; from settle.cli import main\n"
            "class Found(Exception): pass\n"
            "class Stop:\n"
            "    def find_spec(self, name, *rest):\n"
            "        if name == 'torch': print('TORCH', file=sys.stderr, flush=True); import os; os._exit(9)\n"
            f"sys.meta_path.insert(0, Stop()); main({argv})"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        lines = done.stderr.splitlines()
        assert lines[0] == f"{argv[0]}: loading …" and (argv[0] == "index" or lines[1:] == ["TORCH"]), done.stderr


def test_without_arguments_it_shows_what_is_here_and_the_three_doors(home, monkeypatch, capsys):
    def shown(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 12 and max(map(len, lines)) <= columns
        return "\n".join(lines)

    assert "nothing yet" in shown(100) and "settle train stdlib" in shown(100) and "settle pull smollm2" in shown(60)
    for number in range(30):
        run = Run.create("train", f"notes-{number}")
        os.utime(run.path, (number, number))
    write_json(run.path / "result.json", {})
    os.utime(run.path, (50, 50))
    (home / "models/smollm2").mkdir(parents=True)
    (home / "collections/docs").mkdir(parents=True)
    for columns in (100, 60):
        text = shown(columns)
        for part in ("notes-29, notes-28 (unfinished)", " more", "settle chat notes-29", "settle tune smollm2 ",
                     "settle ask docs", "settle train ~/notes", "settle --help"):  # fmt: skip
            assert part in text, part


def test_without_arguments_a_base_is_offered_for_what_it_can_do(home, capsys):
    """A model with a chat template is preferred, however old it is."""

    def add(name, path, age):
        (home / "models" / name).mkdir(exist_ok=True)
        write_json(home / "models" / name / "model.json", {"path": path})
        os.utime(home / "models" / name, (99 - age, 99 - age))

    def shown():
        assert main([]) == 0
        return capsys.readouterr().out

    tiny = trained()
    (home / "models/gemma/x").mkdir(parents=True)
    whole = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, home / "smol.gguf", "f32", {})
    (home / "models/gemma/base.gguf").write_bytes(whole.read_bytes().replace(b"chat_template", b"that_template"))
    add("gemma", "base.gguf", age=1)
    assert 'settle chat gemma "Once upon a time"' in shown() and "settle tune gemma examples.jsonl" in shown()
    add("smol", str(whole), age=9)
    assert "settle chat smol " in shown() and "settle tune smol examples.jsonl" in shown()
    add("gemma", "x", age=1)
    (home / "models/gemma/x/tokenizer_config.json").write_text('{"chat_template": "x"}')
    os.utime(home / "models/gemma", (98, 98))
    assert "settle chat gemma " in shown() and "settle tune gemma examples.jsonl" in shown()
    (home / "models/gemma/model.json").write_text("{")
    os.utime(home / "models/gemma", (98, 98))
    assert "settle tune smol " in shown()


def test_without_arguments_nothing_that_lies_there_is_in_the_way(home, capsys):
    (home / "runs").write_text("no folder")
    (home / "models/an\x1bodd name").mkdir(parents=True)
    assert main([]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("value", ["-5m", "-1", "-.5h"])
def test_a_negative_value_belongs_to_its_option(value, home, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("a few words\n" * 400)
    assert main(["train", str(tmp_path / "notes.txt"), "--time", value]) == 2
    assert f"{value!r} is not a duration" in capsys.readouterr().err


def test_dtypes_are_taken_as_other_tools_spell_them_and_refused_where_they_cannot_run(home, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("".join(f"line {i} has a few words of its own\n" for i in range(3000)))
    train = ["train", str(tmp_path / "notes.txt"), "--size", "60k", "--steps", "5", "--threads", "1", "--dry", "--json"]
    assert main([*train, "--dtype", "fp32"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["dtype"] == "float32"
    assert main([*train, "--dtype", "fp61"]) == 2
    assert "choose float32, bfloat16 or float16" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main([*train, "--dtype", "fp16"]) == 2
        assert "float16 is not for" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_options_files_and_names(home, tmp_path, capsys):
    Run.create("train", "my-notes")
    Run.create("tune_decision", "triage")
    (tmp_path / "notes of mine.jsonl").touch()
    script = subprocess.run([*SETTLE, "--completion", "bash"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "complete.sh").write_text(script)

    def complete(*words):
        line = " ".join(f"'{word}'" for word in words)
        code = f". ./complete.sh; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; compopt() {{ :; }}"
        done = subprocess.run(
            ["bash", "-c", code + "; _settle_or_names; printf '%s\\n' \"${COMPREPLY[@]}\"; complete -p settle"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    assert "-o default" in complete("settle", "tr")[-1] and complete("settle", "tr")[0] == "train"
    assert "--tolerance" in complete("settle", "train", "--to")
    assert "notes of mine.jsonl" in complete("settle", "tune", "smollm2", "no")
    assert "my-notes" in complete("settle", "resume", "my")
    assert "triage" in complete("settle", "decide", "tr")
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "triage (unfinished)" in shown and "tune_decision" not in shown


def test_completion_installs_itself(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for shell, place in (("bash", ".local/share/bash-completion/completions/settle"), ("fish", ".config/fish")):
        assert main(["--install-completion", shell]) == 0
        said = capsys.readouterr().out
        assert str(tmp_path / place) in said and Path(said.partition(": ")[0]).is_file()
    assert "_settle_or_names" in (tmp_path / ".local/share/bash-completion/completions/settle").read_text()
    assert main(["--install-completion", "ksh"]) == 2
    assert "bash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "what", "fix"),
    [
        (["rusn"], "unknown command 'rusn'", "did you mean 'runs'?"),
        (["run", "smollm2"], "unknown command 'run'", "`settle chat MODEL` talks to a model"),
        (["zzz"], "unknown command 'zzz'", "`settle --help` lists the commands"),
        (["tune", "x", "--lr", "1"], "unknown option --lr", "--optimizer.lr is its name here"),
        (["train", "x", "--batch_size", "1"], "unknown option --batch_size", "--batch-tokens is its name here"),
        (["runs", "--frobnicate"], "unknown option --frobnicate", "`settle runs --help-all` lists every option"),
        (
            ["tune", "x", "y", "--adapter", "qlora"],
            "--adapter has no choice 'qlora'",
            "--quantize nf4 keeps the base in 4 bits below a LoRA",
        ),
        (["train", "no-such-folder"], "there is no file or folder 'no-such-folder'", "check the path"),
        (["runs", "--jsn"], "unknown option --jsn", "did you mean '--json'?"),
        (["pull", "x", "--agian"], "unknown option --agian", "did you mean '--again'?"),
        (["pull", "x", "--machine", "3"], "unknown option --machine", "`settle pull --help-all` lists every option"),
        (["runs", "show", "x", "y"], "one run is shown at a time", "`settle runs show x`"),
        (
            ["resume", "x", "y"],
            "too many arguments: y",
            "put quotes around words that belong together, or see `settle resume --help`",
        ),
        (
            ["ask", "x", "--name", "y"],
            "unknown option --name",
            "it is given without a name: `settle ask NAME QUESTION`",
        ),
        (
            ["runs", "shwo"],
            "there is no `settle runs shwo`",
            "list, show, compare, export, share, audit, rename, prune or remove",
        ),
        (["runs", "show"], "no run is named to show", "`settle runs show NAME`"),
        (
            ["train", "x", "--data.vocab_size", "9"],
            "--data.vocab-size 9: input should be greater than or equal to 260",
            "see --help",
        ),
        (["train", "x", "--steps", "0"], "--steps 0: input should be greater than 0", "see --help"),
        (["train", "x", "--seed", "9" * 20], f"--seed {'9' * 20}: the number is too large", "see --help"),
        (
            ["tune", "x", "y", "--threads", "9" * 9],
            f"--threads {'9' * 9}: input should be less than or equal to 4096",
            "see --help",
        ),
        (
            ["shrink", "x", "--to", "q8_0", "--time", "5m"],
            "unknown option --time",
            "leave it out: how much work this is follows from what is asked for, and Ctrl-C ends it",
        ),
        (["models", "show", "x", "--families"], "--families is about the whole catalogue", "`settle models show x`"),
        (["resume"], "NAME is missing: the run, as `settle runs` lists it", "`settle resume [OPTIONS] NAME`"),
        (
            ["tune"],
            "no model for `settle tune`",
            'name it, `settle tune smollm2 …`, or in a recipe, model = "smollm2", that --recipe gives',
        ),
        (["runs", "show", "nothing"], "there is no run named 'nothing'", "start one: `settle train`"),
    ],
)
def test_wrong_usage_is_two_lines_and_code_2(argv, what, fix, home, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    err = err.removeprefix(f"{argv[0]}: loading …\n")  # of what begins work
    assert (out, err) == ("", f"settle: {what}\n  → {fix}\n")


def test_a_recipe_may_name_the_model(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    Path("rows.jsonl").write_text("")
    Path("r.toml").write_text('model = "mine"\n')
    assert main(["tune", "--recipe", "r.toml"]) == 2  # it has no files
    assert "give files after the model: `settle tune mine ~/notes`" in capsys.readouterr().err
    given = TuneSettings(model="rows.jsonl", inputs=["more.jsonl"], recipe=Path("r.toml")).with_recipe().value
    assert (given.model, given.inputs) == ("mine", ["rows.jsonl", "more.jsonl"])
    assert TuneSettings(model="other", recipe=Path("r.toml")).with_recipe().value.model == "other"


def test_a_lone_hyphen_is_stdin(home):
    done = settle("train", "-", "--dry", input="a few words\n")
    assert "too little text" in done.stderr and "documents read: 1" in done.stderr


def test_a_file_that_cannot_be_used_is_one_error_without_a_traceback(home, capsys):
    (home / "runs").write_text("a file in the way")
    assert main(["runs"]) == 0  # no folder of runs is no runs
    (home / "runs").unlink()
    run = Run.create("train", "notes")
    (run.path / "result.json").write_text("{")
    assert main(["runs"]) == 0
    assert "result.json is damaged" in capsys.readouterr().out
    assert main(["runs", "show", "notes"]) == 1
    assert "result.json is damaged" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(home):
    for i in range(30):
        Run.create("train", f"run-{i}")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*SETTLE, "runs"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 1 and "Broken" not in done.stderr and "Traceback" not in done.stderr


@has_full
def test_output_that_finds_no_room_is_told(home):
    Run.create("train", "notes")
    with open("/dev/full", "w") as full:
        done = subprocess.run([*SETTLE, "runs"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "No space left" in done.stderr


@pytest.fixture
def waiting(home, tmp_path):
    """The environment of a settle with one more command, `wait`, joined as others' packages join."""
    made = tmp_path / "waits"
    (made / "waits-1.dist-info").mkdir(parents=True)
    (made / "waits-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: waits\nVersion: 1\n")
    (made / "waits-1.dist-info/entry_points.txt").write_text("[settle.commands]\nwait = waits:Wait\n")
    (made / "waits.py").write_text(
        textwrap.dedent(
            """
            import time
            from settle.base.events import AnswerText, Progress, Say
            from settle.commands import Command

            class Wait(Command):
                "Wait."

                times: int = 600

                def run(self, events):
                    for done in range(self.times):
                        events.emit(Progress(what="wait", done=done, total=600, unit="rows"))
                        events.emit(Say(text="waiting"))
                        time.sleep(0.1)
                    events.emit(AnswerText(text="waited"))
                    return 0
            """
        )
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(made), *sys.path])}


@pytest.mark.parametrize("error", [ImportError("initialization failed"), FileNotFoundError(2, "gone", "x")])
def test_ctrl_c_is_one_line_whatever_a_library_makes_of_it(error, home, monkeypatch, capsys):
    def interrupted(self, events):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise error from None

    def failed(self, events):
        raise ImportError("no library")

    runs = Command.part("runs")
    monkeypatch.setattr(runs, "run", interrupted)
    assert main(["runs"]) == 130 and capsys.readouterr().err == "settle: interrupted\n"
    monkeypatch.setattr(runs, "run", failed)
    with pytest.raises(ImportError, match="no library"):
        main(["runs"])


def test_ctrl_c_is_one_line(waiting):
    process = subprocess.Popen(
        [*SETTLE, "wait"], env=waiting, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert first.startswith("wait") and process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", "settle: interrupted") and "Traceback" not in err


@pytest.mark.parametrize("module", ["pydantic_core", "settle.base.choice", "rich.console"])
def test_ctrl_c_while_it_loads_shows_no_traceback(module, home):
    argv = [sys.executable, "-X", "importtime", "-m", "settle", "runs"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    loaded = ""
    while loaded.rpartition("|")[2].strip() != module:
        loaded = process.stderr.readline()
        assert loaded
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 130, 0) and "Traceback" not in err


@pytest.mark.parametrize("gone", ["reader", pytest.param("room", marks=has_full)])
def test_the_work_goes_on_when_nobody_hears_of_it(waiting, gone):
    """stderr is a pipe whose reader has gone, or a disk without room: no reason to lose hours of training."""
    reader, stderr = os.pipe()
    os.close(reader)
    if gone == "room":
        os.close(stderr)
        stderr = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([*SETTLE, "wait", "--times", "3"], env=waiting, stdout=subprocess.PIPE, stderr=stderr)
    os.close(stderr)
    assert (done.returncode, done.stdout) == (0, b"waited")


def test_ctrl_c_on_a_terminal_leaves_it_as_it_was(waiting):
    """The key itself, typed at a terminal: the bar goes, the cursor comes back, one line says what happened."""
    pty = pytest.importorskip("pty")
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(sys.executable, [*SETTLE, "wait"], {**waiting, "TERM": "xterm-256color", "COLUMNS": "60"})
    shown = b""
    while b"rows/s" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # how Linux says that the other side has closed
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    text = shown.decode()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1 and "Traceback" not in text
    assert text.rpartition("\x1b")[2].endswith("settle: interrupted\r\n")


def test_json_is_the_last_line_of_stdout(home):
    run = Run.create("train", "notes")
    events = Events(run.events)
    events.emit(Eval(step=3, tokens=300, loss=2.0, stderr=0.1, bits_per_byte=1.5))
    events.close()
    write_json(run.path / "result.json", {"verdict": "settled", "best": {"loss": 1.9, "bits_per_byte": 1.4}})
    told = json.loads(settle("runs", "--json").stdout)
    assert [(r["name"], r["verdict"], r["bits_per_byte"]) for r in told["runs"]] == [("notes", "settled", 1.4)]


def test_nothing_phones_home():
    """Importing everything opens no socket, and the switches of the dependencies are set before they load."""
    code = """
        import sys
        opened = []
        sys.addaudithook(lambda name, args: opened.append((name, args)) if name.startswith("socket.") else None)
        import os, importlib, pkgutil, settle
        assert all(os.environ[k] == "1" for k in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"))
        for module in pkgutil.walk_packages(settle.__path__, "settle."):
            if module.name != "settle.__main__":
                importlib.import_module(module.name)
        probe = ("::1", 0)  # urllib3 asks the system whether there is IPv6
        calls = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind")
        print([o for o in opened if o[0] in calls and not (o[0] == "socket.bind" and o[1][1] == probe)])
    """
    env = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k and k != "DO_NOT_TRACK"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_fits_a_screen_with_a_line_for_each_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(Command.part_names()) <= 26 and len(shown) <= 50
    assert sum(line.startswith("│ ") for line in shown) == len(Command.part_names()) + 4  # and the options


def test_former_commands_say_where_they_are(capsys):
    for name, now in {"fit": "models fit", "audit": "runs audit", "votes": "chat --votes", "lessons": "doctor"}.items():
        assert main([name]) == 2 and f"settle {now}" in capsys.readouterr().err
    assert main(["bench", "serve"]) == 2 and "serve_overhead" in capsys.readouterr().err
