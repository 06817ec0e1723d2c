"""`edgecnn.ssh`: how a box is written, what ssh is told, and what its words mean; no server is needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgecnn import ssh
from edgecnn.errors import DeviceError, MissingPackageError, UsageError
from edgecnn.ssh import Connection, Destination, sources

ECHO = "from edgecnn.device.box_channel import Channel\ndef main():\n    channel = Channel()\n    while True:\n"
ECHOES = {
    **sources("edgecnn.device.box_channel"),
    "echo": ECHO + "        header, size = channel.header()\n        header['size'] = len(channel.take(size))\n"
    "        channel.answer(header)\n",
}


@pytest.mark.parametrize(
    ("text", "host", "path"),
    [
        ("box", "box", "edgecnn"),
        ("pi@box", "pi@box", "edgecnn"),
        ("pi@box:", "pi@box", "edgecnn"),
        ("pi@192.168.1.7:/opt/a b", "pi@192.168.1.7", "/opt/a b"),
        ("pi@box:~/x:y@z", "pi@box", "~/x:y@z"),
        ("pi@[fe80::1%eth0]:x", "pi@fe80::1%eth0", "x"),
        ("[::1]", "::1", "edgecnn"),
        ("a@realm@box", "a@realm@box", "edgecnn"),
        ("box:$(id)\n-x", "box", "$(id)\n-x"),
    ],
)
def test_a_box_is_written_as_for_scp(text: str, host: str, path: str) -> None:
    """The host is what stands before the first colon, addresses of IPv6 in brackets, and the path may be anything."""
    assert Destination.parse(text) == Destination(host=host, path=path)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":path", "@box", "pi@", "-oProxyCommand=id", "pi@-oProxyCommand=id", "-x@box", "a b", "box\n", "b;id", "$(id)@box",
        "`id`", "b'", 'b"', "b|c", "b&", "b\\", "[::1", "::1", "box:\0",
        "ssh://pi@box", "scp://box/x",
    ],
)  # fmt: skip
def test_what_could_be_an_option_or_a_command_is_no_host(text: str) -> None:
    """A host that ssh would take for an option, or a shell for more than a word, is refused in one line."""
    with pytest.raises(UsageError, match=r"user@host\[:path\]|zero byte") as error:
        Destination.parse(text)
    assert "\n" not in str(error.value)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for ssh on the PATH, which notes its arguments and runs the command here, in a shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "ssh"
    script.write_text(
        f'#!/bin/sh\nfor word in "$@"; do printf \'%s\\0\' "$word"; done > {tmp_path}/arguments\n'
        'for last in "$@"; do :; done\nexec /bin/sh -c "$last"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv(ssh.OPTIONS, raising=False)
    monkeypatch.setattr(ssh, "END_S", 0.3)
    return tmp_path


def arguments(folder: Path) -> list[str]:
    return (folder / "arguments").read_text().split("\0")[:-1]


def test_a_connection_echoes_whatever_it_is_sent(stand_in: Path) -> None:
    """Headers of any text and bytes of any length, also more than a pipe holds, arrive and are answered one by one."""
    connection = Connection(Destination("box"), ECHOES, python=sys.executable)
    for size in (0, 1, 3_000_000):
        parts = (b"x" * min(70_000, size - at) for at in range(0, size, 70_000))
        answer = connection.request({"do": "é\n", "n": [1, None]}, parts, size)
        assert answer == {"do": "é\n", "n": [1, None], "size": size}
    connection.close()
    connection.close()
    with pytest.raises(DeviceError, match="box: the connection is closed"):
        connection.request({})


def test_ssh_is_told_to_ask_nothing_and_that_options_end(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal it is in batch mode, the person's options come first, and `--` stands before the host."""
    monkeypatch.setenv(ssh.OPTIONS, "-F 'my config' -p 7")
    Connection(Destination("pi@box"), ECHOES, ("-o", "ConnectTimeout=1"), sys.executable, "this one").close()
    told = arguments(stand_in)
    assert told[:8] == ["-o", "ConnectTimeout=1", "-F", "my config", "-p", "7", "-F", "this one"]
    assert told[-3:-1] == ["--", "pi@box"]
    assert told[told.index("BatchMode=yes") - 1] == "-o"
    assert told.index("ConnectTimeout=1") < told.index("ConnectTimeout=30"), "ssh takes the first"
    assert {"RemoteCommand=none", "ClearAllForwardings=yes", "-T"} <= set(told)


def test_on_a_terminal_ssh_may_ask(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody sits at a terminal, batch mode is off, so that ssh asks for a password or about a new host there."""
    master, slave = os.openpty()
    with os.fdopen(slave, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        Connection(Destination("box"), ECHOES, python=sys.executable).close()
    os.close(master)
    assert not [word for word in arguments(stand_in) if word.startswith("BatchMode")]


@pytest.mark.parametrize("python", ["-c", "py\nthon", "py\0"])
def test_an_interpreter_that_could_be_an_option_is_refused(python: str, stand_in: Path) -> None:
    """What a shell's exec would take for an option, or cannot be a path, is one line."""
    with pytest.raises(UsageError, match="is no interpreter"):
        Connection(Destination("box"), ECHOES, python=python)


@pytest.mark.parametrize("name", ["a python", "$(touch pwned)", "it's", 'say "hi"', "~x"])
def test_an_interpreter_may_have_any_name(name: str, stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path reaches the box as it is, and no shell there makes anything of it."""
    monkeypatch.chdir(stand_in)
    (stand_in / name).symlink_to(sys.executable)
    Connection(Destination("box"), ECHOES, python=f"./{name}").close()
    assert not (stand_in / "pwned").exists()


def test_a_tilde_is_the_home_folder_where_commands_start(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~/python` is looked for from the folder in which ssh starts its commands, as quoting it keeps the shell off."""
    monkeypatch.chdir(stand_in)
    (stand_in / "python").symlink_to(sys.executable)
    Connection(Destination("box"), ECHOES, python="~/python").close()
    with pytest.raises(DeviceError, match=r"~/nothing cannot be run there .*install Python 3\.10 or newer"):
        Connection(Destination("box"), ECHOES, python="~/nothing")


def test_files_of_the_home_folder_are_no_modules(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder with a `json.py` and an `edgecnn` folder in it disturbs nothing."""
    monkeypatch.chdir(stand_in)
    for name in ("json.py", "types.py", "struct.py"):
        (stand_in / name).write_text("raise SystemExit('taken for a module')\n")
    (stand_in / "edgecnn").mkdir()
    connection = Connection(Destination("box"), ECHOES, python=sys.executable)
    assert connection.request({"a": 1}) == {"a": 1, "size": 0}
    connection.close()


def fake(folder: Path, script: str) -> None:
    (folder / "bin" / "ssh").write_text(f"#!/bin/sh\n{script}\n")


WORDS = {
    "Host key verification failed.": "host key is not known here: connect once by `ssh pi@box`",
    "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.": "not the one recorded here",
    "pi@box: Permission denied (publickey).": "refuses the login",
    "ssh: connect to host box port 22: Connection refused": "nothing listens for ssh",
    "ssh: Could not resolve hostname box: Name or service not known": "no host of this name",
    "ssh: connect to host box port 22: Connection timed out": "does not answer",
    "ssh: connect to host jump port 22: Connection refused\nConnection closed by UNKNOWN port 65535": "host jump port 22",
    "command-line: line 0: Bad configuration option: foo": "ssh knows no such option: see --ssh-option",
    "Can't open user config file /no: No such file or directory": "ssh cannot read its configuration: see -F",
    "Permissions 0644 for 'key' are too open.\npi@box: Permission denied (publickey).": "others may read the key",
    "Timeout, server box not responding.": "the connection was lost",
    "": "ssh says nothing",
}


@pytest.mark.parametrize(("said", "meaning"), WORDS.items())
def test_what_ssh_says_is_one_line_with_what_to_do(said: str, meaning: str, stand_in: Path) -> None:
    """Each way in which ssh fails is told in one line that names the host and has ssh's own words."""
    (stand_in / "said").write_text(said)
    fake(stand_in, f"cat {stand_in}/said >&2; exit 255")
    with pytest.raises(DeviceError, match=r"^pi@box: ") as error:
        Connection(Destination("pi@box"), ECHOES)
    assert meaning in str(error.value)
    assert "\n" not in str(error.value)
    assert all(line.strip("@ ") in str(error.value) for line in said.splitlines()[:1])


def test_a_python_that_is_too_old_says_so(stand_in: Path) -> None:
    """An interpreter of 3.9 ends after it has told its version, and the line says how to name another."""
    fake(stand_in, "echo edgecnn-box 3.9")
    with pytest.raises(DeviceError, match=r"box: python3 there is 3\.9, and edgecnn takes 3\.10 or newer.*--python"):
        Connection(Destination("box"), ECHOES)


def test_a_shell_that_prints_for_ever_is_not_listened_to(stand_in: Path) -> None:
    """A box that never says the word is given up, and its process is gone."""
    fake(stand_in, f"echo $$ > {stand_in}/pid; exec cat /dev/zero")
    with pytest.raises(DeviceError, match=r"^box: "):
        Connection(Destination("box"), ECHOES)
    with pytest.raises(ProcessLookupError):
        os.kill(int((stand_in / "pid").read_text()), 0)


def test_silence_is_not_waited_for_for_ever(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box that connects and says nothing is given up after a time."""
    monkeypatch.setattr(ssh, "START_S", 0.3)
    fake(stand_in, "exec sleep 60")
    with pytest.raises(DeviceError, match=r"box: no answer in 0\.3 s"):
        Connection(Destination("box"), ECHOES)


def test_an_answer_that_does_not_come_ends_the_connection(stand_in: Path) -> None:
    """After one answer that was waited for in vain nothing else is read, as it could be the answer to another question."""
    slow = {**ECHOES, "echo": ECHOES["echo"].replace("        header, size", "        import time; time.sleep(1)\n        header, size")}  # fmt: skip
    connection = Connection(Destination("box"), slow, python=sys.executable)
    with pytest.raises(DeviceError, match=r"box: no answer in 0\.2 s"):
        connection.request({}, timeout_s=0.2)
    with pytest.raises(DeviceError, match="closed"):
        connection.request({})


def test_without_ssh_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no ssh on the PATH the error names Debian's package."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPackageError, match="apt-get install openssh-client"):
        Connection(Destination("box"), ECHOES)


def test_options_that_are_half_quoted_are_refused(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quote in EDGECNN_SSH that is not closed is one line that names the variable."""
    monkeypatch.setenv(ssh.OPTIONS, "-F 'x")
    with pytest.raises(UsageError, match="EDGECNN_SSH"):
        Connection(Destination("box"), ECHOES)


def test_what_is_sent_is_what_lies_here() -> None:
    """Modules are sent as they are, whole, and only by their names."""
    text = sources("edgecnn.device.box_store")["edgecnn.device.box_store"]
    assert json.dumps(text)
    assert text == (Path(ssh.__file__).parent / "device" / "box_store.py").read_text()
