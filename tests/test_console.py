"""What a command says, where, and when it is silent."""

import io
import logging
import sys

import pytest

from had import console


class Terminal(io.StringIO):
    """An error stream that a person looks at."""

    def isatty(self) -> bool:
        return True


def test_messages_go_to_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup_logging()
    console.say("3 contigs,", 12, "bp")
    logging.getLogger("had.training").warning("a checkpoint was %s", "skipped")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "3 contigs, 12 bp\nhad: warning: a checkpoint was skipped\n"


def test_quiet_leaves_only_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup_logging(quiet=True)
    console.say("hello")
    logging.getLogger("had").info("hello")
    with console.progress(10, "reading", "bp") as advance:
        advance(10)
    logging.getLogger("had").warning("careful")
    assert capsys.readouterr().err == "had: warning: careful\n"


def test_setting_up_twice_says_things_once(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup_logging()
    console.setup_logging()
    logging.getLogger("had").info("once")
    assert capsys.readouterr().err == "had: once\n"


class Gone(io.StringIO):
    """The end of a pipe whose reader went away."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("listener", [None, Gone()])
def test_work_goes_on_where_nobody_listens(monkeypatch: pytest.MonkeyPatch, listener: io.StringIO | None) -> None:
    console.setup_logging()
    monkeypatch.setattr(sys, "stderr", listener)
    console.say("hello")
    logging.getLogger("had").warning("careful")
    with console.progress(10, "reading") as advance:
        advance(10)


def test_only_the_first_of_many_processes_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    console.setup_logging()
    console.say("hello")
    with console.progress(10, "reading") as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_a_log_file_gets_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress(4_000_000, "training", "bp") as advance:
        advance.skip(1_000_000)
        for _ in range(100):
            now[0] += 1
            advance(10_000)
        advance.note(loss=0.123456)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "training: 32 %, 1.30M of 4.00M bp, 10.0k bp/s, 04:30 left"
    assert lines[-1] == "training: 50 %, 2.00M of 4.00M bp, 10.0k bp/s, 01:40 taken, loss 0.1235"


def test_a_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.progress(1_000_000, "training", "bp") as advance:
        advance.skip(200_000)
        advance(300_000)
        advance.note(loss=0.5)
        console.say("in between")
    text = terminal.getvalue()
    assert "training:" in text
    assert "bp/s" in text
    assert "50%" in text
    assert "in between\n" in text


def test_codes_that_come_out_of_files_are_shown_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "chr\x1b[2J\x07\u202e1\nhad: done"
    console.setup_logging()
    console.say(name)
    logging.getLogger("had").warning("contig %s", name)
    with console.progress(1, name) as advance:
        advance.note(of=name)
    written = capsys.readouterr().err
    assert written.count(r"chr\x1b[2J\x07\u202e1\nhad: done") == 4
    assert written.count("\n") == 3
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.progress(1, name) as advance:
        advance.note(of=name)
        advance(1)
    assert "\x1b[2J" not in terminal.getvalue()
    assert r"chr\x1b[2J" in terminal.getvalue()
    assert console.printable("é, 猫, 1 bp") == "é, 猫, 1 bp"
