"""Training histories of other trainers: which checkpoint, overfitting beyond noise, and what was never evaluated."""

import base64
import json
import zlib

import numpy as np
import pytest

from settle.base.errors import DataError
from settle.cli import main
from settle.doctor.history import History, find_history, read_history
from settle.jobs.exporters.tensorboard import scalars

# what tensorboardX 2.6 wrote for train/loss 4 / n and eval/loss 4.2 / n at the steps 10 n, n from 1 to 8
EVENTS = zlib.decompress(
    base64.b85decode(
        "c-oU-fPlsI-b$R0mp3qPI&{lXiZ`h!F*8rkwJbHS#LDQj=U!t4s5;HJD+4&c`Za>p32<o%a|v>Bm4H<1=j0a`i!v}YI0S?hh>Jnh"
        "`zP+x04fvW65!%YElbRSs7gy~bMTq9$`i%Z?-!t^ieNF7!J$2E|0EPsMKDcebFfVKa~j1|v&&FZ<uFWLy=s;HzI!V7P)wCWH`Um9"
        "v%SJzWkVEG=U;)Es(~#8?9(3aV@EMn14{_lKPi8@1I5(9Yfw{-Fibsr#>YN(f|Cb|sYd9g+H!^4Pg788MKQJNI@DAfEFqv}f6VfK"
        "8j7hlm?2<nU+H{&4~nU|LQN1;-7rj5^%SzdFL!M|im7hsrp}rvY46YDxf#XOMZ!>11F)q5d#A>V^C+eUU`Ye^-p4X30U?*kbN"
    )
)


def state(folder, evaluations, train=(), **more):
    """trainer_state.json as transformers writes it, in the folder of a checkpoint."""
    log = [{"step": step, "loss": loss, "learning_rate": 1e-4, "epoch": step / 100} for step, loss in train]
    log += [{"step": step, "eval_loss": loss, "eval_runtime": 1.0} for step, loss in evaluations]
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log, "global_step": 1, **more}))


def noisy(rise, seed, number=30, noise=0.02):
    """Return evaluations that fall, and from the middle on rise by `rise` in all."""
    drawn = np.random.default_rng(seed).normal(0, noise, number)
    middle = number // 2
    means = [2 + (middle - n) / middle if n < middle else 2 + rise * (n - middle) / middle for n in range(number)]
    return [(10 * (n + 1), mean + drawn[n]) for n, mean in enumerate(means)]


def test_event_files_of_tensorboard_are_read(tmp_path):
    path = tmp_path / "events.out.tfevents.1.here"
    path.write_bytes(EVENTS)
    found = list(scalars(path))
    assert [(s.tag, s.step) for s in found][:2] == [("train/loss", 10), ("eval/loss", 10)]
    history = read_history(tmp_path)
    assert history.train[-1] == (80, 0.5) and history.evaluations[0] == (10, pytest.approx(4.2))
    path.write_bytes(EVENTS[:-7])  # torn by a crash
    assert len(list(scalars(path))) == len(found) - 1
    path.write_bytes(b"\x08\0\0\0\0\0\0\0" + b"\xff" * 20)
    with pytest.raises(DataError, match="not an event file"):
        list(scalars(path))


def test_the_newest_checkpoint_tells_and_the_best_is_named(tmp_path, home, capsys):
    evaluations = noisy(0.4, 1)
    state(tmp_path / "out" / "checkpoint-140", evaluations[:14])
    state(tmp_path / "out" / "checkpoint-300", evaluations, [(n, 1.0) for n in range(10, 310, 10)])
    assert main(["doctor", str(tmp_path / "out")]) == 3
    said = "".join(capsys.readouterr())
    assert "overfitted from about step" in said and "take checkpoint 140" in said and "checkpoint-140" in said


@pytest.mark.parametrize("kind", ["csv", "blank cells"])
def test_csv_logs_are_read(kind, tmp_path):
    path = tmp_path / "metrics.csv"
    if kind == "csv":
        path.write_text("epoch,loss,val_loss\n1,2.5,2.6\n2,2.0,2.2\n")
    else:  # as Lightning writes
        path.write_text("step,train_loss_step,val_loss\n1,2.5,\n1,,2.6\n2,2.0,\n2,,2.2\n")
    history = read_history(path)
    assert history.train == [(1, 2.5), (2, 2.0)] and history.evaluations == [(1, 2.6), (2, 2.2)]
    (tmp_path / "prices.csv").write_text("day,price\n1,2\n")
    assert find_history(tmp_path / "prices.csv") == []


def test_a_rise_within_the_noise_is_none():
    flat = [History(path=None, train=[(1, 1.0)], evaluations=noisy(0.0, seed)) for seed in range(200)]
    risen = [History(path=None, train=[(1, 1.0)], evaluations=noisy(0.3, seed)) for seed in range(200)]

    def found(histories):
        return sum(rise is not None and rise[0] > rise[1] for rise in (history.rise() for history in histories))

    assert found(flat) <= 4 and found(risen) >= 195


def test_a_damaged_state_is_an_error(tmp_path, home, capsys):
    (tmp_path / "trainer_state.json").write_text('{"log_history": ')
    assert main(["doctor", str(tmp_path / "trainer_state.json")]) == 1
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "record",
    [
        b"\x80" * 100_000,  # a number without end
        b"\x2a\x0b\x0a\x09\x11" + b"\xff" * 8,  # a value of eight bytes where four belong
        b"\x2a\x7f",  # a summary that ends before it should
    ],
)
def test_hostile_event_files_are_refused(record, tmp_path):
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(len(record).to_bytes(8, "little") + b"\0" * 4 + record + b"\0" * 4)
    with pytest.raises(DataError, match="not an event file"):
        list(scalars(path))
