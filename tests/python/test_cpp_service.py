"""examples/cpp_service, built as a stranger would: with CMake, against the installed package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import pard_rt
from conftest import TinyModels
from pard_rt.cli import main
from pard_rt.models.find import locate
from pard_rt.vocabulary import decode_token_bytes

SOURCE = Path(__file__).parents[2] / "examples" / "cpp_service"
ENVIRONMENT = os.environ | {"PARD_RT_ONNXRUNTIME": pard_rt.onnxruntime_providers()[0]}
PROMPTS = ([84, 104, 105], [32], [70, 111, 114, 32, 105], [256, 257], [65, 66, 67, 68])
SETTINGS = [(24, 0.0, 0), (16, 0.8, 7), (24, 0.8, 8), (1, 0.8, 9), (20, 1.2, 2**64 - 1)]
LINES = [
    " ".join(map(str, (*settings, *prompt)))
    for settings, prompt in zip(SETTINGS, PROMPTS, strict=True)
]


COMPILER = shutil.which(os.environ.get("CXX", "c++"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    if cmake is None or COMPILER is None:
        pytest.skip("no CMake or no C++ compiler to build examples/cpp_service with")
    build = tmp_path_factory.mktemp("cpp_service")
    generator = [] if ninja is None else ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    options = [
        f"-Dpard_rt_DIR={pard_rt.get_cmake_dir()}",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
    ]
    for step in (
        [cmake, "-S", SOURCE, "-B", build, *generator, *options],
        [cmake, "--build", build],
    ):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "cpp_service"


@pytest.fixture(scope="module")
def target(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama", "gqa")


@pytest.fixture(scope="module")
def draft(tiny_models: TinyModels) -> Path:
    return tiny_models.folder("llama", "gqa", seed=1, mask_token=True, num_hidden_layers=1)


def serve(service: Path, *arguments: object, lines: list[str]) -> dict[str, str]:
    """Answers by what stands before the colon."""
    done = subprocess.run(
        [service, *map(str, arguments)],
        input="\n".join(lines).encode(),
        capture_output=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert done.stderr == b""
    answers = done.stdout.decode().split("\n")[:-1]  # splitlines() breaks at characters of the text
    return dict(answer.split(":", 1) for answer in answers)


def python_decoder_ids(target: Path, draft: Path | None, k: int) -> list[list[int]]:
    model, drafter = pard_rt.OnnxModel(target), None
    if draft is not None:
        drafting = pard_rt.OnnxModel(draft, is_target=False)
        assert drafting.contract.mask_token_id is not None
        drafter = pard_rt.ParallelDrafter(drafting, drafting.contract.mask_token_id)
    decoder = pard_rt.Decoder(model, drafter, num_speculative_tokens=k)
    sequences = [
        decoder.add(
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=pard_rt.SamplingParams(temperature=temperature, seed=seed),
            eos_token_ids=model.contract.eos_token_ids,
        )
        for (max_new_tokens, temperature, seed), prompt in zip(SETTINGS, PROMPTS, strict=True)
    ]
    decoder.run()
    return [sequence.generated.tolist() for sequence in sequences]


@pytest.mark.parametrize("k", [0, 4, 8])
def test_ids_are_those_of_the_decoder_in_python(
    k: int, service: Path, target: Path, draft: Path
) -> None:
    expected = python_decoder_ids(target, draft if k else None, k)
    assert expected == python_decoder_ids(target, None, 0)
    answers = serve(service, target, *((draft, k) if k else ()), lines=LINES)
    contract = pard_rt.read_folder(target)
    assert contract.num_tokens is not None
    table = decode_token_bytes((target / "token_bytes.bin").read_bytes(), contract.num_tokens)
    table += [b""] * (contract.vocab_size - len(table))
    for number, ids in enumerate(expected, start=1):
        assert [int(word) for word in answers[str(number)].split()] == ids
        text = b"".join(table[token] for token in ids).decode(errors="replace")
        assert answers[f"{number} text"][1:] == text.replace("\n", " ")
    assert len(answers) == 2 * len(expected)


@pytest.mark.parametrize("k", [0, 1, 4, 8])
def test_the_demo_pair_writes_what_it_writes_in_python(k: int, service: Path) -> None:
    prompts = ["def fibonacci(", "class Stack:\n", "import os\n", "    return ", "#"]
    plain = pard_rt.Generator(method="plain", threads=1)
    outputs = plain.generate(prompts, max_new_tokens=48, temperature=0.8, seed=5)
    lines = [" ".join(map(str, (48, 0.8, 5, *prompt.encode()))) for prompt in prompts]
    draft = (locate("demo/parallel"), k) if k else ()
    answers = serve(service, locate("demo"), *draft, lines=lines)
    for number, output in enumerate(outputs, start=1):
        assert [int(word) for word in answers[str(number)].split()] == output.token_ids
        assert answers[f"{number} text"][1:] == (output.text or "").replace("\n", " ")


def test_a_bad_line_is_answered_and_harms_no_other(service: Path, target: Path) -> None:
    bad = ["hello", "", "5 0 0", "5 0 0 1 x", "0 0 0 1", "5 -1 0 1", "5 nan 0 1", "5 0 0 100000"]
    bad += ["5 0 0 1 99999999999", "5 0 0 1 -", "5 0 -1 1"]
    answers = serve(service, target, lines=[LINES[0], *bad, LINES[1]])
    alone = serve(service, target, lines=[LINES[0], LINES[1]])
    assert (answers["1"], answers["13"]) == (alone["1"], alone["2"])
    for number, line in enumerate(bad, start=2):
        assert "expected" in answers[f"{number} error"], line


def test_answers_do_not_wait_for_the_end_of_the_input(service: Path, target: Path) -> None:
    alone = serve(service, target, lines=LINES)
    with subprocess.Popen(
        [service, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, line in enumerate(LINES, start=1):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().decode() == f"{number}:{alone[str(number)]}\n"
            process.stdout.readline()  # the text
        process.stdin.close()
        assert process.wait() == 0


def test_a_service_that_cannot_start_says_why(service: Path, target: Path, tmp_path: Path) -> None:
    def fails(*arguments: object) -> tuple[int, str]:
        command = [service, *map(str, arguments)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=ENVIRONMENT, check=False
        )
        return done.returncode, done.stderr.decode()

    assert fails()[0] == 2
    for arguments, part in (
        ((tmp_path,), "no ONNX folder"),
        ((target, tmp_path), "no ONNX folder"),
        ((target, target, 65), "num_speculative_tokens"),
    ):
        status, message = fails(*arguments)
        assert status == 1
        assert part in message


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler for the example of docs/cpp.md")
def test_the_example_of_the_documentation_compiles() -> None:
    page = (SOURCE.parents[1] / "docs" / "cpp.md").read_text("utf-8")
    example = page.split("```cpp\n")[1].split("```")[0]
    include = Path(pard_rt.get_cmake_dir()).parents[2] / "include"
    command = [str(COMPILER), "-std=c++20", "-fsyntax-only", f"-I{include}", "-x", "c++", "-"]
    subprocess.run(command, input=example.encode(), check=True)


def test_the_cmake_dir_is_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--cmake-dir"]) == 0
    assert capsys.readouterr().out == pard_rt.get_cmake_dir() + "\n"


def test_without_the_files_of_an_installed_package_there_is_no_cmake_dir(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pard_rt.cpp.__file__", str(tmp_path / "cpp.py"))
    with pytest.raises(pard_rt.RuntimeMissingError, match="editable"):
        pard_rt.get_cmake_dir()
