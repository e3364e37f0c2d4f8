"""`pard-rt chat` at a terminal and in a pipe, and `pard-rt generate --chat`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chat_models import make_chat_model
from conftest import TinyModels
from pard_rt import Generator, export
from pard_rt.cli import main
from pard_rt.models.find import locate
from terminals import Terminal, at_a_terminal

# Every question is in the prompt, so answers tell what the model was given.
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}"
STATS = r"-- \d+ tokens, \d+ per second, \d\.\d\d tokens per round"
PLAIN = ["--method", "plain", "--threads", "1"]


def says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pard_rt", "chat", *map(str, arguments)]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's target, made to chat."""
    folder = tmp_path_factory.mktemp("chat_cli") / "talker"
    shutil.copytree(locate("demo"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def long_talker(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that goes on for longer than anybody waits."""
    source = tiny_models.checkpoint("llama", seed=3, max_position_embeddings=1 << 17)
    root = tmp_path_factory.mktemp("long")
    refusing = "{% if messages[2:] %}{{ raise_exception('an answer was kept') }}{% endif %}"
    template = refusing + "{{ messages[0].content }}"
    return export(make_chat_model(source, root / "source", template=template), root / "to").folder


def answers(folder: Path, *conversation: dict[str, str], **options: Any) -> str:
    text = Generator(folder, threads=1).chat(list(conversation), **options).text
    assert text is not None
    return text


def asks(terminal: Terminal, keys: str) -> str:
    """Type a message; what is shown from the answer on, up to the next prompt."""
    terminal.type(keys)
    terminal.read_until(keys.strip().splitlines()[-1] + "\n")
    return terminal.read_until("\n> ").removesuffix("\n> ")


def test_a_conversation_at_a_terminal(talker: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40}
    first = answers(talker, says("user", "import os"), **options)
    history = [says("user", "import os"), says("assistant", first), says("user", "import re")]
    second = answers(talker, *history, **options)
    anew = answers(talker, says("user", "import re"), **options)
    told = answers(talker, says("system", "def"), says("user", "import re"), **options)
    assert len({first, second, anew, told}) == 4
    with at_a_terminal(command(talker, *PLAIN, "--max-new-tokens", 40)) as terminal:
        terminal.read_until("/help lists the commands\n> ")

        def shows(keys: str, answer: str) -> None:
            shown = asks(terminal, keys)
            assert shown.startswith(answer + "\n")
            assert re.fullmatch(
                STATS + r"\n-- cut after 40 tokens: see --max-new-tokens",
                shown.removeprefix(answer + "\n"),
            )

        shows("import os\n", first)
        shows("import re\n", second)
        terminal.type("/reset\n")
        terminal.read_until("> ")
        shows("import re\n", anew)
        for line in ("/reset\n", "/system def\n"):
            terminal.type(line)
            terminal.read_until(f"{line}> ")
        shows("import re\n", told)
        terminal.type("/help\n")
        assert "/system TEXT" in terminal.read_until("conversation.\n> ")
        terminal.type("/nonsense\n")
        terminal.read_until("-- there is no command /nonsense; /help lists them\n> ")
        terminal.type("\n")
        terminal.read_until("> ")
        terminal.type("/exit\n")
        assert terminal.status() == 0


def test_messages_of_several_lines(talker: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4}
    lines = answers(talker, says("user", "class A:\n    def"), **options)
    slash = answers(talker, says("user", "/exit\n\nnow"), **options)
    with at_a_terminal(command(talker, *PLAIN, "--max-new-tokens", 4)) as terminal:
        terminal.read_until("\n> ")
        assert asks(terminal, "class A:\\\n    def\n").startswith(lines + "\n--")
        terminal.type("/reset\n")
        terminal.read_until("> ")
        terminal.type('"""\n/exit\n\nnow\n"""\n')
        terminal.read_until('  """\n')
        assert terminal.read_until("\n> ").startswith(slash + "\n--")
        terminal.type("\x04")
        assert terminal.status() == 0


def test_accepted_proposals_are_green(talker: Path) -> None:
    draft = ["--draft", locate("demo/parallel"), "--threads", 1, "--max-new-tokens", 40]
    with at_a_terminal(command(talker, *draft), {"NO_COLOR": ""}) as terminal:
        terminal.read_until("\n> ")
        shown = asks(terminal, "import os\n")
        assert shown.startswith(answers(talker, says("user", "import os"), max_new_tokens=40))
        assert "tokens per round (K = 8)" in shown
        assert b"\x1b[32m" in terminal.shown
        terminal.type("\x04")
        assert terminal.status() == 0


def test_ctrl_c_stops_an_answer_and_not_the_program(long_talker: Path) -> None:
    with at_a_terminal(command(long_talker, *PLAIN, "--max-new-tokens", 120000)) as terminal:
        terminal.read_until("\n> ")
        terminal.type("half a line")
        terminal.read_until("half a line")  # Ctrl-C would discard keys that nobody has read
        terminal.insist("\x03", "\n> ")  # at the prompt it drops the line
        for _ in range(3):
            terminal.type("one?\n")
            terminal.read_until("one?\n")
            terminal.read_more_than(1000)
            terminal.type("\x03")
            shown = terminal.read_until("-- stopped\n> ")
            count = re.search(r"-- (\d+) tokens", shown)
            assert count is not None
            assert int(count[1]) < 120000
            terminal.type("two?\n")  # which the template refuses, if it finds an answer before
            terminal.read_until("an answer was kept")
            terminal.read_until("/reset forgets the conversation so far\n> ")
            terminal.type("/reset\n")
            terminal.read_until("/reset\n> ")
        terminal.type("/exit\n")
        assert terminal.status() == 0


def test_ctrl_c_pressed_twice_does_not_end_the_program_either(talker: Path) -> None:
    gaps = np.random.default_rng(0).uniform(0, 0.0005, 40)
    with at_a_terminal(command(talker, *PLAIN)) as terminal:
        terminal.read_until("\n> ")
        for gap in gaps:
            terminal.type("\x03")
            time.sleep(gap)
            terminal.type("\x03")
            time.sleep(0.05)
        terminal.insist("/help\n", "/exit ")
        terminal.type("/exit\n")
        assert terminal.status() == 0


# ---- in a pipe -----------------------------------------------------------------------------------


def piped(text: str | bytes, *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    given = text if isinstance(text, bytes) else text.encode()
    run = subprocess.run(command(*arguments), input=given, capture_output=True, check=False)
    return run.returncode, run.stdout.decode(), run.stderr.decode()


def test_a_pipe_has_a_message_in_every_line(talker: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.8, "seed": 3}
    given = ["--max-new-tokens", 6, "--temperature", 0.8, "--seed", 3, "--system", "def"]
    history = [says("system", "def")]
    texts = []
    for message in ("import os", "class A:\n    x", "last"):
        history.append(says("user", message))
        texts.append(answers(talker, *history, **options))
        history.append(says("assistant", texts[-1]))
    lines = 'import os\n\nclass A:\\\n    x\n"""\nlast'
    status, out, err = piped(lines, talker, *PLAIN, *given)
    assert (status, out) == (0, "".join(f"{text}\n" for text in texts))
    note = "-- cut after 6 tokens: see --max-new-tokens"
    assert re.fullmatch(f"({STATS}\n{note}\n){{3}}", err)
    assert piped("/exit\nimport os\n", talker, *PLAIN) == (0, "", "")


def test_a_history_that_outgrows_the_model(talker: Path) -> None:
    """The chat says so, and goes on."""
    lines = "import os\n" + "x" * 500 + "\n/reset\nimport os\n"
    given = [*PLAIN, "--max-length", 60, "--max-new-tokens", 100]
    status, out, err = piped(lines, talker, *given)
    first = answers(talker, says("user", "import os"), max_new_tokens=60 - len("u: import os\n"))
    assert (status, out) == (2, f"{first}\n" * 2)
    assert err.count("-- the conversation fills the model's memory; /reset forgets it") == 2
    assert "pard-rt: The conversation is too long for the model" in err
    assert "expected: at most 59 tokens" in err
    assert "-- the message was not taken; /reset forgets the conversation so far" in err


def test_messages_that_cannot_be_answered(talker: Path) -> None:
    refusing = talker.with_name("refusing")
    shutil.copytree(talker, refusing)
    template = "{% if messages[0].content == 'no' %}{{ raise_exception('Say yes.') }}{% endif %}"
    (refusing / "chat_template.jinja").write_text(template + TEMPLATE)
    status, out, err = piped("no\nyes\n", refusing, *PLAIN, "--max-new-tokens", 4)
    assert (status, out) == (2, answers(refusing, says("user", "yes"), max_new_tokens=4) + "\n")
    assert "refuses these messages\n" in err
    assert "got:      Say yes.\n" in err
    assert "/reset" not in err  # there is nothing to forget
    status, out, err = piped(b"\xff\n", talker, *PLAIN)
    assert (status, out) == (2, "")
    assert "utf-8" in err


def test_models_that_cannot_chat(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["chat"], ["generate", "--chat", "import os"]):
        assert main(line) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "has no chat template" in captured.err
        assert "pard-rt generate" in captured.err


# ---- generate --chat -----------------------------------------------------------------------------


def test_generate_takes_prompts_as_messages(
    talker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--target", str(talker), "--threads", "1", "--max-new-tokens", "6"]
    assert main(["generate", "--chat", "import os", "import re", *given]) == 0
    texts = [answers(talker, says("user", f"import {x}"), max_new_tokens=6) for x in ("os", "re")]
    assert capsys.readouterr().out == f"import os\n{texts[0]}\nimport re\n{texts[1]}\n"
    drafts = ["--draft", str(locate("demo/parallel")), "--chat", "--compare"]
    assert main(["generate", "import os", *drafts, *given]) == 0
    assert "identical output: yes" in capsys.readouterr().out


def test_options_of_the_template(talker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = talker.with_name("optional")
    shutil.copytree(talker, folder)
    (folder / "chat_template.jinja").write_text("{{ before }}" + TEMPLATE)
    given = ["--target", str(folder), "--threads", "1", "--max-new-tokens", "6"]
    variables = ["--template-options", '{"before": "def "}']
    assert main(["generate", "--chat", "import os", *given, *variables]) == 0
    told = Generator(folder, threads=1).chat(
        [says("user", "import os")], template_options={"before": "def "}, max_new_tokens=6
    )
    assert capsys.readouterr().out == f"import os\n{told.text}\n"
    assert piped("import os", folder, *given[2:], *variables)[1] == f"{told.text}\n"
    assert main(["generate", "import os", *given, *variables]) == 2
    assert "Add --chat" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["chat", "--template-options", "{"])
    assert "not JSON" in capsys.readouterr().err


def test_sampling_as_the_model_says(talker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = talker.with_name("sampled")
    shutil.copytree(talker, folder)
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.9}')
    warm: dict[str, Any] = {"temperature": 0.9, "seed": 5, "max_new_tokens": 12}
    text = answers(folder, says("user", "import os"), **warm)
    assert text != answers(folder, says("user", "import os"), max_new_tokens=12)
    given = ["--sampling", "model", "--seed", "5", "--max-new-tokens", "12", "--threads", "1"]
    assert piped("import os", folder, *given)[1] == f"{text}\n"
    assert main(["generate", "--chat", "import os", "--target", str(folder), *given]) == 0
    assert capsys.readouterr().out == f"import os\n{text}\n"
    assert main(["generate", "import os", "--target", str(talker), *given]) == 2
    assert "does not say how it is sampled" in capsys.readouterr().err


# ---- a published model ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["smollm2", "smollm2_folder"])
def test_smollm2_answers_at_a_terminal(source: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(source)
    with at_a_terminal(command(folder, "--threads", 1, "--max-new-tokens", 40)) as terminal:
        terminal.read_until("\n> ")
        for question, answer in (
            ("What is the capital of France?", "The capital of France is Paris.\n"),
            ("And of Italy?", "The capital of Italy is Rome.\n"),
        ):
            shown = asks(terminal, question + "\n")
            assert shown.startswith(answer)
            assert re.fullmatch(STATS, shown.removeprefix(answer))
        terminal.type("\x04")
        assert terminal.status() == 0
